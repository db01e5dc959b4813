# pyright: strict
"""Conflicts that are decided: by a stated rule, or by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from errata.conflicts.pairs import Conflict
from errata.errors import BadInput, unknown
from errata.printable import listed
from errata.types import Edit

Rule = Literal["newest", "ours"]


@dataclass(frozen=True)
class Resolution:
    """What was decided: for each conflict the edit that holds."""

    decided: tuple[tuple[Conflict, Edit], ...]

    @property
    def dropped(self) -> list[Edit]:
        """The edits that lost to another one, each once, in order."""
        lost = [c.older if held == c.newer else c.newer for c, held in self.decided]
        return list(dict.fromkeys(edit for edit, (_, held) in zip(lost, self.decided, strict=True) if edit != held))

    def left(self, edits: Sequence[Edit]) -> list[Edit]:
        """Of some edits those that lost none, each once: the last, where it stands twice."""
        last, lost = {edit: i for i, edit in enumerate(edits)}, set(self.dropped)
        return [edit for i, edit in enumerate(edits) if last[edit] == i and edit not in lost]


def resolve(conflicts: Sequence[Conflict], rule: Rule | Mapping[str, str] = "newest") -> Resolution:
    """Which edit of each conflict holds: under "newest" the newer, under "ours" the older, which was there before.

    By hand ``rule`` maps a conflict's ``key`` to the id of the edit that holds. Raises :class:`BadInput` for an unknown
    rule, and by hand for a conflict that is not decided, or by neither of its two.
    """
    if isinstance(rule, Mapping):
        return Resolution(tuple((conflict, _chosen(conflict, rule)) for conflict in _all_decided(conflicts, rule)))
    if rule not in get_args(Rule):
        raise unknown("rule", str(rule), list(get_args(Rule)))
    return Resolution(tuple((c, c.newer if rule == "newest" else c.older) for c in conflicts))


def _all_decided(conflicts: Sequence[Conflict], by_hand: Mapping[str, str]) -> Sequence[Conflict]:
    keys = [conflict.key for conflict in conflicts]
    if open_ := [key for key in keys if key not in by_hand]:
        raise BadInput(f"not decided: {listed(open_)}; map each of these to the id of the edit that holds")
    if strange := [key for key in by_hand if key not in keys]:
        raise BadInput(f"no conflict has the key {listed(strange)}; a key is the older edit's id, a space, the newer's")
    return conflicts


def _chosen(conflict: Conflict, by_hand: Mapping[str, str]) -> Edit:
    wanted = by_hand[conflict.key]
    for edit in (conflict.newer, conflict.older):
        if edit.id == wanted:
            return edit
    raise BadInput(f"of the conflict {conflict.key} one edit holds, found {wanted!r}; give the id of one of the two")
