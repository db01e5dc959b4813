"""The second moment of what goes into a down projection: which directions of it are in use."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from errata.model import passes
from errata.model.gram import Gram
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.padding import pad
from errata.model.projection import KEY, WeightKeys
from errata.model.workers import in_shares


def second_moments(
    lm: HFLM, pieces: Sequence[Sequence[int]], paths: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Mean of k kᵀ over every token of the pieces, k the key of a weight: name -> (f, f); and the tokens that it saw.

    ``pieces`` are token ids, ``paths`` those of down projections. In a mixture of experts k is zero for a token that an
    expert did not see; the mean counts it all the same. float32, on the CPU.
    """
    sums, tokens = key_sums(lm, pieces, paths), sum(map(len, pieces))
    counts = {name: gram.count for name, gram in sums.items()}
    return {name: sums.pop(name).matrix().div_(tokens).cpu() for name in list(sums)}, counts


def key_sums(lm: HFLM, pieces: Sequence[Sequence[int]], paths: Sequence[str]) -> dict[str, Gram]:
    """Sum of k kᵀ over every token of the pieces, by weight; where the model runs. See :func:`second_moments`."""
    lm.check()
    totals: dict[str, Gram] = {}
    for sums in in_shares(lm, _sums, pieces, list(paths)):
        for name, gram in sums.items():
            if name in totals:
                totals[name].join(gram)
            else:
                totals[name] = gram
    return totals


def _sums(lm: HFLM, pieces: Sequence[Sequence[int]], paths: Sequence[str]) -> dict[str, Gram]:
    """Sum of k kᵀ over every token of the pieces, by weight."""
    totals: dict[str, Gram] = {}

    def add(real: Tensor, read: WeightKeys) -> None:
        chosen = real.flatten().to(read.keys.device)
        k = read.keys[chosen if read.tokens is None else chosen[read.tokens]]  # (n, f)
        if read.weight not in totals:
            totals[read.weight] = Gram(k.shape[1], k.device)
        totals[read.weight].add(k)

    lengths = [len(piece) for piece in pieces]
    with torch.no_grad():
        for batch in passes.budgeted(lengths, lm.budget, lengths):  # with little padding
            rows = pad([pieces[i] for i in batch], "right", lm.tokens.fill, lm.device)
            with lm.calling(Call(rows.mask)):
                lm.watch(rows.ids, rows.mask, {(path, KEY): partial(add, rows.mask.bool()) for path in paths})
    return {name: gram.settled() for name, gram in totals.items()}
