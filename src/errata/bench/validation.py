"""Tables of a TOML file, checked by pydantic; the one place where its errors become Errata's.

A key's path in the file stands first in a message, then what was found and expected, or near matches of a name:
``settings[1].stop.below is a number, found 'x'``.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from errata.errors import BadInput, unknown

T = TypeVar("T")
EXPECTED = {  # in words, for pydantic's types of errors that are not those of one value alone
    "tuple_type": "a list",
    "too_short": "a list with at least one entry",
    "model_type": "a table of TOML",
}


def expected(text: str) -> WrapValidator:
    """For ``Annotated``: what the value is, in words for the error that any wrong value is answered with."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("expected", cast(Any, text)) from error

    return WrapValidator(check)


Text = Annotated[str, Field(strict=True, min_length=1), expected("a text")]
Count = Annotated[int, Field(strict=True, ge=1), expected("a whole number from 1")]
Seed = Annotated[int, Field(strict=True, ge=0), expected("a whole number from 0")]
Number = Annotated[float, Field(strict=True), expected("a number")]
List = Annotated[tuple[T, ...], Field(min_length=1)]


class Table(BaseModel):
    """A table of a TOML file: immutable, and without keys that nobody knows. ``title`` names it in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: ClassVar[str] = "a table"

    @classmethod
    def of(cls, value: Any) -> Self:
        """The table of what TOML holds. Raises :class:`BadInput` for the first thing that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _bad_input(error) from error

    @model_validator(mode="wrap")
    @classmethod
    def _check_keys(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        """Unknown keys are answered with near matches, and all missing ones at once."""
        try:
            return handler(value)
        except ValidationError as error:
            own = [(problem["type"], str(problem["loc"][0])) for problem in error.errors() if len(problem["loc"]) == 1]
            names = [field.alias or name for name, field in cls.model_fields.items()]
            for extra in (name for kind, name in own if kind == "extra_forbidden"):
                raise unknown(f"key of {cls.title}", extra, names) from error
            if missing := [name for kind, name in own if kind == "missing"]:
                given = ", ".join(cast("Mapping[str, Any]", value)) or "nothing"
                raise BadInput(f"{cls.title} needs {' and '.join(missing)}; found {given}") from error
            raise


class NamedTable(Table):
    """A table with a ``name``; in the file the name alone may stand for it."""

    name: Text

    @model_validator(mode="before")
    @classmethod
    def _accept_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def _bad_input(error: ValidationError) -> BadInput:
    """The first problem in the house's words, with the path of its key."""
    problem = error.errors()[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).removeprefix(".")
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, BadInput):
        return type(inner)(f"{path}: {inner}" if path else str(inner))
    wanted = EXPECTED.get(problem["type"], problem["msg"])
    return BadInput(f"{path or 'the file'} is {wanted}, found {problem['input']!r}")
