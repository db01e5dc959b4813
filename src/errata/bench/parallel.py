"""The units of a model shared out among workers: who measures which, and what becomes of the rows."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from errata.bench.units import Unit
from errata.distributed.tasks import Task, Tasks
from errata.types import Row


@dataclass
class _Group:
    """The tasks of units that share what a method prepares, the largest first; ``done`` is what of them is through,
    as size and seconds of workers."""

    left: deque[Task] = field(default_factory=deque[Task])
    size: int = 0  # of what is left
    done: tuple[int, float] = (0, 0.0)


class UnitTasks(Tasks):
    """A task for each unit. A worker stays with a method while there are units of it, as it has prepared it.

    The largest come first, among methods (by the seconds that their units took so far) and among the units of one, so
    that in the end no worker waits for long. Where there are more workers than units, the first measure one each, and
    the others are their ``helpers``.

    ``keep`` takes the rows of a unit as it ends, and ``gave_up`` makes those of a unit at which workers died.
    ``progress`` is told how many more cases are done, and what is being done.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        function: Callable[..., list[Row]],
        keep: Callable[[Unit, list[Row]], None],
        gave_up: Callable[[Unit, str], list[Row]],
        progress: Callable[[int, str], None],
        helpers: Callable[[int], Sequence[Any]] = lambda worker: (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.units, self.keep, self.gave_up, self.progress = units, keep, gave_up, progress
        self.helpers, self.clock = helpers, clock
        self.done_cases, self.told = 0, 0
        self.sizes = [_size(unit) for unit in units]
        self.groups: dict[Any, _Group] = {}
        for number in sorted(range(len(units)), key=lambda number: -self.sizes[number]):
            self.give_back(Task(number, function, (number,)), first=False)
        self.at: dict[int, Any] = {}  # worker -> the method that it has prepared
        self.began: dict[int, float] = {}  # task -> when it was taken

    @override
    def is_left(self) -> bool:
        return any(group.left for group in self.groups.values())

    @override
    def take(self, worker: int) -> Task | None:
        if worker >= len(self.units):
            return None  # it helps
        mine = self.at.get(worker)
        if mine is None or not self.groups[mine].left:
            left = [name for name, group in self.groups.items() if group.left]
            if not left:
                return None
            untouched = [name for name in left if name not in self.at.values()]
            self.at[worker] = mine = max(untouched or left, key=self._seconds_left)
        task = self.groups[mine].left.popleft()
        self.groups[mine].size -= self.sizes[task.number]
        self.began[task.number] = self.clock()
        task.args = (task.number, self.helpers(worker))
        return task

    def _seconds_left(self, name: Any) -> float:
        """About as many as the units of a method will take; where none is through, as if they were like the others."""
        group = self.groups[name]
        through = [group.done] if group.done[0] else [other.done for other in self.groups.values() if other.done[0]]
        size, seconds = (sum(column) for column in zip(*through, strict=True)) if through else (1, 1.0)
        return group.size * seconds / size

    @override
    def give_back(self, task: Task, first: bool = True) -> None:
        group = self.groups.setdefault(_prepared_as(self.units[task.number]), _Group())
        group.size += self.sizes[task.number]
        (group.left.appendleft if first else group.left.append)(task)

    @override
    def done(self, task: Task, value: list[Row]) -> None:
        unit, seconds = self.units[task.number], self.clock() - self.began[task.number]
        group = self.groups[_prepared_as(unit)]
        group.done = (group.done[0] + self.sizes[task.number], group.done[1] + seconds)
        self.keep(unit, value)
        self.done_cases += len(unit.cases)
        self._tell(self.done_cases, " ".join((unit.labels["method"], "·", unit.labels["setting"])))

    @override
    def died(self, task: Task, why: str) -> None:
        self.done(task, self.gave_up(self.units[task.number], why))

    @override
    def watch(self, activities: Sequence[tuple[int, str]]) -> None:
        if words := [text for _, text in activities if text]:
            more = f" and {len(words) - 1} more" if len(words) > 1 else ""
            self._tell(self.done_cases + sum(cases for cases, _ in activities), words[0] + more)

    def _tell(self, cases: int, text: str) -> None:
        """What is told never goes back: a unit whose worker dies is begun again."""
        self.told = max(self.told, cases)
        self.progress(self.told, text)


def _size(unit: Unit) -> int:
    """How much there is to do for a unit: cases that are edited, and cases that are asked at each checkpoint."""
    return len(unit.cases) + sum(len(unit.asked_after(n)) + len(unit.untouched) for n in unit.checkpoints)


def _prepared_as(unit: Unit) -> tuple[Any, ...]:
    """What units have in common that share what a method prepares."""
    return (unit.labels["method"], unit.labels["settings"], unit.labels["seed"])
