"""MALMEN: the changes that a network wants at each token, aggregated over many edits by least squares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from errata.methods.settings import setting
from errata.methods.trained.gradient.editor import GradientEditor, Gradients
from errata.methods.trained.gradient.least_squares import beside
from errata.methods.trained.gradient.network import GradientNetwork
from errata.model.hf import HFLM
from errata.model.projection import linears_of
from errata.model.sites import Sites
from errata.patch.low_rank import Weight

CHUNK = 1024  # tokens whose way through the network is held at once, and gone again when gradients need it


class RidgeNetwork(nn.Module):
    """MEND's network with a ridge e^λ of its own for every weight."""

    def __init__(self, network: GradientNetwork) -> None:
        super().__init__()
        self.inner = network
        self.ridge = nn.Parameter(torch.zeros(len(network.widths)))  # λ: the paper begins at 0

    def forward(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The network's (ũ, δ̃). (k, f), (k, d)"""
        return self.inner(name, u, delta)

    def ridge_of(self, name: str) -> Tensor:
        """e^λ of a weight. ()"""
        return self.ridge[list(self.inner.widths).index(name)].exp()


@dataclass(frozen=True, kw_only=True)
class LeastSquaresEditor(GradientEditor):
    """Value changes d = −η (u·ũ) δ̃ at the tokens that predict answers; Δ = Dᵀ (K Kᵀ + e^λ I)⁻¹ K over all of them.

    η and λ are learned for each weight. Statistics of u and δ are counted in training alone; the released code goes on
    counting while it validates.
    """

    together: ClassVar[bool] = True
    after: ClassVar[bool] = True
    rates: ClassVar[tuple[tuple[str, str], ...]] = (*GradientEditor.rates, ("ridge", "lr_ridge"))

    tokens: Literal["all", "answer"] = setting("answer", "the paper's for decoders; all for encoder-decoders")
    batch: int = setting(50, "edits made at once in a step; paper: 512 and more", key="n_edits", above=0)
    steps: int = setting(150, "of training at most")
    lr: float = setting(5e-4, "Adam's; paper: 1e-5", key="meta_lr")
    check_every: int = setting(25, "steps between validations, each of which writes a checkpoint")
    lr_ridge: float = setting(1e-2, "learning rate of λ", above=0)
    held_out: float = setting(0.2, "share of the subjects that validation is on, in one batch")
    c_edit: float = setting(1.0, "MALMEN, section 4: weight of the new answers")
    c_keep: float = setting(
        5.0, "weight of what must stay; paper: 1, where a neighbour is a random fact", key="loc_coef"
    )
    keep: int = setting(5, "prompts to keep for each example of a step; paper: 1")

    @override
    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The last six blocks, as in the paper's GPT-2 and GPT-J; of a model of fewer than twelve the second half."""
        depth = lm.sites.depth
        return tuple(range(depth - min(6, max(1, depth // 2)), depth))

    @override
    def linears(self, sites: Sites, layer: int) -> list[str]:
        return linears_of(sites, layer)

    @override
    def network(self, lm: HFLM) -> nn.Module:
        return RidgeNetwork(self.rewriter(lm)).to(lm.device)

    @override
    def rewriting(self, network: RidgeNetwork) -> GradientNetwork:
        return network.inner

    @override
    def changes(
        self, network: RidgeNetwork, gradients: Gradients, memory: Mapping[str, Tensor] | None = None
    ) -> dict[str, Weight]:
        """The changes, which leave the keys in a patch's ``memory`` alone."""
        found: dict[str, Weight] = {}
        for name, g in gradients.items():
            chunks = zip(g.u.split(CHUNK), g.delta.split(CHUNK), strict=True)
            if torch.is_grad_enabled():
                values = [checkpoint(_values, network, name, *chunk, use_reentrant=False) for chunk in chunks]
            else:
                values = [_values(network, name, *chunk) for chunk in chunks]
            found[name] = beside(g.u, torch.cat(values), network.ridge_of(name), memory or {}, name)
        return found


def _values(network: RidgeNetwork, name: str, u: Tensor, delta: Tensor) -> Tensor:
    """−η (u·ũ) δ̃ at each token. (k, d)"""
    new_u, new_delta = network(name, u, delta)
    return -network.inner.step_of(name) * (u * new_u).sum(-1, keepdim=True) * new_delta


@dataclass(frozen=True, kw_only=True)
class MALMEN(LeastSquaresEditor):
    """Many edits at once, whose value changes are aggregated by least squares (sections 3.2 and 3.3)."""

    name: ClassVar[str] = "malmen"
    paper: ClassVar[str] = "Tan et al. 2024, Massive Editing for LLMs via Meta Learning, arXiv:2311.04661"

    c_keep: float = setting(
        10.0, "weight of what must stay; paper: 1, where a neighbour is a random fact", key="loc_coef"
    )
    keep: int = setting(8, "prompts to keep for each example of a step; paper: 1")
