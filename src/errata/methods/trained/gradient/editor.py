"""What editors over gradients share: which linears, how an edit is made, and the gradient of the training objective.

A method says what change of weights the token gradients of some edits become (``changes``). Training needs no graph
through the model and the network at once: G = ∂L/∂Δ is gathered over batches of prompts, and is then handed on through
Δ alone (MALMEN, section 3.3). That is exact, since u and δ are constants: Σ ⟨G, Δ⟩ has the same gradient as L.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.methods.base import State
from errata.methods.trained.examples import Example, compatible
from errata.methods.trained.gradient.gradients import TokenGradients, token_gradients
from errata.methods.trained.gradient.network import GradientNetwork
from errata.methods.trained.mlp import MLPEditor
from errata.methods.trained.objective import Weights, mean_of, outcome, outer_gradient
from errata.methods.trained.training import Losses
from errata.model import hooks
from errata.model.hf import HFLM
from errata.patch.delta import Delta, LowRank, Weight, weight_shape
from errata.patch.patch import Patch
from errata.types import Edit

Gradients = Mapping[str, TokenGradients]


@dataclass(frozen=True, kw_only=True)
class GradientEditor(MLPEditor):
    """Token gradients of edits -> a change of weights, by a network that is trained for it."""

    stores: ClassVar[str] = "a change of weights of low rank"
    together: ClassVar[bool] = False  # whether the edits of a batch are made at once in training, or each alone
    answers_only: ClassVar[bool] = False  # whether gradients are read where answers are predicted, or everywhere

    @abstractmethod
    def changes(self, network: Any, gradients: Gradients) -> dict[str, Weight]:
        """The change of each weight that token gradients become, inside the graph of the network's parameters."""

    def observe(self, network: Any, gradients: Gradients) -> None:
        """Counts gradients in the network's statistics, in training alone."""

    # Training

    @override
    def backward(self, lm: HFLM, network: nn.Module, batch: list[Example], rng: Random) -> Losses:
        some = [example.sampled(rng, self.follow, self.keep) for example in batch]
        gradients = self.gradients(lm, some)
        self.observe(network, gradients)
        if self.together:
            return self._hand_on(lm, network, gradients, compatible(some), 1.0)
        alone = [
            self._hand_on(lm, network, {n: g.only(i) for n, g in gradients.items()}, [example], 1 / len(some))
            for i, example in enumerate(some)
        ]
        return mean_of(alone)

    def gradients(self, lm: HFLM, examples: Sequence[Example], weights: Weights | None = None) -> Gradients:
        """Token gradients of the examples' own prompts."""
        pairs = [example.asked.ids(lm) for example in examples]
        return token_gradients(lm, pairs, self.names(lm), weights, answers_only=self.answers_only)

    def _hand_on(
        self, lm: HFLM, network: nn.Module, gradients: Gradients, examples: Sequence[Example], share: float
    ) -> Losses:
        """Adds the gradient of the objective after these edits to the network's parameters."""
        with torch.enable_grad():
            changes = {name: _dense(change) for name, change in self.changes(network, gradients).items()}
        asked = [asked for example in examples for asked in (example.asked, *example.follow)]
        kept = [asked for example in examples for asked in example.keep]
        losses, g = outer_gradient(lm, changes, asked, kept, c_edit=self.c_edit, c_keep=self.c_keep)
        torch.autograd.backward(list(changes.values()), [share * g[name] for name in changes])
        return losses

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: nn.Module, held: list[Example]) -> Losses:
        gradients = self.gradients(lm, held)
        if self.together:
            changes = {name: _dense(change) for name, change in self.changes(network, gradients).items()}
            return outcome(lm, changes, compatible(held))
        found: list[Losses] = []
        for i, example in enumerate(held):
            changes = self.changes(network, {name: g.only(i) for name, g in gradients.items()})
            found.append(outcome(lm, {name: _dense(change) for name, change in changes.items()}, [example]))
        return mean_of(found)

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        network = self.loaded(lm, state)
        pairs = [(lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new)) for e in edits]
        with prior.without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            gradients = token_gradients(edited, pairs, self.names(lm), answers_only=self.answers_only)
        with torch.no_grad():
            changes = self.changes(network, gradients)
        return prior + Patch((Delta({name: _stored(change) for name, change in changes.items()}),))


def gradient_network(lm: HFLM, names: Sequence[str], **options: Any) -> GradientNetwork:
    """A fresh network for the weights of these names, on the model's device."""
    return GradientNetwork({name: weight_shape(lm, name) for name in names}, **options).to(lm.device)


def _dense(change: Weight) -> Tensor:
    return change.dense() if isinstance(change, LowRank) else change


def _stored(change: Weight) -> Weight:
    """As it goes into a patch: on the CPU, and dense where that is smaller."""
    small = change.compact() if isinstance(change, LowRank) else change
    if isinstance(small, LowRank):
        return LowRank(small.a.cpu().contiguous(), small.b.cpu().contiguous())
    return small.cpu().contiguous()
