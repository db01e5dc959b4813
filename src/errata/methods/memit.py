"""MEMIT: many facts at once, spread over a few layers (Meng et al. 2023, arXiv:2210.07229)."""

from dataclasses import dataclass
from typing import ClassVar

from errata.lm import HFLM
from errata.methods._closed_form import ClosedForm
from errata.sites import critical_layers


@dataclass(frozen=True, kw_only=True)
class MEMIT(ClosedForm):
    """Targets at the last of the critical layers, each layer solving for its share: algorithm 1 of the paper.

    λ is LAM units of the key's width, since E[kᵀC⁻¹k] = d_ff: 27,853 for GPT-J (paper: 15,000), 10,880 for GPT-2 XL (20,000). The
    learning rate is the paper's 0.5 in units of the hidden state's length. ``history`` adds the keys of earlier
    edits to C, which the paper's sequential form leaves out.
    """

    name: ClassVar[str] = "memit"
    family: ClassVar[str] = "locate, then edit"
    paper: ClassVar[str] = "Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229"

    LAM: ClassVar[float] = 1.7

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        return critical_layers(lm.model, lm.sites)

    def default_lam(self, width: int) -> float:
        return self.LAM * width
