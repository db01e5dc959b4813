"""What runs in a worker: a process that holds a copy of a model and does with it what the driver sends."""

import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from errata.errors import ErrataError, first_line
from errata.model.hf import HFLM


@dataclass
class Held:
    """What a worker holds: a copy of the model, and what its tasks keep there for later ones.

    ``activity`` is what the task that runs has come to: a count, and words.
    """

    lm: HFLM
    kept: dict[str, Any] = field(default_factory=dict[str, Any])
    activity: tuple[int, str] = (0, "")


@dataclass(frozen=True)
class Reply:
    """What came of a task: its ``value``, or an ``error`` of Errata's own, or the last line of another exception.

    ``warnings`` were logged meanwhile: level and message. Nothing was done where the worker held no model yet
    (``held``): another worker may ask one that took a dead one's place before that has loaded it.
    """

    value: Any = None
    error: ErrataError | None = None
    crash: str = ""
    warnings: tuple[tuple[int, str], ...] = ()
    held: bool = True


class Worker:
    """The actor. Its methods raise nothing: what is raised in a task is in its reply."""

    def __init__(self, folder: str, threads: int) -> None:
        """``folder`` is the driver's, from which relative paths are meant."""
        if Path(folder).is_dir():
            os.chdir(folder)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(threads)
        self.held: Held | None = None

    def load(self, make: Callable[[], HFLM]) -> Reply:
        """Holds what ``make()`` gives, and nothing that was held before."""

        def hold() -> None:
            self.held = None
            self.held = Held(make())

        return _reply(hold)

    def do(self, function: Callable[..., Any], *args: Any) -> Reply:
        """``function(held, *args)``"""
        return _reply(lambda: function(self.held, *args)) if self.held else Reply(held=False)

    def activity(self) -> tuple[int, str]:
        """How far the task that runs has come."""
        return self.held.activity if self.held else (0, "")


class _Kept(logging.Handler):
    """Keeps the records of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[tuple[int, str]] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.levelno, record.getMessage()))


def _reply(work: Callable[[], Any]) -> Reply:
    log, kept = logging.getLogger("errata"), _Kept()
    log.addHandler(kept)
    answer: dict[str, Any] = {}
    try:
        answer["value"] = work()
    except ErrataError as error:
        answer["error"] = error
    except Exception as error:
        answer["crash"] = _last_line(error)
    finally:
        log.removeHandler(kept)
    return Reply(**answer, warnings=tuple(kept.records))


def _last_line(error: Exception) -> str:
    """What an exception says, and where it was raised."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    said = first_line(error)
    named = said if said.startswith(type(error).__name__) else f"{type(error).__name__}: {said}"
    return f"{named} ({Path(at.filename).name}, line {at.lineno}, in {at.name})"
