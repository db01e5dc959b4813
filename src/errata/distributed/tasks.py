"""Tasks for workers: who does which, what becomes of the results, and what of a task whose workers die."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from errata.distributed.worker import Held
from errata.errors import ErrataError

ATTEMPTS = 3  # at a task whose workers die


class WorkerDied(ErrataError):
    """A worker died at what it was doing, and so did those that took its place; what was done so far is kept."""


class WorkerFailed(ErrataError):
    """An exception that is none of Errata's own ended a task in a worker; what was done so far is kept."""

    exit_code = 1


@dataclass(eq=False)
class Task:
    """``function(held, *args)`` in a worker. ``number`` says which of its tasks it is."""

    number: int
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    attempts: int = 0


class Tasks(ABC):
    """Tasks that are left, and what is done with those that are through."""

    @abstractmethod
    def take(self, worker: int) -> Task | None:
        """The next task for a worker; None where none is left."""

    @abstractmethod
    def is_left(self) -> bool:
        """Whether there is one that nobody has taken."""

    @abstractmethod
    def give_back(self, task: Task) -> None:
        """It is left again: its worker died."""

    @abstractmethod
    def done(self, task: Task, value: Any) -> None:
        """What became of it."""

    def died(self, task: Task, why: str) -> None:
        """It is given up, after as many attempts as there are. Raises :class:`WorkerDied`, unless that is recorded."""
        raise WorkerDied(why)

    def watch(self, activities: Sequence[tuple[int, str]]) -> None:  # noqa: B027 - not everybody looks
        """What the workers are doing, about every second."""


class Shards(Tasks):
    """A function of each of several shards; ``results`` are in their order."""

    def __init__(self, function: Callable[..., Any], shards: Sequence[tuple[Any, ...]]) -> None:
        self.left = deque(Task(i, function, shard) for i, shard in enumerate(shards))
        self.results: list[Any] = [None] * len(shards)

    @override
    def take(self, worker: int) -> Task | None:
        return self.left.popleft() if self.left else None

    @override
    def is_left(self) -> bool:
        return bool(self.left)

    @override
    def give_back(self, task: Task) -> None:
        self.left.appendleft(task)

    @override
    def done(self, task: Task, value: Any) -> None:
        self.results[task.number] = value


def of_model(held: Held, function: Callable[..., Any], *args: Any) -> Any:
    """A task of a function that wants the model alone."""
    return function(held.lm, *args)
