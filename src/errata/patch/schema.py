# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a file may hold, said by the annotations of a class: JSON by its types, tensors by type, shape and bounds.

    @dataclass(frozen=True, eq=False)
    class Spheres(Saved):
        split: bool
        queries: Annotated[Tensor, Floats("n in")]
        owner: Annotated[Tensor, Ints("n", least=-1, below="n")]

A name in a shape stands for the same size wherever it occurs, a number for itself, ``*`` for any size. ``in`` and
``out`` are the widths of what goes into and comes out of the module that a part sits at.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import pydantic
import torch
from torch import Tensor
from typing_extensions import TypedDict, is_typeddict

from errata.errors import BadInput
from errata.printable import shown

Sizes = dict[str, int]  # what the names in shapes stand for
Declared = tuple[str, type[Any], Mapping[str, Any]]  # what stands before names in errors; a class; values by field
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
LARGEST = 2**31  # above every index


# Shapes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The names of a value's sizes, in the annotation of a field."""

    names: str

    def bind(self, field: str, value: Any, sizes: Sizes) -> None:
        """Notes the sizes that the names stand for. Raises :class:`BadInput` where one stands for two."""
        names, found = self.names.split(), self.found(value)
        same = (a in ("*", str(n)) or (not a.isdigit() and sizes.setdefault(a, n) == n) for a, n in zip(names, found))
        if len(found) == len(names) and all(same):
            return
        wanted = " x ".join(f"{a} = {sizes[a]}" if a in sizes else a for a in names)
        raise BadInput(f"{field} has the shape {' x '.join(map(str, found)) or '()'}, expected {wanted}")

    def found(self, value: Any) -> Sequence[int]:
        """The sizes of a value."""
        return value.shape

    def check(self, field: str, value: Any, sizes: Sizes) -> None:
        """Raises :class:`BadInput` for another value than the annotation says, once all sizes are known."""


@dataclass(frozen=True)
class Number(Shape):
    """A whole number that is itself a size."""

    def found(self, value: Any) -> Sequence[int]:
        """The number."""
        return (value,)


@dataclass(frozen=True)
class Length(Shape):
    """A list, of one entry at least."""

    def found(self, value: Any) -> Sequence[int]:
        """How many there are."""
        return (len(value),)

    def check(self, field: str, value: Any, sizes: Sizes) -> None:
        """As :meth:`Shape.check`."""
        if not value:
            raise BadInput(f"{field} is empty")


@dataclass(frozen=True)
class Floats(Shape):
    """A tensor of floating-point numbers."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)

    def check(self, field: str, value: Any, sizes: Sizes) -> None:
        """As :meth:`Shape.check`: the type."""
        if value.dtype not in self.dtypes:
            found, wanted = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, self.dtypes[0]))
            raise BadInput(f"{field} is of type {found}, expected {wanted}")


@dataclass(frozen=True)
class Bools(Floats):
    """A tensor of booleans."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bool,)


@dataclass(frozen=True)
class Ints(Floats):
    """A tensor of whole numbers of at least ``least``, and below a number or the size of that name."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int64,)
    least: int = 0
    below: int | str = LARGEST

    def check(self, field: str, value: Any, sizes: Sizes) -> None:
        """As :meth:`Shape.check`: the type, and each entry."""
        super().check(field, value, sizes)
        end = sizes.get(self.below, 0) if isinstance(self.below, str) else self.below
        low, high = (int(value.min()), int(value.max())) if value.numel() else (self.least, self.least)
        if low < self.least or (high >= end and value.numel()):
            raise BadInput(f"{field} holds {low} to {high}, expected {self.least} to {end - 1}")


@dataclass(frozen=True)
class Each:
    """In the annotation of a tuple that may be long: ``of`` makes an item of its JSON, or raises :class:`BadInput`.

    It says what the type says to pydantic, which is asked only for the words where one is wrong.
    """

    of: Callable[[Any], Any]


APART = "apart"  # in the annotation of a field that its class writes and reads by itself


# Classes whose annotations say what a file holds -------------------------------------------------------


class Saved:
    """A dataclass that a file holds field by field: tensors as tensors, everything else as JSON.

    A class that is no dataclass defines ``config``, ``tensors`` and ``build`` itself.
    """

    def config(self) -> dict[str, Any]:
        """What is not tensors, as JSON."""
        return {name: _as_json(value) for name, value in self._values().items() if not isinstance(value, Tensor)}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: value for name, value in self._values().items() if isinstance(value, Tensor)}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The object of a config and tensors, as :meth:`config` and :meth:`tensors` gave them.

        Raises :class:`BadInput` for fields that are missing, of another type, or not declared.
        """
        return cls(**held(cls, config, tensors))

    def declared(self, prefix: str = "") -> list[Declared]:
        """The fields with the class that declares them; ``prefix`` stands before their names in errors."""
        return [(prefix, type(self), self._values())]

    def check_content(self) -> None:
        """Raises :class:`BadInput` for content that makes no sense and that annotations cannot rule out."""

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _hints(type(self))}


