"""MEND: a network rewrites the gradient of one edit, token by token."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from errata.methods.settings import setting
from errata.methods.trained.gradient.editor import GradientEditor
from errata.methods.trained.gradient.gradients import Gradients
from errata.methods.trained.gradient.network import GradientNetwork
from errata.patch.low_rank import LowRank, Weight


@dataclass(frozen=True, kw_only=True)
class MEND(GradientEditor):
    """W − α Σ δ̃ ũᵀ over the tokens of the edits, with (ũ, δ̃) = network(u, δ) and α learned for each weight.

    The sign is that of descent: the released code adds, so that its untrained editor climbs, and clears the gradient of
    α before α's own optimiser steps. Here log α is learned, at a rate of its own that acts: α stays above 0, and its
    rate means the same on any model.
    """

    name: ClassVar[str] = "mend"
    share: ClassVar[float] = 0.05  # every token of a prompt adds its part, at both matrices of each MLP
    paper: ClassVar[str] = "Mitchell et al. 2022, Fast Model Editing at Scale, arXiv:2110.11309"

    steps: int = setting(120, "of training at most; paper: 100,000 and more, at a hundredth of the learning rate")
    check_every: int = setting(30, "steps between validations, each of which writes a checkpoint")
    lr: float = setting(1e-3, "Adam's; paper: 1e-6")
    c_keep: float = setting(7.0, "weight of what must stay; paper: 1, and 0.1 for the new answers", key="cloc")
    keep: int = setting(8, "prompts to keep for each example of a step; paper: 1")

    @override
    def changes(self, network: GradientNetwork, gradients: Gradients) -> dict[str, Weight]:
        found: dict[str, Weight] = {}
        for name, g in gradients.items():
            u, delta = network(name, g.u, g.delta)
            found[name] = LowRank(-network.step_of(name) * delta.T, u)
        return found
