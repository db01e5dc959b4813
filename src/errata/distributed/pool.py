"""Worker processes over Ray.

    with Pool(2) as pool:
        pool.load(partial(errata.load, "world"))
        pool.map(function, shards)          # function(lm, *shard) in the workers, whose results come in order

A worker that dies is replaced, and what it did is done again. The driver holds no model.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from errata.distributed.tasks import ATTEMPTS, Shards, Task, Tasks, WorkerDied, WorkerFailed, of_model
from errata.distributed.worker import Reply, Worker
from errata.errors import BadInput, first_line
from errata.model.hf import HFLM

log = logging.getLogger(__name__)

STORE = 200 * 2**20  # bytes of shared memory for what is sent; Ray writes what is more to the disk
SECOND = 1.0  # between two looks at what the workers are doing
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 would starve them beside anything else that runs
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by itself, and warns of
}


@dataclass(eq=False)
class _Member:
    """A place in the pool, and the actor that has it now.

    ``set_up`` of the pool's calls are answered; ``asked`` is what it is at, with the task, None for such a call.
    """

    number: int
    actor: Any = None
    set_up: int = 0
    asked: tuple[Any, Task | None] | None = None
    deaths: int = 0  # of its actors while they were set up, one after the other


class Pool:
    """``count`` worker processes with ``threads`` each. A context manager: when it ends, so do they.

    Ray is started on this machine, unless ``address`` names a cluster or Ray runs in this process already. With
    ``accelerators`` each worker has so many for itself. Nothing starts before :meth:`begin` or :meth:`load`.
    """

    def __init__(self, count: int, *, threads: int = 1, address: str | None = None, accelerators: int = 0) -> None:
        """Raises :class:`BadInput` where Ray is not installed."""
        if count < 1 or threads < 1:
            raise BadInput(f"workers and their threads are 1 or more, found {count} and {threads}")
        self.count, self.threads, self.address, self.accelerators = count, threads, address, accelerators
        self.ray = import_ray()
        self.members: list[_Member] = []
        self.calls: list[tuple[str, tuple[Any, ...]]] = []  # what every worker answers before its first task
        self.told: set[str] = set()
        self.thread: ThreadPoolExecutor | None = None  # that starts Ray, whose processes end when it does
        self.starting: Future[None] | None = None
        self.started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the workers, and Ray where this pool started it."""
        if self.starting is not None:
            self.starting.exception()  # waits: nobody needs to know any more what went wrong
            self.starting = None
        for member in self.members:
            with suppress(Exception):
                self.ray.kill(member.actor)
        self.members = []
        if self.started:
            self.ray.shutdown()
            self.started = False
        if self.thread is not None:
            self.thread.shutdown()
            self.thread = None

    # What workers do -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Ray starts meanwhile, in a thread; what goes wrong there :meth:`load` raises."""
        if self.starting is None:
            self.thread = self.thread or ThreadPoolExecutor(1, "ray")
            self.starting = self.thread.submit(self._start_ray)

    def load(self, make: Callable[[], HFLM]) -> None:
        """Every worker, and whoever takes its place, holds the model that ``make()`` gives, and nothing else.

        They begin with it at once, and the call returns.
        """
        self.calls = [("load", (make,))]
        if not self.members:
            self._start()
        for member in self.members:
            member.set_up = 0
            member.asked = self._set_up(member)

    def every(self, function: Callable[..., Any], *args: Any) -> None:
        """Every worker, and whoever takes its place, does ``function(held, *args)`` before its next task."""
        self.calls.append(("do", (function, *args)))

    def map(self, function: Callable[..., Any], shards: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``function(lm, *shard)`` of each shard, in their order.

        Raises what Errata raised in a worker; :class:`WorkerFailed` for another exception there, and
        :class:`WorkerDied`.
        """
        tasks = Shards(of_model, [(function, *shard) for shard in shards])
        self.run(tasks)
        return tasks.results

    def run(self, tasks: Tasks) -> None:
        """Has all tasks done. Raises as :meth:`map` does, unless ``tasks.died`` takes it on itself."""
        for member in self.members:  # what an earlier run was broken off at
            member.asked = None if member.asked and member.asked[1] else member.asked
        while True:
            for member in self.members:
                if member.asked is None:
                    member.asked = self._next(member, tasks)
            asked = {member.asked[0]: member for member in self.members if member.asked}
            if not tasks.is_left() and not any(m.asked and m.asked[1] for m in self.members):
                return  # some may be still being set up
            finished, _ = self.ray.wait(list(asked), num_returns=1, timeout=SECOND)
            for ref in finished:
                self._finish(asked[ref], tasks)
            if not finished:
                tasks.watch(self._activities())

    def actors(self, members: slice) -> list[Any]:
        """The actors of some of the workers."""
        return [member.actor for member in self.members[members]]

    def _set_up(self, member: _Member) -> tuple[Any, None] | None:
        """Gives a member the next of the pool's calls; None where it has answered all."""
        if member.set_up == len(self.calls):
            return None
        verb, args = self.calls[member.set_up]
        return getattr(member.actor, verb).remote(*args), None

    def _next(self, member: _Member, tasks: Tasks) -> tuple[Any, Task | None] | None:
        """Gives a member what is next for it; None where that is nothing."""
        if (call := self._set_up(member)) is not None:
            return call
        task = tasks.take(member.number)
        return None if task is None else (member.actor.do.remote(task.function, *task.args), task)

    def _finish(self, member: _Member, tasks: Tasks) -> None:
        """Hands on what came of what a member was asked; it has its next task before that is written."""
        assert member.asked is not None
        (ref, task), member.asked = member.asked, None
        try:
            reply: Reply = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:  # what it returned could not be sent, say
            raise WorkerFailed(f"in a worker: {str(error).strip().splitlines()[-1]}") from error
        except self.ray.exceptions.RayError as error:
            self._replace(member, task, str(error).strip().splitlines()[0], tasks)
            return
        for level, message in reply.warnings:
            if message not in self.told:
                self.told.add(message)
                log.log(level, "%s", message)
        if reply.error is not None:
            raise reply.error
        if reply.crash:
            raise WorkerFailed(f"in a worker: {reply.crash}")
        if task is None:
            member.set_up, member.deaths = member.set_up + 1, 0
        else:
            member.asked = self._next(member, tasks)
            tasks.done(task, reply.value)

    def _replace(self, member: _Member, task: Task | None, why: str, tasks: Tasks) -> None:
        """Puts a new actor in the place of one that died."""
        log.warning("a worker died and is replaced: %s", why)
        with suppress(Exception):
            self.ray.kill(member.actor)
        member.actor, member.set_up = self._actor(), 0
        if task is None:
            member.deaths += 1
            if member.deaths >= ATTEMPTS:
                raise WorkerDied(f"{ATTEMPTS} workers died while they loaded the model, one after the other: {why}")
            return
        task.attempts += 1
        if task.attempts < ATTEMPTS:
            tasks.give_back(task)
        else:
            tasks.died(task, f"{ATTEMPTS} workers died at it, one after the other: {why}")

    def _activities(self) -> list[tuple[int, str]]:
        """What the workers say that they are doing; those that do not answer at once are left out."""
        asked = [member.actor.activity.options(concurrency_group="watch").remote() for member in self.members]
        answered, _ = self.ray.wait(asked, num_returns=len(asked), timeout=SECOND / 2)
        known: list[tuple[int, str]] = []
        for ref in answered:
            with suppress(self.ray.exceptions.RayError):
                known.append(self.ray.get(ref))
        return known

    # Starting --------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Starts Ray, unless it runs here, and the workers. Raises :class:`BadInput` where they have no room."""
        self.begin()
        starting, self.starting = self.starting, None
        assert starting is not None
        starting.result()
        there = self.ray.cluster_resources()
        for what, needed in (("CPU", self.count * self.threads), ("GPU", self.count * self.accelerators)):
            if needed > there.get(what, 0):
                raise BadInput(
                    f"{self.count} workers need {needed} {what}s, and Ray has {there.get(what, 0):g} here; "
                    "take fewer workers, or fewer threads for each"
                )
        for number in range(self.count):
            self.members.append(_Member(number, self._actor()))

    def _start_ray(self) -> None:
        """Starts Ray, unless it runs here. Raises :class:`BadInput`."""
        quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not self.ray.is_initialized():
            with _environment():
                try:
                    if self.address is not None:
                        self.ray.init(self.address, **quiet)
                    else:
                        room: Any = {"num_cpus": self.count * self.threads, "object_store_memory": STORE}
                        self.ray.init("local", include_dashboard=False, **room, **quiet)
                except Exception as error:  # Ray raises those too, where its processes do not come up in time
                    self.ray.shutdown()
                    where = "Ray cannot be started here" if self.address is None else f"no Ray at {self.address}"
                    raise BadInput(f"{where}: {first_line(error)}") from error
            self.started = True

    def _actor(self) -> Any:
        groups: Any = {"concurrency_groups": {"watch": 1}, "max_restarts": 0}
        actor = self.ray.remote(num_cpus=self.threads, num_gpus=self.accelerators, **groups)(Worker)
        return actor.remote(os.getcwd(), self.threads)


@contextmanager
def _environment() -> Iterator[None]:
    """Context manager: what Ray reads when it starts, where the user has not said otherwise."""
    ours = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def import_ray() -> Any:
    """The package. Raises :class:`BadInput` where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise BadInput("workers need Ray: pip install 'errata[distributed]'") from error
    return ray
