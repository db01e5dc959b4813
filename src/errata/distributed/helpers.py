"""Idle workers that another one asks: they answer shares of what it would do alone."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from errata.distributed import pool
from errata.distributed.tasks import of_model
from errata.distributed.worker import Reply
from errata.errors import first_line
from errata.model.hf import HFLM

log = logging.getLogger(__name__)


class Helpers:
    """A worker and idle ones of its pool, as processes that work is shared out among.

    With :class:`errata.distributed.asked.SharedOut` it asks them too. What one of them cannot do, or dies at, is done
    here, where it raises what there is to raise; so is the share of one that is still being set up.
    """

    def __init__(self, lm: HFLM, actors: Sequence[Any]) -> None:
        self.lm, self.actors, self.count = lm, actors, 1 + len(actors)

    def map(self, function: Callable[..., Any], shards: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``function(lm, *shard)`` of each shard, in their order: the first here, while the helpers do the others."""
        others = shards[1:]
        asked = [self.actors[i % len(self.actors)].do.remote(of_model, function, *one) for i, one in enumerate(others)]
        results = [function(self.lm, *shard) for shard in shards[:1]]
        for ref, shard in zip(asked, others, strict=True):
            reply = _reply(ref)
            if wrong := reply.error or reply.crash:
                log.warning("a worker could not help, and its share is done by the one that asked: %s", wrong)
            results.append(reply.value if reply.held and not wrong else function(self.lm, *shard))
        return results


def _reply(ref: Any) -> Reply:
    """What a helper replied, or that it died."""
    ray = pool.import_ray()
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return Reply(crash=first_line(error))
