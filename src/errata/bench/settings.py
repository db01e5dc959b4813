"""How the cases of a bench file are edited: each alone, in batches, or one batch upon the other."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import AfterValidator, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from errata.bench.validation import Count, List, Number, Table, Text, expected
from errata.errors import BadInput, unknown
from errata.evaluation import protocols
from errata.types import Case

FIRST = 100  # of a sequence's cases are asked at every checkpoint, where only some of them are


def _kind_of_probe(kind: str) -> str:
    if kind not in protocols.METRICS:
        raise unknown("kind of probe", kind, list(protocols.METRICS))
    return kind


ProbeKind = Annotated[Text, AfterValidator(_kind_of_probe)]
Ability = Annotated[
    StrictBool | Annotated[str, Field(strict=True, min_length=1)],
    expected("true, false, or a file with a text on each line"),
]
Gold = Annotated[
    StrictBool | Annotated[str, Field(strict=True, min_length=1)] | None,
    expected("true, false, or a file that `errata world gold` wrote"),
]


class Stop(Table):
    """Ends a sequence where the mean of a metric over a kind of probes of its first cases falls below a bound.

    Of a metric of which less is better ("old_first" of ``belief``), the mean rises above 1 - ``below``.
    """

    title: ClassVar[str] = "stop"

    kind: ProbeKind = "edit"
    metric: Text = "accuracy"
    first: Count = FIRST
    below: Number = 0.8

    @property
    def label(self) -> str:
        """The rule as text."""
        measure = self.kind if self.metric == "accuracy" else f"{self.kind} ({self.metric})"
        bound = f"above {1 - self.below:g}" if self.metric in protocols.LESS_IS_BETTER else f"below {self.below}"
        return f"until {measure} of the first {self.first} is {bound}"


class Setting(Table, ABC):
    """How the cases are edited: :class:`Single`, :class:`Batch` or :class:`Sequential`, which ``kind`` says.

    ``cases`` takes the first of the data's. ``untouched`` further cases of the data are never edited, and their own
    questions are asked with the true answer.
    """

    title: ClassVar[str] = "a setting"

    kind: Text
    cases: Count | None = None
    untouched: Count = 0

    @model_validator(mode="wrap")
    @classmethod
    def _choose_class(cls, value: Any, handler: Callable[[Any], Self]) -> Any:
        """The setting of the class that ``kind`` names; the kind alone may stand for a table."""
        if cls is not Setting:
            return handler(value)
        table: Any = {"kind": value} if isinstance(value, str) else value
        if not isinstance(table, dict):
            raise PydanticCustomError("expected", "a kind of setting or a table of TOML")
        kind = cast("dict[str, Any]", table).get("kind")
        if kind is None:
            raise BadInput(f"{cls.title} needs kind; found {', '.join(table) or 'nothing'}")
        if not isinstance(kind, str) or kind not in SETTINGS:
            raise unknown("kind of setting", str(kind), list(SETTINGS))
        return SETTINGS[kind].model_validate(table)

    @property
    @abstractmethod
    def label(self) -> str:
        """The setting as text."""

    @abstractmethod
    def batches(self, cases: Sequence[Case], data: str) -> list[list[list[Case]]]:
        """The folds, each a list of batches. Raises :class:`BadInput` where there are too few cases in ``data``."""

    def _label(self, *words: str) -> str:
        return ", ".join(filter(None, words))

    @property
    def _untouched(self) -> str:
        return f"{self.untouched} untouched" if self.untouched else ""

    def _check_count(self, cases: Sequence[Case], needed: int, data: str) -> None:
        if len(cases) < needed:
            raise BadInput(f"the setting {self.label!r} needs {needed} cases, and {data!r} gives {len(cases)}")


class Single(Setting):
    """Each case alone, from the unedited model."""

    title: ClassVar[str] = "a single setting"

    @property
    @override
    def label(self) -> str:
        return self._label(self.kind, self._untouched)

    @override
    def batches(self, cases: Sequence[Case], data: str) -> list[list[list[Case]]]:
        return [[[case]] for case in cases]


class Batch(Setting):
    """Batches of ``size`` cases, each from the unedited model; cases that fill no batch are left out.

    ``ability`` asks besides what the model can do (``errata.evaluation.ability``) and how far its weights have moved,
    on texts of its own, or on those of a file that it names. ``gold`` asks how far the edited model is from one that
    was trained on the edits (``errata.evaluation.gold``), by the gold that came with Errata or that of a file; without
    a word it is asked where the one that came is of these edits of this model, and the protocol is ours.
    """

    title: ClassVar[str] = "a batch setting"

    size: Count
    ability: Ability = False
    gold: Gold = None

    @property
    @override
    def label(self) -> str:
        return self._label(f"batch of {self.size}", self._untouched, _asks(self.ability, self.gold))

    @override
    def batches(self, cases: Sequence[Case], data: str) -> list[list[list[Case]]]:
        self._check_count(cases, self.size, data)
        starts = range(0, len(cases) - self.size + 1, self.size)
        return [[list(cases[start : start + self.size])] for start in starts]


class Sequential(Setting):
    """Batches of ``batch`` cases, one upon the other, asked at ``checkpoints`` (in cases; the last at least).

    All earlier cases are asked, or ``recheck`` of them: the first, and a sample of the others drawn once.
    ``ability`` as in :class:`Batch`, at each checkpoint; ``gold`` at those where its edits are in force.
    """

    title: ClassVar[str] = "a sequential setting"

    batch: Count
    checkpoints: List[Count] = ()
    stop: Stop | None = None
    recheck: Count | None = None
    ability: Ability = False
    gold: Gold = None

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        for point, after in pairwise((0, *self.checkpoints)):
            if after <= point:
                raise BadInput(f"checkpoints rise; found {after} behind {point}")
        if self.recheck is not None and self.stop is not None and self.recheck < self.stop.first:
            raise BadInput(
                f"recheck ({self.recheck}) covers the first {self.stop.first} cases that stop looks at; raise it"
            )
        return self

    @property
    @override
    def label(self) -> str:
        return self._label(
            f"sequential by {self.batch}",
            f"asked at {_span(self.checkpoints)}" if self.checkpoints else "",
            f"{self.recheck} rechecked" if self.recheck else "",
            self._untouched,
            _asks(self.ability, self.gold),
            self.stop.label if self.stop else "",
        )

    @property
    def always_asked(self) -> int:
        """How many of the first cases are asked at every checkpoint."""
        if self.stop:
            return self.stop.first
        return FIRST if self.recheck is None else min(FIRST, max(1, self.recheck // 2))

    @override
    def batches(self, cases: Sequence[Case], data: str) -> list[list[list[Case]]]:
        last = max(self.checkpoints, default=self.batch)
        self._check_count(cases, last, data)
        cases = cases[:last] if self.checkpoints else cases
        if odd := [n for n in self.checkpoints if n % self.batch and n != len(cases)]:
            raise BadInput(f"checkpoints are multiples of the batch of {self.batch}; found {odd[0]}")
        return [[list(cases[start : start + self.batch]) for start in range(0, len(cases), self.batch)]]


SETTINGS: Mapping[str, type[Setting]] = {"single": Single, "batch": Batch, "sequential": Sequential}


def _asks(ability: bool | str, gold: bool | str | None) -> str:
    """What else is asked, where the file says so."""
    words = ["ability" if ability is True else f"ability on {ability}"] if ability else []
    words += [] if gold is None else ["no gold" if gold is False else "gold" if gold is True else f"gold {gold}"]
    return ", ".join(words)


def _span(numbers: Sequence[int]) -> str:
    """The numbers, shortened where they are evenly spaced."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1:
        return f"{numbers[0]} {numbers[1]} … {numbers[-1]}"
    return " ".join(map(str, numbers))
