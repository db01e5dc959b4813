"""The units of a plan: each one fold of edits with its batches, checkpoints and labels."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Protocol

from errata.bench.drawn import Drawn
from errata.bench.plan import Plan
from errata.bench.settings import Batch, Sequential, Setting, Single, Stop
from errata.bench.specs import MethodSpec
from errata.bench.trained_on import reads_cases
from errata.errors import BadInput
from errata.evaluation import protocols
from errata.evaluation.ability import texts_of
from errata.evaluation.baseline import check_asks, groups_of, modes_of
from errata.evaluation.gold import Gold, path_of
from errata.evaluation.gold_header import About
from errata.evaluation.golds import Golds, Named
from errata.evaluation.metrics import mean_over_cases
from errata.evaluation.nearness import match_of
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Edit, Mode, Row
from errata.world.named import known_to

log = logging.getLogger(__name__)

COST = "cost"  # the kind of rows that end a unit
SPEED = "seconds_per_edit"  # the metric of one of them, which each checkpoint has
LAST_METRIC = "peak_mib"  # the metric of the very last of them


LABELS = ("model", "method", "settings", "data", "seed", "setting")  # of a row, by which units are told apart


def key_of(labels: Mapping[str, Any], protocol: str, name: str) -> tuple[Any, ...]:
    """The key of a unit with these labels. Without ``chat`` it is what it was before rows had that."""
    chat = filter(None, [labels.get("chat")])
    return (*(labels[label] for label in LABELS), protocol, name, *chat)


class Editor(Protocol):
    """What is measured: a method."""

    @property
    def name(self) -> Any:
        """The method's registered name."""
        ...

    def prepare(self, lm: HFLM, data: Any = None) -> Any:
        """As :meth:`errata.methods.base.Method.prepare`."""
        ...

    def edit(self, lm: HFLM, edits: Sequence[Edit], state: Any = None, prior: Patch = EMPTY) -> Patch:
        """As :meth:`errata.methods.base.Method.edit`."""
        ...


