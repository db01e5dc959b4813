"""KnowledgeEditor: one change from an edit's text and gradient, trained under a constraint on what must stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.methods.settings import setting
from errata.methods.trained.examples import Example
from errata.methods.trained.gradient.changes import dense
from errata.methods.trained.gradient.conditioned import TextEditor, TextNetwork
from errata.methods.trained.gradient.gradients import Gradients, only
from errata.methods.trained.objective import mean_of, outer_gradient
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.patch.low_rank import Weight
from errata.types import Edit

MET = 0.9  # share of held-out edits from which the margin is tightened: released code


class ConstrainedNetwork(TextNetwork):
    """The network, with the multiplier λ and the margin m of its constraint, which training moves."""

    multiplier: Tensor
    margin: Tensor


@dataclass(frozen=True, kw_only=True)
class KE(TextEditor):
    """ΔW = σ(η) (∇W ⊙ softmax(γ) αᵀ + softmax(δ) βᵀ), all five from the edit's text ``old >> new || prompt``.

    Trained to answer anew, min −log p(new answer), with KL(p_W ‖ p_{W+ΔW}) ≤ m on prompts to keep, by a
    multiplier that rises while that does not hold. The changes of several edits at once are summed.
    """

    name: ClassVar[str] = "ke"
    paper: ClassVar[str] = "De Cao et al. 2021, Editing Factual Knowledge in Language Models, arXiv:2104.08164"
    stores: ClassVar[str] = "a change of weights of low rank"

    c_edit: float = setting(1.0, "weight of the new answers")
    c_keep: float = setting(2.0, "λ, weight of what must stay, at first; released code: 1")
    follow: int = setting(1, "prompts in other words for each example of a step: the paper's", above=0)
    rise: float = setting(1.0, "learning rate of λ, for few steps; released code: 0.1; 0: fixed, as in MEND's port")
    margin: float = setting(0.1, "m at first: released code, BERT")
    least: float = setting(1e-3, "m in the end: released code, BERT")
    tighten: float = setting(0.8, "m's factor once more than 0.9 of the held-out edits hold: released code", most=1)

    @override
    def network(self, lm: HFLM) -> nn.Module:
        network = super().network(lm)
        network.register_buffer("multiplier", torch.tensor(self.c_keep, device=lm.device))
        network.register_buffer("margin", torch.tensor(self.margin, device=lm.device))
        return network

    @override
    def edited(self, lm: HFLM, network: TextNetwork, edits: Sequence[Edit]) -> dict[str, Weight]:
        gradients, total = self.gradients(lm, edits), dict[str, Weight]()
        for i, edit in enumerate(edits):
            for name, change in self.changes(lm, network, edit, only(gradients, i)).items():
                total[name] = total[name] + change if name in total else change
        return total

    @override
    def backward(self, lm: HFLM, network: ConstrainedNetwork, batch: list[Example], rng: Random) -> Losses:
        some = [example.sampled(rng, self.follow, self.keep) for example in batch]
        gradients = self.gradients(lm, [example.edit for example in some])
        found = [self._hand_on(lm, network, e, only(gradients, i), 1 / len(some)) for i, e in enumerate(some)]
        losses = mean_of(found)
        network.multiplier.add_(self.rise * (losses["keep"] - network.margin)).clamp_(min=0)
        return {**losses, "multiplier": float(network.multiplier)}

    def _hand_on(
        self, lm: HFLM, network: ConstrainedNetwork, example: Example, gradients: Gradients, share: float
    ) -> Losses:
        """Adds the gradient of the objective after this edit to the network's parameters."""
        self.observe(network, gradients)
        with torch.enable_grad():
            changes = dense(self.changes(lm, network, example.edit, gradients))
        asked, weight = [example.asked, *example.follow], float(network.multiplier)
        losses, g = outer_gradient(lm, changes, asked, example.keep, c_edit=self.c_edit, c_keep=weight)
        torch.autograd.backward(list(changes.values()), [share * g[name] for name in changes])
        return losses

    @override
    def score(self, lm: HFLM, network: ConstrainedNetwork, held: list[Example]) -> Losses:
        """As its base; the margin is tightened where the edits hold."""
        found = super().score(lm, network, held)
        if found["edit"] > MET:
            network.margin.mul_(self.tighten).clamp_(min=min(self.least, self.margin))
        return found
