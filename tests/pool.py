"""Ray as far as a pool uses it, in this process: an actor is an object, and a test says which of them dies at what."""

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from errata.distributed import pool
from errata.distributed.pool import Pool


class RayError(Exception):
    """As Ray's: an actor died."""


class RayTaskError(RayError):
    """As Ray's: what a method returned could not be sent."""


HANDLES: dict[int, Any] = {}  # of actors that are sent to others


def handle(number: int) -> Any:
    """The actor that was sent."""
    return HANDLES[number]


class Actor:
    """Methods are called when somebody waits for them; what is sent there and back is pickled, as Ray does."""

    def __init__(self, worker: Any, kills: Callable[[str, tuple[Any, ...]], bool]) -> None:
        self.worker, self.kills, self.alive = worker, kills, True

    def __reduce__(self) -> Any:
        HANDLES[id(self)] = self
        return handle, (id(self),)

    def __getattr__(self, verb: str) -> Any:
        def remote(*args: Any) -> "Ref":
            return Ref(self, verb, pickle.dumps(args))

        return SimpleNamespace(remote=remote, options=lambda **_: SimpleNamespace(remote=remote))


class Ref:
    def __init__(self, actor: Actor, verb: str, args: bytes) -> None:
        self.actor, self.verb, self.args = actor, verb, args

    def answer(self) -> Any:
        args = pickle.loads(self.args)
        if self.actor.alive and self.actor.kills(self.verb, args):
            self.actor.alive = False
        if not self.actor.alive:
            raise RayError("The actor died.\nA long story.")
        return pickle.loads(pickle.dumps(getattr(self.actor.worker, self.verb)(*args)))


class FakeRay:
    """``kills(verb, args)`` says whether the actor that is asked so dies of it."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(
        self, kills: Callable[[str, tuple[Any, ...]], bool] = lambda verb, args: False, cpus: int = 64
    ) -> None:
        self.kills, self.cpus, self.actors, self.options = kills, cpus, list[Actor](), list[dict[str, Any]]()
        self.running, self.turn = False, 0

    def is_initialized(self) -> bool:
        return self.running

    def init(self, *args: Any, **options: Any) -> None:
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def remote(self, **options: Any) -> Any:
        self.options.append(options)

        def made(cls: type) -> Any:
            def start(*args: Any) -> Actor:
                self.actors.append(Actor(cls(*args), self.kills))
                return self.actors[-1]

            return SimpleNamespace(remote=start)

        return made

    def kill(self, actor: Actor) -> None:
        actor.alive = False

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        self.turn += 1  # one after the other has its turn
        first = [refs[(self.turn + i) % len(refs)] for i in range(num_returns)]
        return first, [ref for ref in refs if ref not in first]

    def get(self, ref: Ref) -> Any:
        return ref.answer()


def fake_pool(monkeypatch: Any, count: int = 2, **how: Any) -> tuple[Pool, FakeRay]:
    """A pool in this process, and the Ray that it has."""
    ray = FakeRay(**how)
    monkeypatch.setattr(pool, "import_ray", lambda: ray)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # of this process
    return Pool(count), ray
