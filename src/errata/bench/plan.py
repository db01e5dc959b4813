"""What a bench file says: models, methods, data and settings that are crossed. Read from TOML and checked.

Plan.read("run.toml", every=list(errata.methods()))
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, cast

from errata.errors import BadInput, unknown
from errata.evaluation.protocols import METRICS
from errata.patch.transforms import Step, transform
from errata.types import MODES, Case, Mode

FIRST = 100  # of a sequence's cases are asked at every checkpoint, where only some of them are


@dataclass(frozen=True)
class MethodSpec:
    """A method with settings, and what is done to its patches: at each ``step``, or at the ``end`` of what is asked."""

    name: str
    settings: Mapping[str, Any]
    transform: Mapping[str, Any] | None = None
    at: str = "step"

    @property
    def label(self) -> str:
        """The settings as text."""
        words = [_words(self.settings)]
        if self.transform:
            rest = {name: value for name, value in self.transform.items() if name != "name"}
            words += [f"+ {self.transform['name']}", _words(rest), "" if self.at == "step" else f"at the {self.at}"]
        return " ".join(filter(None, words))

    @classmethod
    def read(cls, value: Any) -> Self:
        table = _table("a method", _named(value), {"name": _text}, loose=True)
        name, then = table.pop("name"), table.pop("transform", None)
        if then is None:
            return cls(name, table)
        then = _table("a transform", _named(then), {"name": _text}, loose=True)
        at = then.get("at", "step")
        if at not in ("step", "end"):
            raise BadInput(f"a transform's at is 'step' or 'end', found {at!r}")
        return cls(name, table, {key: its for key, its in then.items() if key != "at"}, at)

    def step(self) -> Step | None:
        return transform(**self.transform) if self.transform else None


@dataclass(frozen=True)
class DataSpec:
    """Cases: the first ``limit`` that ``seed`` draws; the run's seed where none is given.

    ``options`` (``read`` in TOML) are those of ``errata.data.reader.read``: a format's own, ``strict``, ``conflicts``.
    """

    name: str
    limit: int | None = None
    seed: int | None = None
    format: str | None = None
    options: tuple[tuple[str, str | bool], ...] = ()

    @property
    def label(self) -> str:
        own = {"limit": self.limit, "seed": self.seed, "format": self.format}
        rest = {key: value for key, value in own.items() if value is not None} | dict(self.options)
        return f"{self.name} {_words(rest)}".strip()

    @classmethod
    def read(cls, value: Any) -> Self:
        may = {"limit": _count, "seed": _seed, "format": _text, "read": _options}
        found = _table("data", _named(value), {"name": _text}, may)
        options = found.pop("read", ())
        return cls(**found, options=options)


@dataclass(frozen=True)
class Stop:
    """Ends a sequence where a kind's mean accuracy over its first cases falls below a bound."""

    kind: str = "edit"
    first: int = FIRST
    below: float = 0.8

    @classmethod
    def read(cls, value: Any) -> Self:
        found = _table("stop", value, {}, {"kind": _text, "first": _count, "below": _number})
        if found.get("kind", "edit") not in METRICS:
            raise unknown("kind of probe", found["kind"], list(METRICS))
        return cls(**found)


