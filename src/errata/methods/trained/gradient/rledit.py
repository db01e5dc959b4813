"""RLEdit: MALMEN's network, trained on whole sequences of edits so that the earlier ones last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import Example, compatible
from errata.methods.trained.gradient.changes import delta_of, dense
from errata.methods.trained.gradient.gradients import Gradients, only
from errata.methods.trained.gradient.malmen import LeastSquaresEditor
from errata.methods.trained.objective import changed, mean_of, outcome, outer_gradient
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.model.weights import stem
from errata.patch.memory import freed, remember, sites_of
from errata.patch.patch import Patch
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class RLEdit(LeastSquaresEditor):
    """At turn t the change Δ_t is made on those before it, and costs Σ_j decay^j L(turn t − j) + norm ‖Δ_t‖².

    L is the objective of MALMEN. The gradients of all turns of a sequence make one step. Here the earlier turns are
    represented by as many of their examples as a turn has, drawn with probability ∝ decay^j, and gradients are clipped
    once a step, not at each turn. With ``history`` a turn's least squares counts the keys of the turns before, at which
    nothing is to change, as UltraEdit's does; an edit of a prompt that was edited before may move its own keys again.
    On the bundled model's validation cases, 200 edits by 20, trained without: of the first hundred 0.87 are answered in
    the end with history when editing, and 0.77 without; of their neighbours 0.79 and 0.69.

    In the released code the norm's term has no gradient, and the divergence's backward pass runs on weights from which
    the change has been taken off again; here both are as in the paper.
    """

    name: ClassVar[str] = "rledit"
    share: ClassVar[float] = 0.25  # what one turn moves, the next ones are to leave
    paper: ClassVar[str] = "Li et al. 2025, Reinforced Lifelong Editing for Language Models, arXiv:2502.05759"

    batch: int = setting(20, "edits of a turn: the released code's", key="n_edits", above=0)
    turns: int = setting(5, "of a sequence in training", above=0)
    steps: int = setting(60, "sequences of training at most")
    check_every: int = setting(10, "sequences between validations, each of which writes a checkpoint")
    back_depth: int = setting(10, "earlier turns that count: the released code's", above=0)
    decay: float = setting(0.95, "of a turn's weight with each that follows: the released code's", most=1)
    history: bool = setting(True, "whether a turn leaves the keys of earlier ones alone; the paper's: no")
    norm: float = setting(1e-4, "weight of ‖Δ‖²: the released code's", key="reg_coef")
    lr: float = setting(1e-3, "Adam's; released code: 1e-5", key="meta_lr")
    lr_step: float = setting(2e-2, "learning rate of the step sizes' logarithms: sequences are few")

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        if not self.history:
            return super()._edit(lm, edits, state, prior)
        gradients = self.gradients_of(lm, edits, prior)
        memory = self._memory(gradients, edits, prior)
        with torch.no_grad():
            changes = self.changes(self.loaded(lm, state), gradients, memory)
        return replace(prior + Patch((delta_of(changes),)), memory=_remembered(memory, gradients))

    def _memory(self, gradients: Gradients, edits: Sequence[Edit], prior: Patch) -> dict[str, Tensor]:
        """Keys of earlier edits, without those of prompts that are edited again."""
        made = [record for record in prior.meta.get("made", ()) if record["method"] == self.name]
        if any(record["resolved"]["history"] for record in made) and not sites_of(prior.memory):
            raise BadInput(
                "the patch was saved without its memory, which RLEdit goes on from; keep memory=True (no --no-memory)"
            )
        asked = {Edit.from_json(edit).prompt for record in made for edit in record["edits"]}
        memory = dict(prior.memory)
        for i, edit in enumerate(edits):
            for name, g in only(gradients, i).items() if edit.prompt in asked else ():
                memory = freed(memory, stem(name), g.u)
        return memory

    @property
    @override
    def per_step(self) -> int:
        return self.batch * self.turns

    @override
    def backward(self, lm: HFLM, network: Any, batch: list[Example], rng: Random) -> Losses:
        some = compatible([example.sampled(rng, self.follow, self.keep) for example in batch])
        turns = self._turns(some)
        total: dict[str, Tensor] = {}
        memory: dict[str, Tensor] = {}
        found: list[Losses] = []
        for t, turn in enumerate(turns):
            gradients = self.gradients(lm, turn, changed(lm, total))
            self.observe(network, gradients)
            with torch.enable_grad():
                changes = dense(self.changes(network, gradients, memory))
            memory = _remembered(memory, gradients) if self.history else memory
            losses, g = self._cost(lm, changes, total, turns[max(0, t - self.back_depth + 1) : t + 1], rng)
            pulls = [(g[name] + 2 * self.norm * changes[name].detach()) / len(turns) for name in changes]
            torch.autograd.backward(list(changes.values()), pulls)
            total = _sum(total, changes)
            found.append(losses)
        return mean_of(found)

    def _turns(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        return [examples[i : i + self.batch] for i in range(0, len(examples), self.batch)]

    def _cost(
        self,
        lm: HFLM,
        changes: Mapping[str, Tensor],
        total: Mapping[str, Tensor],
        turns: Sequence[Sequence[Example]],
        rng: Random,
    ) -> tuple[Losses, dict[str, Tensor]]:
        """The cost of a turn, the last of ``turns``, without the norm's term, and its gradient by the change."""
        weights = [self.decay**j for j in range(len(turns) - 1, 0, -1)]
        earlier: list[Example] = []
        if weights:
            drawn = rng.choices(range(len(weights)), weights, k=len(turns[-1]))
            earlier = [rng.choice(turns[i]) for i in drawn]
        found: list[tuple[float, Losses, dict[str, Tensor]]] = []
        for weight, examples in ((1.0, turns[-1]), (sum(weights), earlier)):
            if not examples:
                continue
            follow = [asked for example in examples for asked in (example.asked, *example.follow)]
            keep = [asked for example in examples for asked in example.keep]
            on = changed(lm, total)
            losses, g = outer_gradient(lm, changes, follow, keep, c_edit=self.c_edit, c_keep=self.c_keep, on=on)
            found.append((weight, losses, g))
        losses = {name: sum(w * losses[name] for w, losses, _ in found) for name in found[0][1]}
        return losses, {name: sum((w * g[name] for w, _, g in found), torch.zeros(())) for name in changes}

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Any, held: list[Example]) -> Losses:
        held = compatible(held)
        total: dict[str, Tensor] = {}
        memory: dict[str, Tensor] = {}
        for turn in self._turns(held):
            gradients = self.gradients(lm, turn, changed(lm, total))
            total = _sum(total, dense(self.changes(network, gradients, memory)))
            memory = _remembered(memory, gradients) if self.history else memory
        return outcome(lm, total, held)


def _remembered(memory: dict[str, Tensor], gradients: Gradients) -> dict[str, Tensor]:
    """The memory with the keys of these edits."""
    for name, g in gradients.items():
        memory = remember(memory, stem(name), g.u.cpu())
    return memory


def _sum(total: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: total.get(name, 0) + change.detach() for name, change in changes.items()}
