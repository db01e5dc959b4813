"""MEMIT: many facts at once, spread over a few layers."""

from dataclasses import dataclass
from typing import ClassVar

from errata.methods.closed_form.base import ClosedForm


@dataclass(frozen=True, kw_only=True)
class MEMIT(ClosedForm):
    """Targets at the last of the critical layers, each layer solving for its share: algorithm 1 of the paper.

    λ is LAM x the key's width, since E[kᵀC⁻¹k] = d_ff: the paper's 15,000 for GPT-J; its 20,000 for GPT-2 XL is 3.4
    times the rule, as the two differ by that in these units. The learning rate is RATE of the hidden state's length,
    found on the bundled model: the paper's 0.5 depends on a length that it does not give. ``history`` adds the keys of
    earlier edits to C, which the paper's sequential form leaves out.
    """

    name: ClassVar[str] = "memit"
    paper: ClassVar[str] = "Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229"
