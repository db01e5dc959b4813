"""What a search for layers has found so far, in a file: so that one that was interrupted goes on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ValidationError
from pydantic import Field as Bounded

from errata.errors import BadInput
from errata.files import write_text
from errata.inputs import parsed, read_text
from errata.locate.tracing import Trace
from errata.patch.schema import STRICT


@dataclass(frozen=True)
class Trial:
    """What one trial edit did."""

    took: bool = False
    """Whether its prompt was answered with the target."""
    like: tuple[bool, ...] = ()
    """The same of each other phrasing."""
    kept: tuple[bool, ...] = ()
    """Of each question about others: whether the answer was what it was."""
    failed: str | None = None
    """Why the edit could not be made; nothing was asked then."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The traces by fact, and the trials by layer and fact. With a ``path`` each is written as soon as it is there."""

    path: Path | None = None
    of: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was searched: a file of another search is refused."""
    traces: dict[str, Trace] = field(default_factory=dict[str, Trace])
    trials: dict[str, Trial] = field(default_factory=dict[str, Trial])

    @classmethod
    def at(cls, path: Path, of: Mapping[str, Any]) -> Self:
        """What is kept there of the search ``of`` (JSON); nothing where there is no file.

        Raises :class:`BadInput` for a file of another search, and for what is none.
        """
        if not path.exists():
            return cls(path, of)
        try:
            record = _Record.model_validate(parsed(read_text(path, "errata locate")))
            traces = {key: Trace(**_tensors(one)) for key, one in record.traces.items()}
        except (BadInput, ValidationError, TypeError, ValueError) as error:
            raise BadInput(f"{path} holds nothing that errata locate kept; remove it, or name another -o") from error
        if other := [
            f"{name} {record.of.get(name)!r}, not {value!r}"
            for name, value in of.items()
            if record.of.get(name) != value
        ]:
            raise BadInput(
                f"{path} was kept by an interrupted search of another kind ({'; '.join(other)}): give the same command "
                "again, remove that file, or name another -o"
            )
        return cls(path, of, traces, {key: one.trial for key, one in record.trials.items()})

    def trace(self, key: str, make: Callable[[], Trace]) -> Trace:
        """The trace that is kept, or else is made now."""
        if key not in self.traces:
            self.traces[key] = make()
            self._write()
        return self.traces[key]

    def trial(self, key: str, make: Callable[[], Trial]) -> Trial:
        """The trial that is kept, or else is made now."""
        if key not in self.trials:
            self.trials[key] = make()
            self._write()
        return self.trials[key]

    def remove(self) -> None:
        """Deletes the file: the search is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.path is not None:
            traces = {key: one.to_json() for key, one in self.traces.items()}
            trials = {key: asdict(one) for key, one in self.trials.items()}
            write_text(self.path, json.dumps({"of": self.of, "traces": traces, "trials": trials}) + "\n")


class _TraceRecord(BaseModel):
    model_config = STRICT

    tokens: list[str]
    subject: list[int] = Bounded(min_length=2, max_length=2)
    answer: str
    clean: float
    corrupted: float
    effects: dict[str, list[list[float]]]
    window: int
    sigma: float
    samples: int


class _TrialRecord(BaseModel):
    model_config = STRICT

    took: bool
    like: list[bool]
    kept: list[bool]
    failed: str | None

    @property
    def trial(self) -> Trial:
        return Trial(self.took, tuple(self.like), tuple(self.kept), self.failed)


class _Record(BaseModel):
    model_config = STRICT

    of: dict[str, Any]
    traces: dict[str, _TraceRecord]
    trials: dict[str, _TrialRecord]


def _tensors(record: _TraceRecord) -> dict[str, Any]:
    effects = {kind: torch.tensor(rows, dtype=torch.float64) for kind, rows in record.effects.items()}
    first, end = record.subject
    return {**dict(record), "tokens": tuple(record.tokens), "subject": (first, end), "effects": effects}