@dataclass(frozen=True, eq=False)
class Unit:
    """One fold of edits: the smallest part of a plan that is measured, written and resumed as a whole.

    ``labels`` go into its rows, ``name`` says which of the cases it edits (``case`` of its cost rows). ``untouched``
    are cases that are asked and never edited, ``train`` those that the method is prepared with; None where that is left
    to it.
    """

    labels: Mapping[str, Any]
    name: str
    batches: Sequence[Sequence[Case]]
    untouched: Sequence[Case]
    setting: Setting
    spec: MethodSpec
    method: Editor
    protocol: protocols.Protocol
    modes: tuple[Mode, ...]
    train: Sequence[Case] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What no other unit of a plan has."""
        return key_of(self.labels, self.protocol.name, self.name)

    def asked(self, chat: str) -> "Unit":
        """The same of a model that is asked so: ``Row.chat``."""
        return replace(self, labels={**self.labels, "chat": chat})

    @property
    def questions_key(self) -> tuple[Any, ...]:
        """Units of one model that have this in common share the unedited model's replies."""
        return (self.labels["data"], self.labels["seed"], self.protocol.name)

    @cached_property
    def cases(self) -> list[Case]:
        """All that are edited, in order."""
        return [case for batch in self.batches for case in batch]

    @property
    def ability(self) -> bool | str:
        """Whether the model's ability is asked for at the checkpoints; a text names a file to read."""
        return self.setting.ability if isinstance(self.setting, Batch | Sequential) else False

    @property
    def gold(self) -> Named:
        """Whose gold is asked for at the checkpoints: see :class:`errata.bench.settings.Batch`."""
        named = self.setting.gold if isinstance(self.setting, Batch | Sequential) else False
        return False if named is None and self.protocol.name != "errata" else named

    def lacks(self, gold: Gold, rows: Sequence[Row]) -> bool:
        """Whether these rows of it were measured where the edits of a gold are in force, and none is against that."""
        asked = {row.after_edits for row in rows if (row.kind, row.metric) == (COST, SPEED)}
        return len(gold.edits) in asked and all(row.match != match_of(gold) for row in rows)

    def reaches(self, gold: About) -> bool:
        """Whether the edits of a gold, and no others, are in force at a checkpoint."""
        return any(gold.is_of(edit for case in self.cases[:n] for edit in case.edits) for n in self.checkpoints)

    @property
    def _sequence(self) -> Sequential | None:
        return self.setting if isinstance(self.setting, Sequential) else None

    @property
    def stops(self) -> bool:
        """Whether the fold may end before its last batch."""
        return self._sequence is not None and self._sequence.stop is not None

    @cached_property
    def checkpoints(self) -> set[int]:
        """Numbers of cases after which it is asked: the last at least."""
        return {*(self._sequence.checkpoints if self._sequence else ()), len(self.cases)}

    def asked_after(self, n: int) -> list[Case]:
        """Those of the first ``n`` cases that are asked then. A sample grows with ``n`` and keeps its earlier cases."""
        sequence = self._sequence
        if sequence is None or sequence.recheck is None or n <= sequence.recheck:
            return self.cases[:n]
        first = sequence.always_asked
        rng = random.Random(f"recheck {self.labels['seed']}")
        rank = [rng.random() for _ in self.cases]
        sampled = sorted(sorted(range(first, n), key=rank.__getitem__)[: sequence.recheck - first])
        return [self.cases[i] for i in (*range(first), *sampled)]

    def ever_asked(self) -> list[Case]:
        """Those that are asked at any checkpoint, in the order of the edits."""
        asked = {id(case) for n in self.checkpoints for case in self.asked_after(n)}
        return [case for case in self.cases if id(case) in asked]

    def goes_on(self, n: int, rows: Iterable[Row]) -> bool:
        """Whether the sequence continues after the rows of the checkpoint at ``n`` cases."""
        stop = self._sequence.stop if self._sequence else None
        if stop is None:
            return True
        first = {case.id for case in self.cases[: min(stop.first, n)]}
        measure = (stop.kind, stop.metric, _stop_mode(stop, self.protocol, self.modes))
        mean = mean_over_cases(
            (row.case, protocols.goodness(stop.metric, row.after))
            for row in rows
            if row.case in first and (row.kind, row.metric, row.mode) == measure and row.after is not None
        )
        return mean is None or mean.mean >= stop.below

    def rows(self, **fields: Any) -> list[Row]:
        """A row with the unit's labels and these fields for each mode, so that the rows of each mode are whole."""
        shared: Any = {**self.labels, "case": self.name, "protocol": self.protocol.name, **fields}
        return [Row(**shared, mode=mode) for mode in self.modes]

    def cost_rows(self, n: int, figures: Mapping[str, float | None], error: str | None = None) -> list[Row]:
        """Rows of kind ``cost`` after ``n`` edits: metric -> value."""
        costs = [self.rows(kind=COST, metric=k, after=v, after_edits=n, error=error) for k, v in figures.items()]
        return [row for rows in costs for row in rows]