@dataclass(frozen=True)
class Setting:
    """How the cases are edited: each alone, in batches that begin anew, or in batches that follow each other.

    ``size`` cases make one step. A sequence is asked at its ``checkpoints`` (in cases): all earlier cases, or
    ``recheck`` of them (the first, and a sample of the others drawn once). ``untouched`` further cases of the data are
    never edited, and their own questions are asked with the true answer. ``cases`` takes the first of the data's.
    ``ability`` asks besides what the model can do (``errata.evaluation.ability``) and how far its weights have moved,
    on texts of its own, or on those of a file that it names.
    """

    kind: Literal["single", "batch", "sequential"]
    size: int = 1
    checkpoints: tuple[int, ...] = ()
    stop: Stop | None = None
    recheck: int | None = None
    untouched: int = 0
    cases: int | None = None
    ability: bool | str = False

    @property
    def label(self) -> str:
        if self.kind == "single":
            words = ["single"]
        elif self.kind == "batch":
            words = [f"batch of {self.size}"]
        else:
            words = [f"sequential by {self.size}"]
        if self.checkpoints:
            words.append(f"asked at {_span(self.checkpoints)}")
        if self.recheck:
            words.append(f"{self.recheck} rechecked")
        if self.untouched:
            words.append(f"{self.untouched} untouched")
        if self.ability:
            words.append("ability" if self.ability is True else f"ability on {self.ability}")
        if self.stop:
            words.append(f"until {self.stop.kind} of the first {self.stop.first} is below {self.stop.below}")
        return ", ".join(words)

    @property
    def first(self) -> int:
        """How many of the first cases are always asked."""
        if self.stop:
            return self.stop.first
        return FIRST if self.recheck is None else min(FIRST, max(1, self.recheck // 2))

    @classmethod
    def read(cls, value: Any) -> Self:
        table = _table("a setting", _named(value, "kind"), {"kind": _text}, loose=True)
        both = {"untouched": _count, "cases": _count}
        many = both | {"ability": _ability}
        of = {
            "single": ({}, both),
            "batch": ({"size": _count}, many),
            "sequential": ({"batch": _count}, many | {"checkpoints": _counts, "recheck": _count, "stop": Stop.read}),
        }
        kind = table["kind"]
        if kind not in of:
            raise unknown("kind of setting", kind, list(of))
        needs, may = of[kind]
        found = dict(_table(f"the setting {kind!r}", table, {"kind": _text} | needs, may))
        if kind == "sequential":
            found["size"] = found.pop("batch")
        its = cls(**found)
        for point, after in pairwise((0, *its.checkpoints)):
            if after <= point:
                raise BadInput(f"checkpoints rise; found {after} behind {point}")
        if its.recheck is not None and its.stop is not None and its.recheck < its.stop.first:
            raise BadInput(
                f"recheck ({its.recheck}) covers the first {its.stop.first} cases that stop looks at; raise it"
            )
        return its

    def batches(self, cases: Sequence[Case], data: str) -> list[list[list[Case]]]:
        """The folds, each a list of batches. Raises :class:`BadInput` where there are too few cases."""
        if self.kind == "single":
            return [[[case]] for case in cases]
        last = max(self.checkpoints, default=self.size)
        if len(cases) < last:
            raise BadInput(f"the setting {self.label!r} needs {last} cases, and {data!r} gives {len(cases)}")
        if self.kind == "batch":
            starts = range(0, len(cases) - self.size + 1, self.size)
            return [[list(cases[start : start + self.size])] for start in starts]
        cases = cases[:last] if self.checkpoints else cases
        if odd := [n for n in self.checkpoints if n % self.size and n != len(cases)]:
            raise BadInput(f"checkpoints are multiples of the batch of {self.size}; found {odd[0]}")
        return [[list(cases[start : start + self.size]) for start in range(0, len(cases), self.size)]]


@dataclass(frozen=True)
class Plan:
    """What is crossed with what."""

    models: tuple[str, ...]
    methods: tuple[MethodSpec, ...]
    data: tuple[DataSpec, ...]
    settings: tuple[Setting, ...]
    modes: tuple[Mode, ...] = ("generated",)
    seeds: tuple[int, ...] = (0,)

    @classmethod
    def read(cls, path: str | Path, every: Sequence[str] = ()) -> Self:
        """The plan in a TOML file; ``"all"`` among its methods stands for ``every`` name."""
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"there is no file {path}; give a TOML file with models, methods, data and settings")
        try:
            record = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} is not TOML: {error}") from error
        try:
            return cls.of(record, every)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    @classmethod
    def of(cls, record: Mapping[str, Any], every: Sequence[str] = ()) -> Self:
        """The plan of what a TOML file says."""
        needs = {"models": _many(_text), "data": _many(DataSpec.read), "settings": _many(Setting.read)}
        may = {"modes": _many(_mode), "seeds": _many(_seed)}
        methods = {"methods": _many(MethodSpec.read)}
        asked = record.get("methods")
        if every and (asked == "all" or (isinstance(asked, list) and "all" in asked)):
            more = [one for one in asked if one != "all"] if isinstance(asked, list) else []
            record = {**record, "methods": [*every, *more]}
        return cls(**_table("a bench file", record, needs | methods, may))


# Reading -----------------------------------------------------------------------------------------

Reader = Callable[[Any], Any]


def _table(
    what: str, value: Any, needs: Mapping[str, Reader], may: Mapping[str, Reader] | None = None, loose: bool = False
) -> dict[str, Any]:
    """A table's entries as their readers give them; what is ``loose`` may have others."""
    if not isinstance(value, dict):
        raise BadInput(f"{what} is a table of TOML, found {value!r}")
    found, known = cast("dict[str, Any]", value), {**needs, **(may or {})}
    if not loose and (extra := [key for key in found if key not in known]):
        raise unknown(f"key of {what}", extra[0], list(known))
    if missing := [key for key in needs if key not in found]:
        raise BadInput(f"{what} needs {' and '.join(missing)}; found {', '.join(found) or 'nothing'}")
    read: dict[str, Any] = {}
    for key, its in found.items():
        try:
            read[key] = known[key](its) if key in known else its
        except _Wrong as error:
            raise BadInput(f"{key} of {what} is {error}, found {its!r}") from error
    return read


def _named(value: Any, key: str = "name") -> Any:
    """A text stands for a table with that name alone."""
    return {key: value} if isinstance(value, str) else value


class _Wrong(Exception):
    """Says what was expected."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _Wrong("a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise _Wrong("a whole number from 1")
    return value


def _seed(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _Wrong("a whole number from 0")
    return value


def _options(value: Any) -> tuple[tuple[str, str | bool], ...]:
    if not isinstance(value, dict) or not all(isinstance(its, str | bool) for its in value.values()):
        raise _Wrong("a table of texts, true and false")
    return tuple(cast("dict[str, str | bool]", value).items())


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise _Wrong("a number")
    return float(value)


def _ability(value: Any) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise _Wrong("true, false, or a file with a text on each line")


def _mode(value: Any) -> str:
    if value not in MODES:
        raise unknown("mode", str(value), list(MODES))
    return value


def _many(reader: Reader) -> Reader:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise _Wrong("a list")
        return tuple(reader(its) for its in cast("list[Any]", value))

    return read


def _counts(value: Any) -> tuple[int, ...]:
    return _many(_count)(value)


def _words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _span(numbers: Sequence[int]) -> str:
    """The numbers, shortened where they are evenly spaced."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1:
        return f"{numbers[0]} {numbers[1]} … {numbers[-1]}"
    return " ".join(map(str, numbers))
