# pyright: strict
"""Pairs of an older and a newer edit that cannot both hold, or that ask for the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from errata.answers import normalise
from errata.types import Edit

if TYPE_CHECKING:
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch


@dataclass(frozen=True)
class Conflict:
    """Two edits of one question; ``kind`` is "duplicate" or "other target"."""

    older: Edit
    newer: Edit
    kind: str


def conflicts(
    older: Sequence[Edit], newer: Sequence[Edit], lm: "HFLM | None" = None, patch: "Patch | None" = None
) -> list[Conflict]:
    """Every pair of edits that ask the same question."""
    by_question: dict[str, list[Edit]] = {}
    for edit in older:
        by_question.setdefault(normalise(edit.prompt), []).append(edit)
    pairs = [(one, edit) for edit in newer for one in by_question.get(normalise(edit.prompt), ())]
    return [Conflict(one, edit, _kind(one, edit)) for one, edit in pairs]


def _kind(older: Edit, newer: Edit) -> str:
    return "duplicate" if normalise(older.target_new) == normalise(newer.target_new) else "other target"
