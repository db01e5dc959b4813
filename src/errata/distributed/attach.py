"""A model that has workers: what can be shared out of an edit or a measurement, they do.

lm = errata.load("world")
with workers(lm, 2):
    patch = memit.edit(lm, edits, memit.prepare(lm))
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from errata.distributed.asked import SharedOut
from errata.distributed.pool import Pool
from errata.distributed.worker import Held
from errata.errors import BadInput, WrongModel
from errata.model.hf import HFLM
from errata.model.loading import accelerators
from errata.patch.patch import EMPTY, Patch


@contextmanager
def workers(lm: HFLM, count: int, *, threads: int = 1, address: str | None = None) -> Iterator[Pool]:
    """Context manager: ``lm.workers`` are ``count`` processes with ``threads`` each; yields the :class:`Pool`.

    They load the model as ``lm`` was loaded: key statistics, target vectors of many edits and what :func:`asking` gives
    are shared out among them, with the results of one process within rounding. Raises :class:`BadInput` for a model
    that was given in memory, and :class:`WrongModel` where theirs is another: it was changed since.
    """
    if lm.origin is None:
        raise BadInput(
            f"{lm.name or 'the model'} was given in memory, and workers cannot load it; save it with its tokenizer "
            "(save_pretrained), and load that folder"
        )
    with Pool(count, threads=threads, address=address, accelerators=accelerators(lm.device.type)) as pool:
        pool.load(lm.origin)
        pool.every(_check, lm.fingerprint, str(lm.dtype), lm.budget)
        lm.workers = pool
        try:
            yield pool
        finally:
            lm.workers = None


def asking(lm: HFLM, patch: Patch = EMPTY) -> AbstractContextManager[Any]:
    """Context manager that yields the edited model as ``patch.applied(lm)`` does; workers answer, if it has some."""
    return _shared_out(lm, patch) if isinstance(lm.workers, Pool) else patch.applied(lm)


@contextmanager
def _shared_out(lm: HFLM, patch: Patch) -> Iterator[SharedOut]:
    patch.check(lm)
    assert isinstance(lm.workers, Pool)
    yield SharedOut(lm.workers, patch)


def _check(held: Held, fingerprint: str, dtype: str, budget: int) -> None:
    """In a worker: raises :class:`WrongModel` unless it holds the driver's model."""
    lm = held.lm
    if (lm.fingerprint, str(lm.dtype)) != (fingerprint, dtype):
        raise WrongModel(
            f"workers load {lm.name} as {lm.fingerprint} in {lm.dtype}, and here it is {fingerprint} in {dtype}: it "
            "was changed since it was loaded; save it with its tokenizer, and load that folder"
        )
    lm.budget = budget
