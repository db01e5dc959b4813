"""The units of a model shared out among workers: who measures which, and what becomes of the rows."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import override

from errata.bench.units import Unit
from errata.distributed.tasks import Task, Tasks
from errata.types import Row


class UnitTasks(Tasks):
    """A task for each unit. A worker stays with a method while there are units of it, as it has prepared it.

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
    ) -> None:
        self.units, self.keep, self.gave_up, self.progress = units, keep, gave_up, progress
        self.done_cases, self.told = 0, 0
        self.groups: dict[Any, deque[Task]] = {}
        for number, unit in enumerate(units):
            self.groups.setdefault(_prepared_as(unit), deque()).append(Task(number, function, (number,)))
        self.at: dict[int, Any] = {}  # worker -> the method that it has prepared

    @override
    def take(self, worker: int) -> Task | None:
        mine = self.at.get(worker)
        if mine is None or not self.groups[mine]:
            left = [name for name, group in self.groups.items() if group]
            if not left:
                return None
            untouched = [name for name in left if name not in self.at.values()]
            mine = untouched[0] if untouched else max(left, key=lambda name: len(self.groups[name]))
            self.at[worker] = mine
        return self.groups[mine].popleft()

    @override
    def give_back(self, task: Task) -> None:
        self.groups[_prepared_as(self.units[task.number])].appendleft(task)

    @override
    def done(self, task: Task, value: list[Row]) -> None:
        unit = self.units[task.number]
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


def _prepared_as(unit: Unit) -> tuple[Any, ...]:
    """What units have in common that share what a method prepares."""
    return (unit.labels["method"], unit.labels["settings"], unit.labels["seed"])
