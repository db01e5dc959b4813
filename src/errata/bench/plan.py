"""A bench file: models, methods, data and settings that are crossed. Read from TOML and checked.

Plan.read("run.toml", every=list(errata.methods()))
"""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from errata.bench.recipes import filled, recipes
from errata.bench.validation import Count, NamedTable, Number, Seed, Table, Text, expected
from errata.errors import BadInput, unknown
from errata.evaluation import protocols
from errata.inputs import read_settings, read_text
from errata.patch.transforms import Step, transform
from errata.types import MODES, Case, Mode

FIRST = 100  # of a sequence's cases are asked at every checkpoint, where only some of them are
T = TypeVar("T")


def _mode(value: Any) -> Any:
    if value not in MODES:
        raise unknown("mode", str(value), list(MODES))
    return value


def _protocol(name: str) -> str:
    if name not in protocols.PROTOCOLS:
        raise unknown("protocol", name, [*protocols.PROTOCOLS, *recipes()])
    return name


def _kind_of_probe(kind: str) -> str:
    if kind not in protocols.METRICS:
        raise unknown("kind of probe", kind, list(protocols.METRICS))
    return kind


def _pairs(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, dict):
        raise ValueError("no table")
    return tuple(cast("dict[str, Any]", value).items())


List = Annotated[tuple[T, ...], Field(min_length=1)]
ModeName = Annotated[Mode, BeforeValidator(_mode)]
ProtocolName = Annotated[Text, AfterValidator(_protocol)]
ProbeKind = Annotated[Text, AfterValidator(_kind_of_probe)]
Options = Annotated[
    tuple[tuple[str, StrictStr | StrictBool], ...],
    BeforeValidator(_pairs),
    expected("a table of texts, true and false"),
]
Ability = Annotated[
    StrictBool | Annotated[str, Field(strict=True, min_length=1)],
    expected("true, false, or a file with a text on each line"),
]
Gold = Annotated[
    StrictBool | Annotated[str, Field(strict=True, min_length=1)] | None,
    expected("true, false, or a file that `errata world gold` wrote"),
]


class TransformSpec(NamedTable):
    """What is done to a method's patches (``errata.patch.transforms``): at each ``step``, or at the ``end``."""

    model_config = ConfigDict(extra="allow")
    title: ClassVar[str] = "a transform"

    at: Annotated[Literal["step", "end"], expected("'step' or 'end'")] = "step"

    @property
    def label(self) -> str:
        """Name, settings and place as text."""
        return " ".join(filter(None, (f"+ {self.name}", _words(self.settings), "at the end" * (self.at == "end"))))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The transform's own arguments."""
        return self.model_extra or {}

    def make(self) -> Step:
        """The transform itself. Raises :class:`BadInput` for an unknown name or argument."""
        return transform(self.name, **self.settings)


class MethodSpec(NamedTable):
    """A method with settings, which the method itself checks, and what is done to its patches.

    ``settings_file`` names a file of settings, as ``errata locate`` writes one; those that stand here go before it.
    """

    model_config = ConfigDict(extra="allow")
    title: ClassVar[str] = "a method"

    transform: TransformSpec | None = None
    settings_file: Text | None = None

    @property
    def label(self) -> str:
        """The settings as text."""
        return " ".join(filter(None, (_words(self.settings), self.transform.label if self.transform else "")))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's hyper-parameters as the files give them."""
        named = self.settings_file
        read = {} if named is None else read_settings(Path(named), "settings_file")
        return read | (self.model_extra or {})


class CasesSpec(NamedTable):
    """Cases: the first ``limit`` that ``seed`` draws; the run's seed where none is given.

    ``options`` (``read`` in TOML) are those of ``errata.data.reader.read``: a format's own, ``strict``, ``conflicts``.
    """

    title: ClassVar[str] = "cases"

    limit: Count | None = None
    seed: Seed | None = None
    format: Text | None = None
    options: Options = Field(default=(), alias="read")

    @property
    def label(self) -> str:
        """Which cases, as text. Without the protocol, which rows have a field for."""
        given = {"limit": self.limit, "seed": self.seed, "format": self.format}
        words = {key: value for key, value in given.items() if value is not None} | dict(self.options)
        return f"{self.name} {_words(words)}".strip()


class TrainSpec(CasesSpec):
    """What methods are trained on that read cases: others than are edited, of another split.

    Cases that are edited, too, are refused (``overlap``), or left out.
    """

    title: ClassVar[str] = "train"

    overlap: Annotated[Literal["refuse", "leave-out"], expected("'refuse' or 'leave-out'")] = "refuse"

    @property
    @override
    def label(self) -> str:
        """Which cases, as text."""
        return super().label + " but those edited" * (self.overlap == "leave-out")


class DataSpec(CasesSpec):
    """Cases to edit. ``protocol`` is by whose rules they are asked, ``train`` what methods are trained on for them;
    the plan's where none is given."""

    title: ClassVar[str] = "data"

    protocol: ProtocolName | None = None
    train: TrainSpec | None = None


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


class Plan(Table):
    """What is crossed with what, and by whose rules it is asked.

    ``train`` is what methods are trained on that read cases; where nothing is named, what goes with the model.

    ``modes`` are each protocol's own where they are not given (of ``errata``: generated alone). ``protocol`` may
    also be a paper's settings (:mod:`errata.bench.recipes`), which keys of the file's own replace.
    """

    title: ClassVar[str] = "a bench file"

    models: List[Text]
    methods: List[MethodSpec]
    data: List[DataSpec]
    settings: List[Setting]
    modes: List[ModeName] | None = None
    seeds: List[Seed] = (0,)
    protocol: ProtocolName = "errata"
    train: TrainSpec | None = None

    @classmethod
    def read(cls, path: str | Path, every: Sequence[str] = ()) -> Self:
        """The plan in a TOML file; ``"all"`` among its methods stands for ``every`` name."""
        path = Path(path)
        text = read_text(path, "errata bench")
        try:
            record = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise BadInput(f"{path} is not TOML: {error}") from error
        try:
            return cls.of(record, every)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    @classmethod
    @override
    def of(cls, value: Any, every: Sequence[str] = ()) -> Self:
        """The plan of what a TOML file holds; one whose ``protocol`` is a paper's is filled with what it leaves out."""
        if isinstance(value, dict) and value.get("protocol") in recipes():
            value = filled(value["protocol"], cast("dict[str, Any]", value))
        methods = value.get("methods") if isinstance(value, dict) else None
        if every and (methods == "all" or (isinstance(methods, list) and "all" in methods)):
            more = [spec for spec in methods if spec != "all"] if isinstance(methods, list) else []
            value = {**value, "methods": [*every, *more]}
        return super().of(value)


# Labels ------------------------------------------------------------------------------------------


def _words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


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
