"""What editors over gradients share: which linears, how an edit is made, and the gradient of the training objective.

A method says what change of weights the token gradients of some edits become (``changes``). Training needs no graph
through the model and the network at once: G = ∂L/∂Δ is gathered over batches of prompts, and is then handed on through
Δ alone (MALMEN, section 3.3). That is exact, since u and δ are constants: Σ ⟨G, Δ⟩ has the same gradient as L.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Method, State
from errata.methods.settings import setting
from errata.methods.trained.examples import Example, compatible
from errata.methods.trained.gradient.gradients import TokenGradients, token_gradients
from errata.methods.trained.gradient.network import GradientNetwork
from errata.methods.trained.method import TrainedMethod
from errata.methods.trained.objective import Weights, mean_of, outcome, outer_gradient
from errata.methods.trained.training import Losses
from errata.model import hooks
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.model.reading import Pair
from errata.model.sites import Sites
from errata.patch.delta import Delta, LowRank, Weight, oriented, weight_shape
from errata.patch.patch import Patch
from errata.types import Edit

SHARE = 0.5  # of the size of a weight's outputs is that of a value change where keys and gradients are normalised

Gradients = Mapping[str, TokenGradients]


@dataclass(frozen=True, kw_only=True)
class MLPWeights(Method):
    """Which weights an editor over gradients changes: linears of the MLPs of some blocks."""

    layers: tuple[int, ...] | None = setting(None, "blocks whose MLP is changed")

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        depth = lm.sites.depth
        layers = self.default_layers(lm) if self.layers is None else tuple(sorted(set(self.layers)))
        if not layers or layers[-1] >= depth:
            raise BadInput(f"{self.name}'s layers lie within 0 to {depth - 1}; found {list(layers)}")
        return replace(self, layers=layers)

    @abstractmethod
    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The blocks where the settings name none."""

    def linears(self, sites: Sites, layer: int) -> list[str]:
        """Paths of the linears of a block that are changed."""
        return [sites.mlp_out[layer]]

    def names(self, lm: HFLM) -> list[str]:
        """Parameter names of the weights that are changed; in an encoder-decoder those of both stacks."""
        assert self.layers is not None
        stacks = [lm.sites, *([lm.sites.encoder] if lm.sites.encoder else [])]
        paths = [p for sites in stacks for i in self.layers if i < sites.depth for p in self.linears(sites, i)]
        return [f"{path}.weight" for path in paths]

    def pairs(self, lm: HFLM, edits: Sequence[Edit]) -> list[Pair]:
        """Token ids of each edit's prompt and new answer."""
        return [(lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new)) for e in edits]


@dataclass(frozen=True, kw_only=True)
class GradientEditor(MLPWeights, TrainedMethod):
    """Token gradients of edits -> a change of weights, by a network that is trained for it."""

    stores: ClassVar[str] = "a change of weights, of low rank where the edits are few"
    together: ClassVar[bool] = False  # whether the edits of a batch are made at once in training, or each alone
    tokens: ClassVar[Literal["all", "answer"]] = "all"  # where gradients are read: everywhere, or where answers begin

    c_edit: float = setting(0.1, "MEND, appendix: weight of the new answers")
    c_keep: float = setting(1.0, "MEND, appendix: weight of what must stay", key="cloc")
    follow: int = setting(2, "prompts in other words for each example of a step", above=0)
    keep: int = setting(3, "prompts to keep for each example of a step", above=0)

    @abstractmethod
    def changes(self, network: Any, gradients: Gradients) -> dict[str, Weight]:
        """The change of each weight that token gradients become, inside the graph of the network's parameters."""

    def dense(self, network: Any, gradients: Gradients) -> dict[str, Tensor]:
        """:meth:`changes` as matrices (out, in)."""
        return {
            name: change.dense() if isinstance(change, LowRank) else change
            for name, change in self.changes(network, gradients).items()
        }

    def observe(self, lm: HFLM, network: Any, gradients: Gradients) -> None:
        """Counts gradients in the network's statistics; in training alone."""

    # Training

    @override
    def backward(self, lm: HFLM, network: Any, batch: list[Example], rng: Random) -> Losses:
        some = [example.sampled(rng, self.follow, self.keep) for example in batch]
        some = compatible(some) if self.together else some
        gradients = self.gradients(lm, some)
        self.observe(lm, network, gradients)
        if self.together:
            return self._hand_on(lm, network, gradients, some, 1.0)
        alone = [
            self._hand_on(lm, network, {n: g.only(i) for n, g in gradients.items()}, [example], 1 / len(some))
            for i, example in enumerate(some)
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
            changes = self.dense(network, gradients)
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
            return outcome(lm, self.dense(network, gradients), held)
        found: list[Losses] = []
        for i, example in enumerate(held):
            changes = self.dense(network, {name: g.only(i) for name, g in gradients.items()})
            found.append(outcome(lm, changes, [example]))
        return mean_of(found)

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        network = self.loaded(lm, state)
        with prior.without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            gradients = token_gradients(
                edited, self.pairs(lm, edits), self.names(lm), answers_only=self.tokens == "answer"
            )
        with torch.no_grad():
            changes = self.changes(network, gradients)
        return prior + Patch((delta_of(changes),))


def gradient_network(lm: HFLM, names: Sequence[str], **options: Any) -> GradientNetwork:
    """A fresh network for the weights of these names, on the model's device."""
    return GradientNetwork({name: weight_shape(lm, name) for name in names}, **options).to(lm.device)


def output_size(lm: HFLM, name: str, u: Tensor) -> float:
    """The root mean square of what a weight makes of inputs (k, f): the size of its outputs, without their bias."""
    weight = oriented(lm.model, name, stored.plain(lm.model, name, "cannot be read").detach())
    return float((u @ weight.to(u).T).square().mean().sqrt())


def delta_of(changes: Mapping[str, Weight]) -> Delta:
    """The changes as a part of a patch: on the CPU, dense where that is smaller."""
    return Delta({name: _stored(change) for name, change in changes.items()})


def _stored(change: Weight) -> Weight:
    small = change.compact() if isinstance(change, LowRank) else change
    if isinstance(small, LowRank):
        return LowRank(small.a.cpu().contiguous(), small.b.cpu().contiguous())
    return small.cpu().contiguous()
