"""What editors over gradients share: which linears, how an edit is made, and the gradient of the training objective.

A method says what change of weights the token gradients of some edits become (``changes``). Training needs no graph
through the model and the network at once: G = ∂L/∂Δ is gathered over batches of prompts, and is then handed on through
Δ alone (MALMEN, section 3.3). That is exact, since u and δ are constants: Σ ⟨G, Δ⟩ has the same gradient as L.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.methods.base import Tags
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import Example, compatible
from errata.methods.trained.gradient.changes import delta_of, dense
from errata.methods.trained.gradient.gradients import Gradients, only, token_gradients
from errata.methods.trained.gradient.network import FEW, GradientNetwork
from errata.methods.trained.mlp import MLPEditor
from errata.methods.trained.objective import Weights, mean_of, outcome, outer_gradient
from errata.methods.trained.training import Losses
from errata.model import hooks
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.model.weights import oriented, weight_shape
from errata.patch.low_rank import Weight
from errata.patch.patch import Patch
from errata.types import Edit

SHARE = 0.5  # of the size of a weight's outputs is that of a value change where keys and gradients are normalised


@dataclass(frozen=True, kw_only=True)
class GradientEditor(MLPEditor):
    """Token gradients of edits -> a change of weights, by a network that is trained for it."""

    family: ClassVar[str] = "gradients"
    stores: ClassVar[str] = "a change of weights, of low rank where the edits are few"
    tags: ClassVar[Tags] = replace(MLPEditor.tags, restates=True)  # what one wording moves reaches the other in part
    together: ClassVar[bool] = False  # whether the edits of a batch are made at once in training, or each alone
    share: ClassVar[float] = SHARE  # of the outputs' size that one token's change of them has at first
    after: ClassVar[bool] = False  # in which order the network's blocks scale: see Block
    rates: ClassVar[tuple[tuple[str, str], ...]] = (("log_step", "lr_step"),)

    tokens: Literal["all", "answer"] = setting("all", "where gradients are read: everywhere, or where answers begin")
    rank: int = setting(256, "of a block; papers: 1,920, or the width", above=0)
    blocks: int = setting(2, "as in the released code of MEND and MALMEN", key="n_blocks", above=0)
    step: float | None = setting(
        None,
        "step size at first; share · outputs / |u·ũ| of some examples; MEND: 1e-4, MALMEN: 1e-6",
        above=0,
    )
    lr_step: float = setting(1e-2, "learning rate of the step sizes' logarithms; papers: absolute", above=0)

    @abstractmethod
    def changes(self, network: Any, gradients: Gradients) -> dict[str, Weight]:
        """The change of each weight that token gradients become, inside the graph of the network's parameters."""

    @override
    def network(self, lm: HFLM) -> nn.Module:
        return self.rewriter(lm)

    def rewriter(self, lm: HFLM) -> GradientNetwork:
        """A fresh network that rewrites gradients, on the model's device."""
        shapes = {name: weight_shape(lm.model, name) for name in self.names(lm)}
        return GradientNetwork(shapes, rank=self.rank, blocks=self.blocks, after=self.after).to(lm.device)

    def rewriting(self, network: Any) -> GradientNetwork:
        """The part of the trained network that rewrites gradients."""
        return network

    @override
    def before_training(self, lm: HFLM, network: Any, examples: Sequence[Example]) -> None:
        for name, g in self.gradients(lm, examples[: self.batch]).items():
            step = self.step
            if step is None:
                step = self.share * output_size(lm, name, g.u) / _length(g.u) if len(g.u) > 1 else FEW
            self.rewriting(network).set_step(name, step)

    def observe(self, network: Any, gradients: Gradients) -> None:
        """Counts gradients in the network's statistics; in training alone."""
        for name, g in gradients.items():
            self.rewriting(network).observe(name, g.u, g.delta)

    # Training

    @override
    def backward(self, lm: HFLM, network: Any, batch: list[Example], rng: Random) -> Losses:
        some = [example.sampled(rng, self.follow, self.keep) for example in batch]
        some = compatible(some) if self.together else some
        gradients = self.gradients(lm, some)
        self.observe(network, gradients)
        if self.together:
            return self._hand_on(lm, network, gradients, some, 1.0)
        alone = [
            self._hand_on(lm, network, only(gradients, i), [example], 1 / len(some)) for i, example in enumerate(some)
        ]
        return mean_of(alone)

    def gradients(self, lm: HFLM, examples: Sequence[Example], weights: Weights | None = None) -> Gradients:
        """Token gradients of the examples' own prompts."""
        pairs = self.pairs(lm, [example.edit for example in examples])
        return token_gradients(lm, pairs, self.names(lm), weights, answers_only=self.tokens == "answer")

    def _hand_on(
        self, lm: HFLM, network: nn.Module, gradients: Gradients, examples: Sequence[Example], share: float
    ) -> Losses:
        """Adds the gradient of the objective after these edits to the network's parameters."""
        with torch.enable_grad():
            changes = dense(self.changes(network, gradients))
        asked = [asked for example in examples for asked in (example.asked, *example.follow)]
        kept = [asked for example in examples for asked in example.keep]
        losses, g = outer_gradient(lm, changes, asked, kept, c_edit=self.c_edit, c_keep=self.c_keep)
        torch.autograd.backward(list(changes.values()), [share * g[name] for name in changes])
        return losses

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Any, held: list[Example]) -> Losses:
        held = compatible(held) if self.together else held
        gradients = self.gradients(lm, held)
        if self.together:
            return outcome(lm, dense(self.changes(network, gradients)), held)
        found: list[Losses] = []
        for i, example in enumerate(held):
            changes = dense(self.changes(network, only(gradients, i)))
            found.append(outcome(lm, changes, [example]))
        return mean_of(found)

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        network, gradients = self.loaded(lm, state), self.gradients_of(lm, edits, prior)
        with torch.no_grad():
            changes = self.changes(network, gradients)
        return prior + Patch((delta_of(changes),))

    def gradients_of(self, lm: HFLM, edits: Sequence[Edit], prior: Patch) -> Gradients:
        """Token gradients of edits, with the prior patch in force."""
        with prior.without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            return token_gradients(edited, self.pairs(lm, edits), self.names(lm), answers_only=self.tokens == "answer")


def output_size(lm: HFLM, name: str, u: Tensor) -> float:
    """The root mean square of what a weight makes of inputs (k, f): the size of its outputs, without their bias."""
    weight = oriented(lm.model, name, stored.plain(lm.model, name, "cannot be read").detach())
    return float((u @ weight.to(u).T).square().mean().sqrt())


def _length(u: Tensor) -> float:
    """The mean of |u · ũ| over inputs (k, f), with ũ their normalised form: how much longer a step is by them."""
    return float((u * (u - u.mean(0)) / (u.std(0) + FEW)).sum(-1).abs().mean())
