"""Which edits of a log newer ones contradict in other words, by their ids: one that is taken out gives them back.

reworded = joined(reworded_by(lm, log, 1), part.reworded, gone=())
live(log, latest, reworded)
"""

from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from torch import Tensor
from typing_extensions import override

from errata.answers import normalise
from errata.conflicts.rewording import same_fact
from errata.methods.memory.log import EditLog, EditRecord, newest
from errata.model.hf import HFLM
from errata.patch.parts import Adapter
from errata.patch.patch import Patch
from errata.types import Edit

Reworded = Mapping[str, Sequence[str]]  # id of an edit -> those of the edits that contradict it in other words


def reworded_by(
    lm: HFLM, log: Sequence[EditRecord | Edit], new: int, patch: Patch | None = None
) -> dict[str, list[str]]:
    """By an edit's id those of the last ``new`` that contradict it in other words; ``patch`` holds the older ones."""
    about: dict[str, list[int]] = {}
    for i, record in enumerate(log):
        about.setdefault(record.subject.casefold(), []).append(i)
    pairs = [
        (i, j)
        for j in range(len(log) - new, len(log))
        for i in about[log[j].subject.casefold()]
        if i < j and log[i].prompt != log[j].prompt and normalise(log[i].target_new) != normalise(log[j].target_new)
    ]
    found: dict[str, list[str]] = {}
    same = same_fact(lm, [(log[i], log[j]) for i, j in pairs], patch) if pairs else []
    for (i, j), told in zip(pairs, same, strict=True):
        if told:
            found.setdefault(log[i].id, []).append(log[j].id)
    return found


def joined(known: Reworded, more: Reworded, gone: Container[str] = ()) -> dict[str, list[str]]:
    """Both, without what is about edits that are ``gone``."""
    kept: dict[str, list[str]] = {}
    for id, others in (*known.items(), *more.items()):
        left = [other for other in others if id not in gone and other not in gone]
        if left:
            kept[id] = [*dict.fromkeys([*kept.get(id, ()), *left])]
    return kept


def live(log: Sequence[EditRecord], latest: Sequence[int], reworded: Reworded) -> list[int]:
    """Of the indices those whose edits no later one contradicts in other words."""
    last = {record.id: i for i, record in enumerate(log)}
    return [i for i in latest if all(last.get(id, -1) <= i for id in reworded.get(log[i].id, ()))]


class RewordedAdapter(Adapter):
    """An adapter with an entry for each edit, of which one does not count where a later one has the same prompt or
    contradicts it in other words. Patch files hold ``reworded`` where there is any."""

    log: EditLog
    reworded: Mapping[str, list[str]]

    @override
    def config(self) -> dict[str, Any]:
        said = super().config()
        return said if self.reworded else {name: value for name, value in said.items() if name != "reworded"}

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return super().build({"reworded": {}, **config}, tensors)

    @cached_property
    def in_use(self) -> list[int]:
        """Indices of the edits that count."""
        return live(self.log, newest(record.prompt for record in self.log), self.reworded)
