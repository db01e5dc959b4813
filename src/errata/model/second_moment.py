"""The second moment of what goes into a linear layer: which directions of its input are in use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.model import passes
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.tokens import pad


def second_moments(lm: HFLM, pieces: Sequence[Sequence[int]], sites: Sequence[str]) -> tuple[dict[str, Tensor], int]:
    """site -> mean of k kᵀ over every token of the pieces (f, f), float32 on the CPU; and the number of tokens."""
    totals: dict[str, Tensor] = {}
    lm.check()
    with torch.no_grad():
        for batch in passes.budgeted([len(piece) for piece in pieces], lm.budget):
            rows = pad([pieces[i] for i in batch], "right", lm.tokens.fill, lm.device)
            real = rows.mask.bool()

            def add(site: str, keys: Tensor, real: Tensor = real) -> None:
                k = keys[real.to(keys.device)].float()  # (n, f)
                totals[site] = k.T @ k + totals[site] if site in totals else k.T @ k

            with lm.calling(Call(rows.mask)):
                watched = {(s, "in"): lambda keys, s=s: add(s, keys) for s in sites}
                lm.watch(rows.ids, rows.mask, watched)
    tokens = sum(map(len, pieces))
    return {site: (total / tokens).cpu() for site, total in totals.items()}, tokens
