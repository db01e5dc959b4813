"""What a plan comes to: units, each one fold of edits with its batches, checkpoints and costs."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from errata.bench.plan import DataSpec, MethodSpec, Plan, Setting
from errata.errors import BadInput
from errata.evaluation.metrics import mean_over_cases
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Edit, Mode, Probe, Row

COST, END = "cost", "peak_mib"  # the kind of rows that end a unit, and the metric of the very last


class Editor(Protocol):
    """What is measured: a method."""

    @property
    def name(self) -> Any: ...
    def prepare(self, lm: HFLM, data: Any = None) -> Any: ...
    def edit(self, lm: HFLM, edits: Sequence[Edit], state: Any = None, prior: Patch = EMPTY) -> Patch: ...


@dataclass(frozen=True, eq=False)
class Unit:
    """One fold: its batches, what its rows are labelled with, and how it is asked."""

    labels: Mapping[str, Any]
    name: str  # which of the cases, as the cost rows say in ``case``
    batches: Sequence[Sequence[Case]]
    untouched: Sequence[Case]
    setting: Setting
    spec: MethodSpec
    method: Editor
    modes: tuple[Mode, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.labels.values(), self.name)

    @cached_property
    def cases(self) -> list[Case]:
        """All that are edited, in order."""
        return [case for batch in self.batches for case in batch]

    @cached_property
    def checkpoints(self) -> set[int]:
        """Numbers of cases after which it is asked: the last at least."""
        return {*self.setting.checkpoints, len(self.cases)}

    def asked(self, n: int) -> list[Case]:
        """Those of the first ``n`` cases that are asked; a sample grows with ``n`` and keeps whom it had."""
        limit, first = self.setting.recheck, self.setting.first
        if limit is None or n <= limit:
            return self.cases[:n]
        rng = random.Random(f"recheck {self.labels['seed']}")
        rank = [rng.random() for _ in self.cases]
        sampled = sorted(sorted(range(first, n), key=rank.__getitem__)[: limit - first])
        return [self.cases[i] for i in (*range(first), *sampled)]

    def ever_asked(self) -> list[Case]:
        """Those that are asked at any checkpoint, in the order of the edits."""
        found = {id(case) for n in self.checkpoints for case in self.asked(n)}
        return [case for case in self.cases if id(case) in found]

    def holds(self, n: int, rows: Iterable[Row]) -> bool:
        """Whether the sequence goes on after a checkpoint's rows."""
        stop = self.setting.stop
        if stop is None:
            return True
        first = {case.id for case in self.cases[: min(stop.first, n)]}
        found = mean_over_cases(
            (row.case, row.after)
            for row in rows
            if row.case in first and (row.kind, row.metric, row.mode) == (stop.kind, "accuracy", self.modes[0])
            if row.after is not None
        )
        return found is None or found.mean >= stop.below

    def cost(self, n: int, figures: Mapping[str, float | None], error: str | None = None) -> list[Row]:
        """Rows of cost after ``n`` edits, in each mode, so that each mode's table has them."""
        its: Any = {**self.labels, "case": self.name, "kind": COST, "after_edits": n, "error": error}
        return [
            Row(**its, metric=name, mode=mode, after=value) for name, value in figures.items() for mode in self.modes
        ]


def units_of(plan: Plan, method: Callable[..., Any], cases: Callable[..., list[Case]]) -> list[Unit]:
    """Every fold of the plan. All methods are made and all cases read: what is wrong is found before the work."""
    drawn: dict[Any, list[Case]] = {}

    def draw(data: DataSpec, seed: int, untouched: int) -> list[Case]:
        chosen = seed if data.seed is None else data.seed
        limit = None if data.limit is None else data.limit + untouched
        key = (data, chosen, limit)
        if key not in drawn:
            drawn[key] = cases(data.name, limit=limit, seed=chosen, format=data.format, **dict(data.options))
        return drawn[key]

    units: list[Unit] = []
    for model, spec, seed in product(plan.models, plan.methods, plan.seeds):
        made = method(spec.name, **{"seed": seed, **spec.settings})
        spec.step()
        for data, setting in product(plan.data, plan.settings):
            if isinstance(setting.ability, str) and not Path(setting.ability).is_file():
                raise BadInput(f"there is no file {setting.ability}; ability names one with a text on each line")
            found = draw(data, seed, setting.untouched)
            count = len(found) - setting.untouched
            if count < 1:
                raise BadInput(f"{data.label!r} gives {len(found)} cases, and {setting.untouched} shall stay untouched")
            untouched = [_as_unrelated(case) for case in found[count:]] if setting.untouched else []
            if setting.cases is not None and setting.cases > count:
                raise BadInput(f"{setting.cases} cases were asked for; {data.label!r} gives {count}")
            labels = {
                "model": model, "method": spec.name, "settings": spec.label,
                "data": data.label, "seed": seed, "setting": setting.label,
            }  # fmt: skip
            for number, batches in enumerate(setting.batches(found[: setting.cases or count], data.label)):
                name = batches[0][0].id if setting.kind == "single" else f"{setting.kind} {number + 1}"
                units.append(Unit(labels, name, batches, untouched, setting, spec, made, plan.modes))
    keys = [unit.key for unit in units]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadInput(f"this would be measured twice: {', '.join(str(its) for its in twice if its != '')}")
    return units


def _as_unrelated(case: Case) -> Case:
    """The questions of edits that are never made, to be answered as ever."""
    known = [(edit.prompt, (edit.target_true,) if edit.target_true else ()) for edit in case.edits]
    return Case(f"untouched {case.id}", case.edits, tuple(Probe("unrelated", prompt, true) for prompt, true in known))