def units_of(
    plan: Plan, method: Callable[..., Any], cases: Callable[..., list[Case]], golds: Golds | None = None
) -> list[Unit]:
    """Every fold of the plan; ``golds`` keeps those that are read.

    All methods are made and all cases read, so that :class:`BadInput` is raised before the work begins.
    """
    drawn, golds = Drawn(cases), golds or Golds()
    units: list[Unit] = []
    asked: set[tuple[str, str, int]] = set()
    for k, setting in enumerate(plan.settings):
        if isinstance(setting, Batch | Sequential) and isinstance(setting.ability, str):
            with _at(f"settings[{k}]"):
                texts_of(setting.ability)
    for model, (i, spec), seed in product(plan.models, enumerate(plan.methods), plan.seeds):
        with _at(f"methods[{i}]"):
            made = method(spec.name, **{"seed": seed, **spec.settings})
            if spec.transform:
                spec.transform.make()
        trained = reads_cases(made)
        for (j, data), (k, setting) in product(enumerate(plan.data), enumerate(plan.settings)):
            protocol = protocols.protocol(data.protocol or plan.protocol)
            modes = modes_of(protocol, plan.modes)
            with _at(f"settings[{k}]"):
                _check(setting, protocol, modes)
            with _at(f"data[{j}], settings[{k}]"):
                edited, untouched = drawn.split(known_to(model, data.name), data, setting, seed)
                folds = setting.batches(edited, data.label)
            if (questions := (data.label, protocol.name, seed)) not in asked:
                with _at(f"data[{j}]"):
                    check_asks(groups_of(edited, protocol), protocol, modes)
                asked.add(questions)
            train = data.train or plan.train if trained else None
            with _at(f"data[{j}].train" if data.train else "train"):
                trained_on = None if train is None else drawn.apart(model, data, train, plan.settings, seed)
            labels = {
                "model": model, "method": spec.name,
                "settings": spec.label if train is None else f"{spec.label} trained on {train.label}".strip(),
                "data": data.label, "seed": seed, "setting": setting.label,
            }  # fmt: skip
            of_setting: list[Unit] = []
            for number, batches in enumerate(folds, start=1):
                name = batches[0][0].id if isinstance(setting, Single) else f"{setting.kind} {number}"
                of_setting.append(
                    Unit(labels, name, batches, untouched, setting, spec, made, protocol, modes, trained_on)
                )
            with _at(f"data[{j}], settings[{k}]"):
                _check_gold(of_setting, data.label, golds)
            units += of_setting
    if (plan.train or any(data.train for data in plan.data)) and all(unit.train is None for unit in units):
        log.warning("train goes unread: no method of the plan is prepared with cases")
    keys = [unit.key for unit in units]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadInput(f"this would be measured twice: {', '.join(str(part) for part in twice if part != '')}")
    return units


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Context manager: what is wrong is told with its place in the file."""
    try:
        yield
    except BadInput as error:
        raise type(error)(f"{place}: {error}") from error


def _check(setting: Setting, protocol: protocols.Protocol, modes: Sequence[Mode]) -> None:
    """Raises :class:`BadInput` where a setting cannot be asked by the protocol."""
    if setting.untouched and not any(protocol.scorers_of("unrelated", mode) for mode in modes):
        raise BadInput(
            f"untouched facts are asked as unrelated ones, which the protocol {protocol.name} does not ask; "
            "leave untouched out"
        )
    stop = setting.stop if isinstance(setting, Sequential) else None
    if stop and _stop_mode(stop, protocol, modes) is None:
        metrics = dict.fromkeys(metric for mode in modes for metric in protocol.scorers_of(stop.kind, mode))
        way_out = f"give it metric as {' or '.join(metrics)}" if metrics else "choose another kind of probe"
        raise BadInput(
            f"stop looks at {stop.metric} of {stop.kind}, which the protocol {protocol.name} does not ask; {way_out}"
        )


def _check_gold(units: Sequence[Unit], data: str, golds: Golds) -> None:
    """Raises :class:`BadInput` where the gold that a setting names is of edits that none of its folds makes."""
    if units and (named := units[0].gold):
        gold = golds.load(path_of(named))
        if not any(unit.reaches(gold.about) for unit in units):
            raise BadInput(
                f"the gold is of {len(gold.edits)} edits ({gold.data}), and {data!r} in the setting "
                f"{units[0].setting.label!r} never has just those in force where it is asked; leave gold out, or edit "
                "those"
            )


def _stop_mode(stop: Stop, protocol: protocols.Protocol, modes: Sequence[Mode]) -> Mode | None:
    """The first mode in which the protocol asks what the stop rule looks at."""
    return next((mode for mode in modes if stop.metric in protocol.scorers_of(stop.kind, mode)), None)
