"""Rows of token ids, padded to one length: the only module that pads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """Rows of token ids, padded to one length."""

    ids: Tensor
    """(b, t)."""
    mask: Tensor
    """1 where there is a token, 0 where there is padding. (b, t)."""
    lengths: tuple[int, ...]
    """Tokens of each row."""


def positions_of(mask: Tensor) -> Tensor:
    """The position of each token in its row, counted without padding. (b, t)."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def pad(
    rows: Sequence[Sequence[int]], side: Literal["left", "right"], fill: int, device: Any = None, least: int = 0
) -> Padded:
    """The rows, padded on one side with the id ``fill`` to the length of the longest, and to ``least`` tokens."""
    width = max([least, *map(len, rows)])
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return Padded(ids.to(device), mask.to(device), tuple(map(len, rows)))
