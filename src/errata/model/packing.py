"""Rows side by side in the elements of a batch, behind beginnings that they share: each sees its own tokens alone.

Rows that begin with the same text (a context) stand behind one copy of its keys and values, so that a pass neither
copies nor holds it for each row, and rows of different lengths need no padding. The mask keeps them apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.model.caches import new_cache, plain
from errata.model.passes import Rows, accepts

WIDTH = 128  # tokens of an element behind its beginning, more or less: all look at all, though they see few
EXTRA = 6  # tokens that an element costs beside its own, for what it copies of its beginning


def can_pack(model: nn.Module) -> bool:
    """Whether a model takes the positions of tokens, and keeps keys and values of each of them and nothing else."""
    cache = new_cache(model) if accepts(model, "position_ids") else None
    return cache is not None and plain(cache)


def dtype_of(model: Any) -> torch.dtype:
    """What a model computes in, which a mask that is added to attention has to be in too."""
    return model.dtype


def long(values: Sequence[int]) -> Tensor:
    """Whole numbers as a tensor, also of none of them. (k,)"""
    return torch.tensor(list(values), dtype=torch.long)


@dataclass(frozen=True)
class Packing:
    """The ``element`` of the batch that each row stands in, and the number of the ``beginning`` of each element."""

    element: list[int]
    beginning: list[int]

    @property
    def side_by_side(self) -> bool:
        """Whether any rows share an element."""
        return len(self.beginning) < len(self.element)

    @classmethod
    def of(cls, beginnings: Sequence[int], sizes: Sequence[int]) -> "Packing":
        """Rows of one beginning fill elements one after another, of as many tokens as leave little padding in all."""
        whole: Counter[int] = Counter()
        for beginning, size in zip(beginnings, sizes, strict=True):
            whole[beginning] += size
        width = min(range(1, WIDTH + 1), key=lambda w: (w + EXTRA) * sum(-(-size // w) for size in whole.values()))
        made, last, filled = cls([], []), dict[int, int](), list[int]()  # a beginning's last element; each one's tokens
        for beginning, size in zip(beginnings, sizes, strict=True):
            at = last.get(beginning)
            if at is None or filled[at] + size / 2 > width:
                at = last[beginning] = len(filled)
                made.beginning.append(beginning)
                filled.append(0)
            filled[at] += size
            made.element.append(at)
        return made


@dataclass(frozen=True)
class Strip:
    """Some tokens of each row, side by side in its element.

    ``ids``, the ``row`` of each column (-1: none) and the ``position`` of its token in that row (elements, columns);
    and for each row the column at which its tokens start (``starts``) and the first one's position (``before``).
    """

    ids: Tensor
    row: Tensor
    position: Tensor
    starts: list[int]
    before: list[int]

    @classmethod
    def of(cls, packing: Packing, rows: Rows, before: Sequence[int], fill: int) -> "Strip":
        """The tokens of ``rows``, of which so many stand ``before`` them; ``fill`` pads."""
        ends, starts = [0] * len(packing.beginning), list[int]()
        for at, ids in zip(packing.element, rows, strict=True):
            starts.append(ends[at])
            ends[at] += len(ids)
        shape = len(ends), max(ends, default=0)
        made = cls(torch.full(shape, fill), torch.full(shape, -1), torch.zeros(shape).long(), starts, list(before))
        lengths = long([len(ids) for ids in rows])
        row = torch.arange(len(rows)).repeat_interleave(lengths)
        index = torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]  # of a token in its row
        at = long(packing.element)[row], long(starts)[row] + index
        made.ids[at], made.row[at] = long([token for ids in rows for token in ids]), row
        made.position[at] = long(before)[row] + index
        return made

    def source(self, packing: Packing, chosen: Sequence[int], new: "Strip") -> tuple[Tensor, Tensor]:
        """Where each column of ``new``, a strip of the ``chosen`` rows, stands here: element and column."""
        of = long(chosen)[new.row.clamp(min=0)]
        element, start, before = (long(some)[of] for some in (packing.element, self.starts, self.before))
        none = new.row < 0
        return element.masked_fill(none, 0), (start + new.position - before).masked_fill(none, 0)


def mask_of(begun: Tensor, strip: Strip, behind: Sequence[Strip], dtype: torch.dtype) -> Tensor:
    """What is added to the attention of a ``strip``'s tokens: 0 to what they see, else the least number.

    They see the beginning, where ``begun`` (elements, n) is not 0, and what is not after them of their own row in the
    strips ``behind`` it, of which the strip itself is the last. (elements, 1, columns, n + columns of those)
    """
    row, position = (torch.cat([getattr(one, of) for one in behind], 1)[:, None] for of in ("row", "position"))
    own = (strip.row[:, :, None] == row) & (strip.position[:, :, None] >= position)
    seen = torch.cat([begun.bool()[:, None].expand(-1, own.shape[1], -1), own], 2)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
