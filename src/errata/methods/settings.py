"""Hyper-parameters: how a method's class declares them, and how a value, given or typed, is checked (pydantic).

steps: int = setting(25, "ROME, appendix E.2", key="v_num_grad_steps", above=0)
"""

from collections.abc import Mapping
from dataclasses import Field, field, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pydantic

from errata.errors import BadInput, unknown

CLOSE = 1e-2  # relative difference of two preparations of one model at most


def setting(
    default: Any,
    note: str = "",
    *,
    key: str = "",
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """The dataclass field of a hyper-parameter.

    ``note`` says where the default comes from (paper and section) and what it is; ``key`` is its name in the released
    code or in EasyEdit where that is another. Numbers are at least ``least`` (by default 0) or, with ``above``, greater
    than that, and at most ``most``. A sub-class that restates a setting keeps the bounds that it does not give.
    """
    given = {"note": note, "key": key, "above": above, "least": least, "most": most}
    return field(default=default, metadata={name: value for name, value in given.items() if value not in (None, "")})


def notes(cls: type[Any]) -> dict[str, str]:
    """Setting -> its note, with its name in the released code where that is another."""
    return {f.name: "; ".join(filter(None, (f.metadata.get("note"), _key(f)))) for f in fields(cls)}


def _key(f: "Field[Any]") -> str:
    return f"`{f.metadata['key']}` in released code" if "key" in f.metadata else ""


def checked(cls: type[Any], name: str, value: Any, *, typed: bool = False) -> Any:
    """A setting's value in its declared type; with ``typed`` it is read from text. Raises :class:`BadInput`."""
    hint = _hints(cls)[name]
    if typed and value.strip() in ("None", "none", "") and type(None) in get_args(hint):
        return None
    candidate = value
    if any(get_origin(option) is tuple for option in (hint, *get_args(hint))):
        if typed:
            candidate = tuple(filter(None, (item.strip() for item in value.strip("()[] ").split(","))))
        elif isinstance(value, list):  # as JSON and TOML have it
            candidate = tuple(value)
    try:
        return _adapters(cls)[name].validate_python(candidate, strict=not typed)
    except pydantic.ValidationError as error:
        expected, found = _expected(error, hint), f"{type(value).__name__} {value!r}"
        raise BadInput(f"{cls.name}'s {name} {expected}; found {found}") from error


def close(a: Any, b: Any) -> bool:
    """Whether two resolved settings are equal within the rounding of what they were resolved from."""
    return abs(a - b) <= CLOSE * abs(a) if isinstance(a, float) and isinstance(b, float) else a == b


def from_text(cls: type[Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings given as text, in their declared types. Raises :class:`BadInput` or ``UnknownName``."""
    names = [f.name for f in fields(cls)]
    for name in settings:
        if name not in names:
            raise unknown(f"setting of {cls.name}", name, names)
    return {name: checked(cls, name, value, typed=True) for name, value in settings.items()}


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _adapters(cls: type[Any]) -> dict[str, pydantic.TypeAdapter[Any]]:
    hints = _hints(cls)
    return {f.name: pydantic.TypeAdapter(_bounded(hints[f.name], _range(cls, f.name))) for f in fields(cls)}


def _range(cls: type[Any], name: str) -> dict[str, Any]:
    """The bounds of a setting: a sub-class that restates only its default keeps them."""
    bounds: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = base.__dict__.get("__dataclass_fields__", {}).get(name)
        bounds |= own.metadata if own is not None else {}
    lower = {"gt": bounds["above"]} if "above" in bounds else {"ge": bounds.get("least", 0)}
    return lower | ({"le": bounds["most"]} if "most" in bounds else {})


def _bounded(hint: Any, bounds: dict[str, Any]) -> Any:
    if hint is int:
        whole: dict[str, Any] = {"le": 2**31 - 1, **bounds}  # more is no count of anything here
        return Annotated[int, pydantic.Field(**whole)]
    if hint is float:
        return Annotated[float, pydantic.Field(allow_inf_nan=False, **bounds)]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(_bounded(option, bounds) for option in get_args(hint))]  # noqa: UP007
    return hint


BOUNDS = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be {ge:.10g} or more",
    "less_than_equal": "must be {le:.10g} or less",
    "finite_number": "must be a finite number",
}


def _expected(error: pydantic.ValidationError, hint: Any) -> str:
    """What was expected, in words: a bound where one is crossed, the choices, else the type."""
    for line in error.errors():
        if line["type"] in BOUNDS:
            return BOUNDS[line["type"]].format(**line.get("ctx", {}))
        if line["type"] == "literal_error":
            return f"is one of {line['ctx']['expected']}" if "ctx" in line else "is one of a few words"
    return f"is of type {getattr(hint, '__name__', None) if isinstance(hint, type) else hint}"
