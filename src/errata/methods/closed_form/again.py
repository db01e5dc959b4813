"""One edit taken out: the others are solved again, from the targets δ that a patch keeps.

Keys and values of deeper layers depend on what the other edits changed below, so they are read anew; a target does not
depend on the other edits of its search, so that none is searched for again:

    MEMIT of a, b, c in one call, without b   =   MEMIT of a, c           to rounding

A target that was found later, with the edit in force (of a later call, or by ROME, which makes one edit after another),
is kept as the δ that it is, or searched for anew (``search``), which makes the patch that would have been made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported, first_line
from errata.methods.closed_form.found import Found, Record, searched_at
from errata.methods.isolation import frozen_rng, undisturbed
from errata.methods.outcomes import Outcome, answered, searched
from errata.methods.registry import method
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.projection import Projection
from errata.patch.delta import Delta
from errata.patch.memory import GRAM, KEYS, TARGETS
from errata.patch.parts import Adapter, Part
from errata.patch.patch import Patch
from errata.types import Edit

SAME = 1e-2  # of its length is how far a change may be from what it was when it is solved again
EXACT, KEPT = "exact: solved again", "solved again; targets of later edits, found with it in force, were kept"
SEARCHED = "exact: solved again, later edits searched for anew"
INSTEAD = "make the other edits again, from the patch before it"


class Solver(Protocol):
    """What an edit is solved again by: a closed form, whose members these are."""

    seed: Any
    layers: Any

    @property
    def turns(self) -> list[tuple[int, ...]]:
        """The layers that are solved for together, in turn."""
        ...

    def prepare(self, lm: HFLM) -> State:
        """What it needs."""
        ...

    def check_state(self, lm: HFLM, state: State) -> None:
        """Raises :class:`BadInput` for the state of another."""
        ...

    def resolve(self, lm: HFLM, state: State) -> "Solver":
        """With the settings of this model."""
        ...

    def record(self, lm: HFLM) -> dict[str, Any]:
        """What a record says of where targets are."""
        ...

    def batches(self, edits: Sequence[Edit]) -> list[list[Edit]]:
        """The edits in parts, each made with those before it in force."""
        ...

    def solved(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch, found: Found) -> Patch:
        """``prior`` and these edits."""
        ...


def solved_again(
    lm: HFLM, patch: Patch, edit_id: str, state: State | None, *, search: bool = False
) -> tuple[Patch, str]:
    """The patch without an edit that a closed form made, and how: see the module.

    Raises :class:`Unsupported` where there is more in it than can be solved again, or the state gives another patch.
    """
    records = _closed(lm, patch, edit_id)
    with_states = [(record, *_resolved(lm, solver, state)) for record, solver in records]
    first = next(i for i, (record, _) in enumerate(records) if edit_id in _ids(record))
    with undisturbed(lm):
        found = _Replay(lm, patch, Patch(memory=_unsolved(patch)))
        for one in with_states[:first]:
            found = found.after(*one)
        whole, left = found, found
        for one in with_states[first:]:
            whole = whole.after(*one)
            left = left.after(*one, without=edit_id, search=search)
        _check_same(patch, whole.patch)
    kept_before = any(told.get("how") == KEPT for told in patch.meta.get("reverted", ()))
    how = KEPT if kept_before or (left.later and not search) else SEARCHED if left.later else EXACT
    return _put_back(patch, left, edit_id, how), how


@dataclass(frozen=True)
class _Replay:
    """A patch in the making, its records as they are then, and how many rows of each path have been taken."""

    lm: HFLM
    of: Patch
    patch: Patch
    taken: Mapping[str, int] = field(default_factory=dict[str, int])
    gone: bool = False  # whether the edit has been left out
    later: bool = False  # whether targets were searched for with it in force

    def after(
        self, record: Record, solver: Solver, state: State, *, without: str | None = None, search: bool = False
    ) -> "_Replay":
        """With the edits of a record, less one."""
        edits = [Edit.from_json(edit) for edit in record["edits"]]
        kept = [i for i, edit in enumerate(edits) if edit.id != without]
        out = next((i for i, edit in enumerate(edits) if edit.id == without), None)
        paths: list[str] = record["targets"]
        rows = {path: self._rows(path, len(edits))[kept] for path in paths}
        known = dict.fromkeys(paths, len(kept) * (not self.gone))  # that were searched for without it
        if out is not None and not self.gone:
            known |= _without_it(solver, edits, out, paths)
        later = any(n < len(kept) for n in known.values()) and without is not None
        if search:
            rows = {path: rows[path][: known[path]] for path in paths}
        base, made = self.patch, [*self.patch.meta.get("made", ())]
        if kept:
            with frozen_rng(solver.seed), searched() as anew:
                base = solver.solved(self.lm, [edits[i] for i in kept], state, base, Found(rows))
            outcomes = _outcomes(self.lm, base, record, [edits[i] for i in kept], anew) if without else {}
            made.append({**record, "edits": [edits[i].to_json() for i in kept], "outcomes": outcomes})
        taken = {**self.taken, **{path: self.taken.get(path, 0) + len(edits) for path in paths}}
        patch = replace(base, meta={**self.of.meta, "made": made})
        return _Replay(self.lm, self.of, patch, taken, self.gone or out is not None, self.later or later)

    def _rows(self, path: str, n: int) -> Tensor:
        start = self.taken.get(path, 0)
        return self.of.memory[TARGETS + path][start : start + n]


def _without_it(solver: Solver, edits: Sequence[Edit], out: int, paths: Sequence[str]) -> dict[str, int]:
    """How many of the targets were found without edit number ``out`` in force, by path: to the end of its part of the
    call at the first path, and to the part's beginning at the others, where the first one's change was in force."""
    start = end = 0
    for part in solver.batches(edits):
        start, end = end, end + len(part)
        if out < end:
            break
    return dict.fromkeys(paths, start) | {paths[0]: end - 1}


def _closed(lm: HFLM, patch: Patch, edit_id: str) -> list[tuple[Record, Solver]]:
    """The records of closed forms, with their methods; :class:`Unsupported` where they cannot be solved again."""
    refused = f"the edit {edit_id} cannot be taken out: "
    patch.check(lm)
    if patch.of_kind(Adapter):
        raise Unsupported(f"{refused}the patch holds a memory, too, which was in force meanwhile; {INSTEAD}")
    if patch.meta.get("transformed") or patch.meta.get("scaled", 1.0) != 1.0:
        raise Unsupported(f"{refused}the patch was transformed or scaled; take it out before that")
    records: list[tuple[Record, Any]] = []
    for record in patch.meta["made"]:
        if record.get("targets"):
            try:
                solver: Any = method(record["method"], **record["resolved"])
                solver.chosen_layers(lm)
                records.append((record, solver))
            except (BadInput, AttributeError) as error:  # AttributeError: a method that is no closed form
                raise Unsupported(f"{refused}{first_line(error)}; {INSTEAD}") from error
    made = [record for record, _ in records]
    if not any(edit_id in _ids(record) for record in made):
        raise Unsupported(f"{refused}no targets are kept of it; {INSTEAD}")
    for record, solver in records:
        if not getattr(solver, "layers", None) or solver.record(lm).get("targets") != record["targets"]:
            raise Unsupported(f"{refused}its record does not say where {record['method']} made it; {INSTEAD}")
        for path, layer in zip(record["targets"], solver.turns, strict=True):
            held, count = patch.memory.get(TARGETS + path), searched_at(made, path)
            if held is None or held.shape != (count, Projection.of(lm.sites, layer[-1]).shape(lm.model)[0]):
                raise Unsupported(
                    f"{refused}the patch keeps none, or not all, of {count} targets at layer {layer[-1]}: there are as "
                    f"many as a key is wide, or the file was saved without its memory; {INSTEAD}"
                )
    return records


def _resolved(lm: HFLM, solver: Solver, state: State | None) -> tuple[Solver, State]:
    """The method as its record says, and the state that it is solved with."""
    state = solver.prepare(lm) if state is None else state
    solver.check_state(lm, state)
    return solver.resolve(lm, state), state


def _check_same(patch: Patch, again: Patch) -> None:
    """Raises :class:`Unsupported` where what is solved again, of all edits, is not what the patch holds."""
    was, now = _changes(patch), _changes(again)
    for name in was.keys() | now.keys():
        nothing = torch.zeros(())
        apart = (was.get(name, nothing) - now.get(name, nothing)).norm()
        if apart > SAME * was.get(name, nothing).norm():
            raise Unsupported(
                f"solved again, the change of {name} is another one ({float(apart):.2g} apart): give the state that "
                "the patch was made with, and the model in the type that it had then; a patch that holds other changes "
                "of weights, or was joined of two, cannot give one edit up"
            )


def _changes(patch: Patch) -> dict[str, Tensor]:
    deltas = patch.of_kind(Delta)
    total = Delta({}) if not deltas else deltas[0]
    for delta in deltas[1:]:
        total = total + delta
    return {name: (w if isinstance(w, Tensor) else w.dense()).double() for name, w in total.weights.items()}


def _put_back(patch: Patch, left: _Replay, edit_id: str, how: str) -> Patch:
    """The patch with the changes of weights that are left in the place of its own."""
    parts: list[Part] = list(left.patch.parts)
    deltas = [part for part in patch.parts if isinstance(part, Delta)]
    whole: list[Part] = []
    for part in patch.parts:
        if isinstance(part, Delta):
            whole += parts if part is deltas[0] else []
        elif (other := part.without(edit_id)) is not None:
            whole.append(other)
    solved = iter(left.patch.meta["made"])
    made: list[Record] = []
    for record in patch.meta["made"]:
        kept = [edit for edit in record["edits"] if edit["id"] != edit_id]
        if kept:
            made.append(next(solved) if "targets" in record else _less(record, edit_id))
    reverted = [*patch.meta.get("reverted", ()), {"edit": edit_id, "how": how}]
    return replace(left.patch, parts=tuple(whole), meta={**patch.meta, "made": made, "reverted": reverted})


def _less(record: Record, edit_id: str) -> Record:
    outcomes = {id: outcome for id, outcome in record.get("outcomes", {}).items() if id != edit_id}
    return {**record, "edits": [e for e in record["edits"] if e["id"] != edit_id], "outcomes": outcomes}


def _outcomes(
    lm: HFLM, patch: Patch, record: Record, edits: Sequence[Edit], anew: Mapping[str, Outcome]
) -> dict[str, Outcome]:
    """How each edit ends now: its search as it was, or anew; its answer as it is."""
    told = answered(lm, edits, patch)
    then: Mapping[str, Outcome] = record.get("outcomes", {})
    searches = {id: {k: v for k, v in outcome.items() if k.startswith("search")} for id, outcome in then.items()}
    found = {e.id: {**told.get(e.id, {}), **searches.get(e.id, {}), **anew.get(e.id, {})} for e in edits}
    return {id: outcome for id, outcome in found.items() if outcome}


def _unsolved(patch: Patch) -> dict[str, Tensor]:
    """What is in the memory that is not made anew: lengths that were measured once."""
    return {name: t for name, t in patch.memory.items() if not name.startswith((KEYS, GRAM, TARGETS))}


def _ids(record: Record) -> list[str]:
    return [edit["id"] for edit in record["edits"]]
