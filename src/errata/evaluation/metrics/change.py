"""How large a change of weights is: norm and rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from errata.patch.low_rank import LowRank


@dataclass(frozen=True)
class Change:
    """‖Δ‖_F, ‖Δ‖_2 and ranks of one weight's change.

    ``rank`` is the number of singular values above 1e-5 of the largest, ``effective`` is exp(-Σ p log p) with
    p = σ/Σσ: between 1 and the rank, which it is where all are equal (Roy and Vetterli 2007, EUSIPCO, definition 1).
    """

    norm: float
    spectral: float
    rank: int
    effective: float


def change_of(weights: "Mapping[str, Tensor | LowRank]") -> dict[str, Change]:
    """The change of each weight of a ``Delta`` (its ``weights``).

    Growing norms come before collapse (Gupta et al. 2024, https://arxiv.org/abs/2401.07453). Products are never
    multiplied out: with a = QR and bᵀ = Q'R', the core R R'ᵀ (r, r) has the same singular values.
    """
    return {name: _change(weight) for name, weight in weights.items()}


def _change(weight: "Tensor | LowRank") -> Change:
    import torch

    core = weight
    if not isinstance(core, torch.Tensor):
        a, b = (torch.linalg.qr(side.double()).R for side in (core.a, core.b.T))  # (r, r), (r, r)
        core = a @ b.T
    if core.ndim < 2:  # a bias
        core = core[:, None]
    values = torch.linalg.svdvals(core.double())
    top = float(values[0]) if len(values) else 0.0
    if not top:
        return Change(0.0, 0.0, 0, 0.0)
    p = values / values.sum()
    effective = float(torch.special.entr(p).sum().exp())
    return Change(float(values.norm()), top, int((values > 1e-5 * top).sum()), effective)
