"""The second moment of what goes into a down projection: which directions of it are in use."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from errata.model import passes
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.projection import KEY, WeightKeys
from errata.model.tokens import pad
from errata.model.workers import in_shares


def second_moments(
    lm: HFLM, pieces: Sequence[Sequence[int]], paths: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Mean of k kᵀ over every token of the pieces, k the key of a weight: name -> (f, f); and the tokens that it saw.

    ``pieces`` are token ids, ``paths`` those of down projections. In a mixture of experts k is zero for a token that an
    expert did not see; the mean counts it all the same. float32, on the CPU.
    """
    lm.check()
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for sums, seen in in_shares(lm, _sums, pieces, list(paths)):
        for name, count in seen.items():
            counts[name] = counts.get(name, 0) + count
            totals[name] = totals[name].add_(sums[name]) if name in totals else sums[name]
    tokens = sum(map(len, pieces))
    return {name: totals.pop(name).div_(tokens).cpu() for name in list(totals)}, counts


def _sums(lm: HFLM, pieces: Sequence[Sequence[int]], paths: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Sum of k kᵀ over every token of the pieces, by weight; and the tokens that it saw."""
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(real: Tensor, read: WeightKeys) -> None:
        chosen = real.flatten().to(read.keys.device)
        k = read.keys[chosen if read.tokens is None else chosen[read.tokens]].float()  # (n, f)
        counts[read.weight] = counts.get(read.weight, 0) + len(k)
        if read.weight in totals:
            totals[read.weight].addmm_(k.T, k)
        else:
            totals[read.weight] = k.T @ k

    with torch.no_grad():
        for batch in passes.budgeted([len(piece) for piece in pieces], lm.budget):
            rows = pad([pieces[i] for i in batch], "right", lm.tokens.fill, lm.device)
            with lm.calling(Call(rows.mask)):
                lm.watch(rows.ids, rows.mask, {(path, KEY): partial(add, rows.mask.bool()) for path in paths})
    return totals, counts
