"""SLAG: KE's network as a learned optimiser, which takes steps until an edit is answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.settings import setting
from errata.methods.trained.examples import Asked, Example, compatible
from errata.methods.trained.gradient.changes import dense
from errata.methods.trained.gradient.conditioned import TextEditor, TextNetwork
from errata.methods.trained.objective import changed, mean_of, outer_gradient, right
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.model.weights import weight_shape
from errata.patch.low_rank import Weight
from errata.types import Edit

Changes = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SLAG(TextEditor):
    """KE's change, made anew from the gradient at the weights of then, up to k times or until the edit is answered.

    Trained through runs of edits in sequence: each step adds to what came before it, which is constant to it, and is
    for the new answer, in other words too, for the run's earlier edits, and for what must stay: prompts to keep, and
    what the batch has not edited yet. Edits are made one after the other.
    """

    name: ClassVar[str] = "slag"
    paper: ClassVar[str] = (
        "Hase et al. 2023, Methods for Measuring, Updating, and Visualizing Factual Beliefs in Language Models, "
        "arXiv:2111.13654"
    )
    stores: ClassVar[str] = "a dense change of some MLPs"

    c_edit: float = setting(1.0, "weight of the new answers: the paper's")
    c_keep: float = setting(1.0, "weight of what must stay: the paper's")
    follow: int = setting(1, "prompts in other words for each example of a step", above=0)
    steps: int = setting(60, "of training at most", above=0)
    check_every: int = setting(30, "steps between validations, each of which writes a checkpoint", above=0)
    k: int = setting(5, "steps of an edit at most", above=0)
    run: int = setting(4, "edits in sequence in training, r", above=0)

    @override
    def edited(self, lm: HFLM, network: TextNetwork, edits: Sequence[Edit]) -> dict[str, Weight]:
        total = self._nothing(lm)
        for edit in edits:
            for _ in range(self.k):
                if right(lm, self.pairs(lm, [edit]), changed(lm, total))[0]:
                    break
                total = _added(total, self._step(lm, network, edit, total))
        return dict[str, Weight](total)

    def _step(self, lm: HFLM, network: TextNetwork, edit: Edit, total: Changes, *, learn: bool = False) -> Changes:
        """The next change of each weight, from the gradient with ``total`` in force."""
        gradients = self.gradients(lm, [edit], changed(lm, total))
        if learn:
            self.observe(network, gradients)
        return dense(self.changes(lm, network, edit, gradients))

    def _nothing(self, lm: HFLM) -> Changes:
        return {name: torch.zeros(weight_shape(lm.model, name), device=lm.device) for name in self.names(lm)}

    # Training

    @override
    def backward(self, lm: HFLM, network: TextNetwork, batch: list[Example], rng: Random) -> Losses:
        some = compatible([example.sampled(rng, self.follow, self.keep) for example in batch])
        found: list[Losses] = []
        for start in range(0, len(some), self.run):
            total = self._nothing(lm)
            for i in range(start, min(start + self.run, len(some))):
                asked = [some[i].asked, *some[i].follow, *(example.asked for example in some[start:i])]
                kept = [*some[i].keep, *(old for example in some[i + 1 :] for old in example.old)]
                losses, total = self._learn(lm, network, some[i], total, asked, kept, 1 / len(some))
                found.append(losses)
        return mean_of(found)

    def _learn(
        self,
        lm: HFLM,
        network: TextNetwork,
        example: Example,
        total: Changes,
        asked: Sequence[Asked],
        kept: Sequence[Asked],
        share: float,
    ) -> tuple[Losses, Changes]:
        """Adds the gradients of an edit's steps to the network's parameters; their mean losses, and the new total."""
        found: list[Losses] = []
        for _ in range(self.k):
            on = changed(lm, total)
            with torch.enable_grad():
                step = self._step(lm, network, example.edit, total, learn=True)
            losses, g = outer_gradient(lm, step, asked, kept, c_edit=self.c_edit, c_keep=self.c_keep, on=on)
            torch.autograd.backward(list(step.values()), [share * g[name] for name in step])
            found.append(losses)
            total = _added(total, step)
            if right(lm, self.pairs(lm, [example.edit]), changed(lm, total))[0]:
                break
        return mean_of(found), total


def _added(total: Changes, step: Changes) -> Changes:
    return {name: change + step[name].detach() for name, change in total.items()}
