"""The second moment of a linear layer's input: which directions of it are in use."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from errata.model import passes
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.tokens import pad


def second_moments(lm: HFLM, pieces: Sequence[Sequence[int]], sites: Sequence[str]) -> tuple[dict[str, Tensor], int]:
    """Mean of k kᵀ over every token of the pieces, k the input of a linear: site -> (f, f); and the number of tokens.

    ``pieces`` are token ids, ``sites`` module paths. float32, on the CPU.
    """
    totals: dict[str, Tensor] = {}

    def add(site: str, real: Tensor, keys: Tensor) -> None:
        k = keys[real.to(keys.device)].float()  # (n, f)
        if site in totals:
            totals[site].addmm_(k.T, k)
        else:
            totals[site] = k.T @ k

    lm.check()
    with torch.no_grad():
        for batch in passes.budgeted([len(piece) for piece in pieces], lm.budget):
            rows = pad([pieces[i] for i in batch], "right", lm.tokens.fill, lm.device)
            with lm.calling(Call(rows.mask)):
                callbacks = {(site, "in"): partial(add, site, rows.mask.bool()) for site in sites}
                lm.watch(rows.ids, rows.mask, callbacks)
    tokens = sum(map(len, pieces))
    return {site: totals.pop(site).div_(tokens).cpu() for site in list(totals)}, tokens