def held(
    cls: type[Any], config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, more: bool = False
) -> dict[str, Any]:
    """The values of the fields that a class declares, from JSON and tensors.

    Raises :class:`BadInput` where one is missing, is of another type, or (unless there may be ``more``) is not
    declared. Shapes are for :func:`bound`.
    """
    hints = _hints(cls)
    names = [name for name, hint in hints.items() if _is_tensor(hint)]
    if missing := [name for name in names if name not in tensors]:
        raise BadInput(f"the tensor {missing[0]} is missing")
    if not more and (strange := sorted(set(tensors) - set(names))):
        raise BadInput(f"nothing reads the tensor {shown(strange[0])}")
    config = {name: value for name, value in config.items() if name in hints} if more else config
    long = _long(hints, config)
    rest = {**config, **dict.fromkeys(long, ())}
    return {**read(_json_fields(cls), rest), **long, **{name: tensors[name] for name in names}}


def _long(hints: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The fields whose annotation has :class:`Each`, where nothing is wrong with them."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, hint in hints.items():
        for each in getattr(hint, "__metadata__", ()):
            if isinstance(each, Each) and isinstance(items := config.get(name), list):
                with suppress(BadInput):
                    found[name] = tuple([each.of(item) for item in items])
    return found


def bound(declared: Iterable[Declared], sizes: Sizes | None = None) -> Sizes:
    """The sizes in the shapes that classes declare, beside those that are known.

    Raises :class:`BadInput` for a value of another type or shape than declared, and for entries out of bounds.
    """
    sizes = {} if sizes is None else sizes
    found = [
        (f"{prefix}{name}", shape, values[name])
        for prefix, cls, values in declared
        for name, hint in _hints(cls).items()
        for shape in _shapes(hint)
    ]
    for field, shape, value in found:
        shape.bind(field, value, sizes)
    for field, shape, value in found:
        shape.check(field, value, sizes)
    return sizes


def read(kind: Any, value: Any) -> Any:
    """JSON as a type that pydantic knows, strictly: no text for a number. Raises :class:`BadInput` with the field."""
    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        raise BadInput(_described(error)) from error
    except TypeError as error:
        raise BadInput(f"not JSON: {error}") from error


def _described(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong, in a line: the field, what is expected and what was found."""
    line = error.errors(include_url=False)[0]
    field = ".".join(str(step)[:60] for step in line["loc"]) or "all of it"
    if line["type"] == "missing":
        return f"{field} is missing"
    if line["type"] == "extra_forbidden":
        return f"nothing reads {field}"
    wanted = line["msg"].removeprefix("Value error, ")
    return f"{field}: {wanted[:1].lower()}{wanted[1:300]}, found {shown(line['input'])}"


@cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """Field -> annotation, of a dataclass or a TypedDict; none of other classes, and where names cannot be resolved."""
    if not (is_dataclass(cls) or is_typeddict(cls)):
        return {}
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:  # imported for type checkers alone
        return {}
    names = [f.name for f in fields(cls)] if is_dataclass(cls) else list(hints)
    return {name: hints[name] for name in names if APART not in getattr(hints[name], "__metadata__", ())}


@cache
def _names(cls: type[Any]) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in fields(cls)]


@cache
def _json_fields(cls: type[Any]) -> Any:
    """The fields of a class that are no tensors, as a TypedDict that allows no others."""
    json_fields = {name: hint for name, hint in _hints(cls).items() if not _is_tensor(hint)}
    kind: Any = TypedDict(cls.__name__, json_fields)  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    kind.__pydantic_config__ = STRICT
    return kind


def _is_tensor(hint: Any) -> bool:
    return hint is Tensor or (get_origin(hint) is Annotated and get_args(hint)[0] is Tensor)


def _shapes(hint: Any) -> list[Shape]:
    """The shapes in an annotation."""
    return [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Shape)]


def _as_json(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _as_json(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {name: _as_json(one) for name, one in value.items()}
    return [_as_json(one) for one in value] if isinstance(value, list | tuple) else value
