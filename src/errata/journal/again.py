# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Edits that are made again, by the methods and settings on record, where one patch cannot be computed from others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from errata.answers import begins_with_answer
from errata.errors import BadInput, Unsupported
from errata.journal.commit import fact
from errata.model.hf import HFLM
from errata.patch.parts import METHODS
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

Records = Sequence[Mapping[str, Any]]  # of calls of ``edit``, as in ``Patch.meta``
AS_IT_WAS, NONE_LEFT = "as it was: an earlier patch of these edits and no others", "exact: there is no edit left"


def made_again(
    lm: HFLM, wanted: Iterable[str], records: Records, starts: Iterable[Callable[[], Patch]]
) -> tuple[Patch, str]:
    """A patch of the wanted edits (their facts), and how it was had, in words.

    It goes on from the first of ``starts`` that can be had and holds no other edits; those that it lacks are made in
    the order of the records, with what ``prepare`` gives for this model. Raises :class:`Unsupported` where a record is
    missing or was transformed since, and what a method raises.
    """
    facts = dict.fromkeys(wanted)
    start = _first(starts, set(facts))
    held = {fact(edit) for edit in start.edits}
    left = {key for key in facts if key not in held}
    patch, states, names = start, dict[str, Any](), dict[str, int]()
    for record in records:
        edits = [edit for edit in map(Edit.from_json, record["edits"]) if fact(edit) in left]
        if edits:
            left -= {fact(edit) for edit in edits}
            maker = import_module(METHODS).method(record["method"], **record["settings"])
            state = states[repr(maker)] if repr(maker) in states else states.setdefault(repr(maker), maker.prepare(lm))
            patch = maker.edit(lm, edits, state, patch)
            names[maker.name] = names.get(maker.name, 0) + len(edits)
    if left:
        raise Unsupported(f"no call is on record that made the edit {min(left)}")
    if not names:
        return patch, AS_IT_WAS if held else NONE_LEFT
    words = " and ".join(f"{count} by {name}" for name, count in names.items())
    return patch, f"made again: {words}, on a patch of {len(held)}"


def _first(starts: Iterable[Callable[[], Patch]], wanted: set[str]) -> Patch:
    for start in starts:
        try:
            patch = start()
        except (Unsupported, BadInput):
            continue
        if {fact(edit) for edit in patch.edits} <= wanted and (patch.edits or not patch):
            return patch
    return EMPTY


def check_records(patch: Patch) -> None:
    """Raises :class:`Unsupported` where more was done to a patch than its calls of ``edit`` say."""
    if patch.meta.get("transformed") or patch.meta.get("scaled", 1.0) != 1.0:
        raise Unsupported("the patch was transformed or scaled, which is not done again")


def without(patch: Patch, facts: Iterable[str]) -> Patch:
    """The patch without those edits. Raises :class:`Unsupported`, where one cannot be taken out exactly."""
    out = set(facts)
    for edit in patch.edits:
        if fact(edit) in out:
            patch = patch.without(edit.id)
    return patch


def named(patch: Patch, like: Patch) -> Patch:
    """The patch; where nothing is left of it, with the name of its model at least, as in another patch of it."""
    return replace(patch, meta={"model": like.meta["model"]}) if not patch.meta and like.meta.get("model") else patch


def answered(lm: HFLM, patch: Patch, edits: Sequence[Edit]) -> list[bool]:
    """For each edit, whether its prompt is answered with its target (generated) while the patch is in force."""
    if not edits:
        return []
    with patch.applied(lm) as edited:
        texts = edited.generate([edit.prompt for edit in edits], until_answer=True)
    return [begins_with_answer(text, [edit.target_new]) for edit, text in zip(edits, texts, strict=True)]
