# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The singular values of changes, in float64: how many are no rounding, and what the first of them hold."""

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.patch.low_rank import LowRank, Weight


def in_float64(w: Weight) -> Tensor:
    """The whole change, float64 on the CPU. (out, in)."""
    return (w.a.cpu().double() @ w.b.cpu().double()) if isinstance(w, LowRank) else w.cpu().double()


def svd(w: Weight) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, r), Σ (r,), Vᵀ (r, in), in float64. A product's comes from its factors: r³, not out · in · r."""
    if not isinstance(w, LowRank):
        return torch.linalg.svd(w.cpu().double(), full_matrices=False)
    qa, ra = torch.linalg.qr(w.a.cpu().double())  # (out, r), (r, r)
    qb, rb = torch.linalg.qr(w.b.cpu().double().T)  # (in, r), (r, r)
    u, s, vh = torch.linalg.svd(ra @ rb.T, full_matrices=False)
    return qa @ u, s, vh @ qb.T


def numeric_rank(s: Tensor, shape: Sequence[int], dtype: torch.dtype, noise: float = 0.0) -> int:
    """How many singular values, in falling order, are more than what rounding to ``dtype`` makes: σ₁ · max(shape) · ε.

    And more than ``noise``, where that is known.
    """
    if not len(s):
        return 0
    least = float(s[0]) * max(shape) * torch.finfo(dtype).eps
    return int((s > max(least, noise)).sum())


def cut(w: Weight, rank: int) -> tuple[LowRank, float]:
    """The nearest product of this rank, float64, and ‖Δ − ab‖ / ‖Δ‖, what is lost by it (Eckart and Young)."""
    u, s, vh = svd(w)
    lost = float(s[rank:].norm() / s.norm()) if s.any() else 0.0
    return LowRank((u * s)[:, :rank].contiguous(), vh[:rank].contiguous()), lost
