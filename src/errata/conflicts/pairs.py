# pyright: strict
"""Pairs of an older and a newer edit that cannot both hold, or that ask for the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.answers import normalise
from errata.conflicts.inverses import disagree, inverse
from errata.types import Edit

if TYPE_CHECKING:
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

DUPLICATE, OTHER_TARGET = "duplicate", "other target"
OTHER_WORDS, INVERSE = "other words", "inverse"

Pair = tuple[Edit, Edit]  # older, newer


@dataclass(frozen=True)
class Conflict:
    """Two edits of one fact.

    ``kind`` is "duplicate" (the same question and answer; with a model, in other words too), "other target" (the same
    question with another answer), "other words" (the same fact in another phrasing, with another answer), or
    "inverse" (A is the CEO of B, and B's CEO is C).
    """

    older: Edit
    newer: Edit
    kind: str

    @property
    def key(self) -> str:
        """The ids of both, by which a decision names the conflict."""
        return f"{self.older.id} {self.newer.id}"

    @property
    def one_question(self) -> bool:
        """Whether both ask the same, word by word."""
        return normalise(self.older.prompt) == normalise(self.newer.prompt)

    def to_json(self) -> dict[str, Any]:
        """The kind and both edits."""
        return {"kind": self.kind, "older": self.older.to_json(), "newer": self.newer.to_json()}


def conflicts(
    older: Sequence[Edit], newer: Sequence[Edit], lm: "HFLM | None" = None, patch: "Patch | None" = None
) -> list[Conflict]:
    """The conflicts of older with newer edits, in the order of the newer ones.

    Texts alone tell the same question and, where both relations share a word that says what they are, an inverse. With
    ``lm`` are found, too, an inverse in whatever words, and the same fact in other words: both prompts have the same
    old answer, and either fact, told before the other's prompt, gives its answer; or the older one's target is the
    answer while ``patch``, which holds it, is in force.
    """
    related = _Related(older)
    return _found([(older[i], edit) for edit in newer for i in related.to(edit)], lm, patch)


def within(edits: Sequence[Edit], lm: "HFLM | None" = None) -> list[Conflict]:
    """The conflicts of edits with each other; one that stands later is newer."""
    related = _Related(edits)
    return _found([(edits[i], edit) for j, edit in enumerate(edits) for i in related.to(edit) if i < j], lm, None)


class _Related:
    """Edits by their question, and by what they are about and answer."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self.by: dict[tuple[str, str], list[int]] = {}
        for i, edit in enumerate(edits):
            for name in (("asks", edit.prompt), ("is about", edit.subject), ("answers", edit.target_new)):
                self.by.setdefault((name[0], normalise(name[1])), []).append(i)

    def to(self, edit: Edit) -> list[int]:
        """Those of the same question or subject, and those that one leads to from the other, in order."""
        ends = [("is about", edit.subject), ("answers", edit.subject), ("is about", edit.target_new)]
        ways = [("asks", edit.prompt), *ends]
        return sorted({i for way, name in ways for i in self.by.get((way, normalise(name)), ())})


def _found(pairs: Sequence[Pair], lm: "HFLM | None", patch: "Patch | None") -> list[Conflict]:
    kinds: dict[int, str] = {}
    reworded: list[int] = []
    turned: list[int] = []
    for n, (one, two) in enumerate(pairs):
        if normalise(one.prompt) == normalise(two.prompt):
            kinds[n] = DUPLICATE if _same_target(one, two) else OTHER_TARGET
        elif normalise(one.subject) == normalise(two.subject):
            reworded.append(n)
        elif disagree(one, two):
            turned.append(n)
    kinds |= {n: INVERSE for n in turned if inverse(*pairs[n])}
    if lm is not None:
        from errata.conflicts import rewording

        unsure = [n for n in turned if n not in kinds]
        told = zip(unsure, rewording.inverse(lm, [pairs[n] for n in unsure]), strict=True)
        kinds |= {n: INVERSE for n, says in told if says}
        told = zip(reworded, rewording.same_fact(lm, [pairs[n] for n in reworded], patch), strict=True)
        kinds |= {n: DUPLICATE if _same_target(*pairs[n]) else OTHER_WORDS for n, says in told if says}
    return [Conflict(*pairs[n], kinds[n]) for n in sorted(kinds)]


def _same_target(one: Edit, two: Edit) -> bool:
    return normalise(one.target_new) == normalise(two.target_new)
