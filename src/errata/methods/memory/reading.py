"""What flows at a site while prompts run: the tensors that look-ups and training start from, and their spread."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.methods.losses import means, token_losses
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.parts import output_replaced

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]  # ids of a prompt, and of the target that follows it
Keep = Callable[[list[int], Call, Tensor, Tensor], None]  # (batch, call, x (b, t, f), y (b, t, d))

Measured = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and JSON of a state

GRID = 10_001  # quantiles that a state keeps


@torch.no_grad()
def observe(
    lm: HFLM, site: str, rows: Rows, batches: Iterable[list[int]], keep: Keep, reads: str | None = None
) -> None:
    """Calls ``keep`` with the input and output of ``site`` for each batch of rows; each pass stops there."""
    for batch in batches:

        def seen(call: Call, x: Tensor, y: Tensor, batch: list[int] = batch) -> Tensor:
            keep(batch, call, x, y)
            raise hooks.Stop

        try:
            with output_replaced(lm, site, seen, reads):
                lm.target_logits([rows[i] for i in batch])
        except hooks.Stop:
            pass


def row_losses(logits: Tensor, rows: Rows) -> Tensor:
    """Mean loss of a target token for each row, from the logits (k, V) that predict all targets in order. (b,)"""
    targets = torch.tensor([token for _, target in rows for token in target], device=logits.device)
    return means(token_losses(logits, targets), [len(target) for _, target in rows])


def pair_quantiles(similarity: Tensor) -> Tensor:
    """GRID quantiles, float32, of a symmetric matrix's entries above its diagonal."""
    n = len(similarity)
    pairs = similarity[*torch.triu_indices(n, n, 1)].sort().values
    return pairs[torch.linspace(0, len(pairs) - 1, GRID).long()].float()


def quantile(grid: Tensor, share: float) -> float:
    """The value that ``share`` of all fall short of, from sorted quantiles."""
    return float(grid[round(share * (len(grid) - 1))])
