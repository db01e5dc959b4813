"""MEMIT: many facts at once, spread over a few layers (Meng et al. 2023, arXiv:2210.07229)."""

from dataclasses import dataclass
from typing import ClassVar

from errata.lm import HFLM
from errata.methods._closed_form import ClosedForm
from errata.sites import critical_layers


@dataclass(frozen=True, kw_only=True)
class MEMIT(ClosedForm):
    """Targets at the last of the critical layers, each layer solving for its share: algorithm 1 of the paper.

    λ is LAM x the key's width, since E[kᵀC⁻¹k] = d_ff: the paper's 15,000 for GPT-J; its 20,000 for GPT-2 XL is 3.4
    times the rule, as the two differ by that in these units. The learning rate is RATE of the hidden state's length,
    found on the bundled model: the paper's 0.5 depends on a length that it does not give. ``history`` adds the keys of
    earlier edits to C, which the paper's sequential form leaves out. ``preserve`` (8 is a good weight) keeps what the
    model says of the subject otherwise; it is not in the paper.
    """

    name: ClassVar[str] = "memit"
    family: ClassVar[str] = "locate, then edit"
    paper: ClassVar[str] = "Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229"

    LAM: ClassVar[float] = 0.92
    RATE: ClassVar[float] = 0.19

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        return critical_layers(lm.model, lm.sites)

    def default_lam(self, width: int) -> float:
        return self.LAM * width
