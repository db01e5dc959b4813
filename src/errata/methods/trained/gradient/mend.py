"""MEND: a network rewrites the gradient of one edit, token by token."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from typing_extensions import override

from errata.methods.settings import setting
from errata.methods.trained.gradient.editor import GradientEditor, Gradients, gradient_network
from errata.methods.trained.gradient.network import GradientNetwork
from errata.model.hf import HFLM
from errata.patch.delta import LowRank, Weight


@dataclass(frozen=True, kw_only=True)
class MEND(GradientEditor):
    """W − α Σ δ̃ ũᵀ over the tokens of the edits, with (ũ, δ̃) = network(u, δ) and α learned for each weight.

    The sign is that of descent: the released code adds, so that its untrained editor climbs, and clears the gradient of
    α before α's own optimiser steps. Here α has its own learning rate, ``lr_step``, that acts.
    """

    name: ClassVar[str] = "mend"
    paper: ClassVar[str] = "Mitchell et al. 2022, Fast Model Editing at Scale, arXiv:2110.11309"
    rates: ClassVar[tuple[tuple[str, str], ...]] = (("step.0", "lr_step"), ("step.1", "lr_step"))

    rank: int = setting(256, "of a block; paper: 1,920 or the width", above=0)
    blocks: int = setting(2, "paper: one hidden layer, two in the released code", key="n_hidden", above=0)
    step: float = setting(1e-4, "α at first: the paper's", key="edit_lr", above=0)
    lr_step: float = setting(1e-4, "learning rate of α: the paper's", key="lr_lr", above=0)

    @override
    def network(self, lm: HFLM) -> nn.Module:
        names = self.names(lm)
        return gradient_network(lm, names, rank=self.rank, blocks=self.blocks, after=False, step=self.step)

    @override
    def observe(self, network: GradientNetwork, gradients: Gradients) -> None:
        for name, g in gradients.items():
            network.observe(name, g.u, g.delta)

    @override
    def changes(self, network: GradientNetwork, gradients: Gradients) -> dict[str, Weight]:
        found: dict[str, Weight] = {}
        for name, g in gradients.items():
            u, delta = network(name, g.u, g.delta)
            found[name] = LowRank(-network.step_of(name) * delta.T, u)
        return found
