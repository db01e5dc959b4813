"""A bench file: models, methods, data and settings that are crossed. Read from TOML and checked.

Plan.read("run.toml", every=list(errata.methods()))
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import BeforeValidator
from typing_extensions import override

from errata.bench.recipes import filled, recipes
from errata.bench.settings import Setting
from errata.bench.specs import DataSpec, MethodSpec, ProtocolName, TrainSpec
from errata.bench.validation import List, Seed, Table, Text
from errata.errors import BadInput, unknown
from errata.inputs import read_text
from errata.types import MODES, Mode


def _mode(value: Any) -> Any:
    if value not in MODES:
        raise unknown("mode", str(value), list(MODES))
    return value


ModeName = Annotated[Mode, BeforeValidator(_mode)]


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
