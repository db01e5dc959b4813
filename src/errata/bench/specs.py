"""What a bench file crosses: methods with their settings and what is done to their patches, and cases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr
from typing_extensions import override

from errata.bench.recipes import recipes
from errata.bench.validation import Count, NamedTable, Seed, Text, expected
from errata.errors import unknown
from errata.evaluation import protocols
from errata.inputs import read_settings
from errata.patch.transforms import Step, transform


def _protocol(name: str) -> str:
    if name not in protocols.PROTOCOLS:
        raise unknown("protocol", name, [*protocols.PROTOCOLS, *recipes()])
    return name


def _pairs(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, dict):
        raise ValueError("no table")
    return tuple(cast("dict[str, Any]", value).items())


ProtocolName = Annotated[Text, AfterValidator(_protocol)]
Options = Annotated[
    tuple[tuple[str, StrictStr | StrictBool], ...],
    BeforeValidator(_pairs),
    expected("a table of texts, true and false"),
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


def _words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
