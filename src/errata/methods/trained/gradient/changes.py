"""Changes of weights by name: as matrices, and as a part of a patch."""

from collections.abc import Mapping

from torch import Tensor

from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight


def dense(changes: Mapping[str, Weight]) -> dict[str, Tensor]:
    """The changes as matrices (out, in), in their graph."""
    return {name: change.dense() if isinstance(change, LowRank) else change for name, change in changes.items()}


def delta_of(changes: Mapping[str, Weight]) -> Delta:
    """The changes as a part of a patch: on the CPU, dense where that is smaller."""
    return Delta({name: _stored(change) for name, change in changes.items()})


def _stored(change: Weight) -> Weight:
    small = change.compact() if isinstance(change, LowRank) else change
    if isinstance(small, LowRank):
        return LowRank(small.a.cpu().contiguous(), small.b.cpu().contiguous())
    return small.cpu().contiguous()
