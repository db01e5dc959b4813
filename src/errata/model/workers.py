"""Work on a model that can be shared out among processes which hold a copy of it each."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Workers(Protocol):
    """Processes that hold a copy of a model each (:class:`errata.distributed.pool.Pool`)."""

    count: int

    def map(self, function: Callable[..., Any], shards: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``function(lm, *shard)`` of each shard in one of them, in order. The function is one of a module."""
        ...


class Shared(Protocol):
    """A model that may have such workers (:class:`errata.model.hf.HFLM`)."""

    @property
    def workers(self) -> Workers | None:
        """Processes that hold a copy of it, if there are any."""
        ...

    @property
    def unedited(self) -> bool:
        """Whether no patch is in force in it."""
        ...


def in_shares(lm: Shared, function: Callable[..., Any], items: Sequence[Any], *args: Any) -> list[Any]:
    """``function(lm, some of the items, *args)`` of each share of the items, which are all where ``lm`` has no workers.

    The n-th share has the n-th item and each that is a number of workers behind it. For the unedited model: workers
    know of no patch in force.
    """
    if lm.workers is None or not lm.unedited:
        return [function(lm, items, *args)]
    count = min(lm.workers.count, max(1, len(items)))
    return lm.workers.map(function, [(items[n::count], *args) for n in range(count)])
