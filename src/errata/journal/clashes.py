# pyright: strict
"""Edits of two sides that cannot both hold, and what was decided about them: by a rule, or one by one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from errata.answers import normalise
from errata.conflicts.pairs import DUPLICATE, OTHER_WORDS, Conflict, conflicts
from errata.errors import BadInput, Refused, unknown
from errata.journal.commit import fact
from errata.printable import shown
from errata.types import Edit

if TYPE_CHECKING:
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

Rule = Literal["ours", "theirs", "newest"]
Keep = Literal["ours", "theirs", "both", "neither"]
OUT_OURS, OUT_THEIRS, SAME_ID = "taken out by us, changed by them", "changed by us, taken out by them", "same id"
LISTED = 20


@dataclass(frozen=True)
class Clash:
    """Two edits that cannot both hold, and which of them stays (None: undecided).

    Where a side has taken its edit out, to keep that side is to leave both out.
    """

    ours: Edit
    theirs: Edit
    kind: str
    keep: Keep | None = None

    def to_json(self) -> dict[str, Any]:
        """What a file of resolutions holds: ``keep`` is to be filled in."""
        return {"keep": self.keep, "kind": self.kind, "ours": self.ours.to_json(), "theirs": self.theirs.to_json()}

    @property
    def dropped(self) -> set[str]:
        """Facts that do not stay."""
        ours, theirs = {fact(self.ours)}, {fact(self.theirs)}
        return {"ours": theirs, "theirs": ours, "both": set[str](), "neither": ours | theirs, None: set[str]()}[
            self.keep
        ]


class Clashing(Refused):
    """Two sides contradict each other, and nothing says which is to stay; ``clashes`` lists them."""

    def __init__(self, clashes: Sequence[Clash]) -> None:
        self.clashes = list(clashes)
        pairs = [
            f"{c.kind}: {c.ours.prompt!r} -> {c.ours.target_new!r} (ours, {c.ours.id}) against "
            f"{c.theirs.prompt!r} -> {c.theirs.target_new!r} (theirs, {c.theirs.id})"
            for c in clashes[:LISTED]
        ]
        listing = "; ".join(pairs)
        super().__init__(
            f"{len(clashes)} pair{'s' * (len(clashes) != 1)} of edits clash, so nothing was merged: {listing}; "
            "decide by a rule (--ours, --theirs, --newest), or one by one: --conflicts FILE writes them, --resolutions "
            "FILE reads them"
        )


def conflicting(
    older: Sequence[Edit], newer: Sequence[Edit], lm: "HFLM | None" = None, patch: "Patch | None" = None
) -> list[tuple[Edit, Edit, str]]:
    """Pairs of edits that cannot both hold, and why; two that ask for the same are none.

    With a model also those that say so in other words; ``patch`` holds the older ones.
    """
    return [(c.older, c.newer, c.kind) for c in contradicting(conflicts(older, newer, lm, patch))]


def contradicting(found: Iterable[Conflict]) -> list[Conflict]:
    """Those of two edits that do not ask for the same."""
    return [c for c in found if c.kind != DUPLICATE and fact(c.older) != fact(c.newer)]


def clashes_of(
    base: Mapping[str, Edit],
    ours: Mapping[str, Edit],
    theirs: Mapping[str, Edit],
    lm: "HFLM | None" = None,
    patch: "Patch | None" = None,
    common: "Patch | None" = None,
) -> list[Clash]:
    """What clashes between two sides that have gone on from ``base``: edits by their facts.

    ``patch`` is ours, ``common`` that of the base.
    """
    new_ours = {key: edit for key, edit in ours.items() if key not in base}
    new_theirs = {key: edit for key, edit in theirs.items() if key not in base}
    only_ours = [edit for key, edit in new_ours.items() if key not in new_theirs]
    only_theirs = [edit for key, edit in new_theirs.items() if key not in new_ours]
    found = [Clash(older, newer, kind) for older, newer, kind in conflicting(only_ours, only_theirs, lm, patch)]
    found += _taken_out(base, ours, only_theirs, OUT_OURS, lm, common)
    found += [Clash(c.theirs, c.ours, c.kind) for c in _taken_out(base, theirs, only_ours, OUT_THEIRS, lm, common)]
    by_id = {edit.id: edit for edit in ours.values()}
    same = [edit for edit in only_theirs if edit.id in by_id and fact(by_id[edit.id]) != fact(edit)]
    found += [Clash(by_id[edit.id], edit, SAME_ID) for edit in same]
    pairs = dict[tuple[str, str], Clash]()
    for clash in found:
        pairs.setdefault((fact(clash.ours), fact(clash.theirs)), clash)
    return list(pairs.values())


def _taken_out(
    base: Mapping[str, Edit],
    side: Mapping[str, Edit],
    others: Sequence[Edit],
    kind: str,
    lm: "HFLM | None",
    patch: "Patch | None",
) -> list[Clash]:
    """Edits of the other side in the place of one that this side has taken out and not replaced.

    With a model also those in other words; ``patch`` holds what was taken out.
    """
    kept = {_asked(edit) for edit in side.values()}
    gone = {_asked(edit): edit for key, edit in base.items() if key not in side and _asked(edit) not in kept}
    found = [Clash(gone[_asked(edit)], edit, kind) for edit in others if _asked(edit) in gone]
    if gone and lm is not None:
        pairs = conflicting(list(gone.values()), others, lm, patch)
        found += [Clash(older, newer, kind) for older, newer, why in pairs if why == OTHER_WORDS]
    return found


def on_what_is_gone(clash: Clash, ours: Mapping[str, Edit], theirs: Mapping[str, Edit]) -> bool:
    """Whether the edit that stays was made with the one in force that the other side has taken out."""
    if clash.keep == "neither":
        return False
    if clash.kind == OUT_OURS:
        return clash.keep != "ours" and fact(clash.ours) in theirs
    return clash.kind == OUT_THEIRS and clash.keep != "theirs" and fact(clash.theirs) in ours


def _asked(edit: Edit) -> str:
    return normalise(edit.prompt)


def decided(
    clashes: Sequence[Clash], rule: Rule | None, resolutions: Sequence[Mapping[str, Any]], times: Mapping[str, str]
) -> list[Clash]:
    """The clashes, each with what stays: as a resolution says, otherwise by the rule.

    ``times`` say when an edit (by its fact) was made; of two at the same time, or of one that was taken out, ours stays
    under "newest". Raises :class:`Clashing` with those that are undecided, and :class:`BadInput`.
    """
    if rule is not None and rule not in get_args(Rule):
        raise unknown("rule", str(rule), list(get_args(Rule)))
    said = _said(resolutions)
    if strange := said.keys() - {(c.ours.id, c.theirs.id) for c in clashes}:
        raise BadInput(f"a resolution is about {' and '.join(min(strange))}, which do not clash; write them anew")
    done: list[Clash] = []
    for clash in clashes:
        newest: Keep = "theirs" if times.get(fact(clash.theirs), "") > times.get(fact(clash.ours), "") else "ours"
        keep = said.get((clash.ours.id, clash.theirs.id)) or (newest if rule == "newest" else rule)
        done.append(Clash(clash.ours, clash.theirs, clash.kind, keep))
    if undecided := [clash for clash in done if clash.keep is None]:
        raise Clashing(undecided)
    return done


def _said(resolutions: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Keep | None]:
    """Ids of ours and theirs -> what stays. Raises :class:`BadInput` for what is no resolution."""
    said: dict[tuple[str, str], Keep | None] = {}
    for record in resolutions:
        try:
            pair = (record["ours"]["id"], record["theirs"]["id"])
            keep = record["keep"]
        except (KeyError, TypeError, IndexError) as error:
            raise BadInput(
                f"a resolution has the keys keep, ours and theirs, found {shown(record)}; --conflicts FILE writes them"
            ) from error
        if keep is not None and keep not in get_args(Keep):
            raise BadInput(f"keep is one of {', '.join(get_args(Keep))}, found {shown(keep)}")
        said[pair] = keep
    return said
