"""The cases that a plan's data give: edited, left untouched, and those that methods are trained on."""

from collections.abc import Callable, Sequence
from typing import Any

from errata.bench.settings import Setting
from errata.bench.specs import CasesSpec, DataSpec, TrainSpec
from errata.bench.trained_on import apart
from errata.errors import BadInput
from errata.types import Case, Probe
from errata.world.named import known_to


class Drawn:
    """The cases of a plan's data, each read once."""

    def __init__(self, read: Callable[..., list[Case]]) -> None:
        self.read, self.drawn, self.trained = read, dict[Any, list[Case]](), dict[Any, list[Case]]()

    def split(self, name: str, data: DataSpec, setting: Setting, seed: int) -> tuple[list[Case], list[Case]]:
        """(cases to edit, cases that stay untouched) of a setting; ``name`` is what the data's means for the model.

        Raises :class:`BadInput` where there are too few.
        """
        drawn = self._draw(name, data, seed if data.seed is None else data.seed, setting.untouched)
        count = len(drawn) - setting.untouched
        if count < 1:
            raise BadInput(f"{data.label!r} gives {len(drawn)} cases, and {setting.untouched} shall stay untouched")
        if setting.cases is not None and setting.cases > count:
            raise BadInput(f"{setting.cases} cases were asked for; {data.label!r} gives {count}")
        return drawn[: setting.cases or count], [_as_unrelated(case) for case in drawn[count:]]

    def apart(self, model: str, data: DataSpec, train: TrainSpec, settings: Sequence[Setting], seed: int) -> list[Case]:
        """The cases that methods are trained on, held against what is edited in any of the settings."""
        key = (model, data, train, seed)
        if key not in self.trained:
            splits = [self.split(known_to(model, data.name), data, setting, seed) for setting in settings]
            edited = [case for split in splits for part in split for case in part]
            cases = self._draw(known_to(model, train.name), train, seed if train.seed is None else train.seed, 0)
            self.trained[key] = apart(cases, edited, train)
        return self.trained[key]

    def _draw(self, name: str, data: CasesSpec, seed: int, more: int) -> list[Case]:
        limit = None if data.limit is None else data.limit + more
        key = (name, data.format, data.options, seed, limit)
        if key not in self.drawn:
            self.drawn[key] = self.read(name, limit=limit, seed=seed, format=data.format, **dict(data.options))
        return self.drawn[key]


def _as_unrelated(case: Case) -> Case:
    """The questions of edits that are never made, with the true answers."""
    known = [(edit.prompt, (edit.target_true,) if edit.target_true else ()) for edit in case.edits]
    return Case(f"untouched {case.id}", case.edits, tuple(Probe("unrelated", prompt, true) for prompt, true in known))
