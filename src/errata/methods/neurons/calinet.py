"""CaliNet: some slots of memory beside the last MLP, trained on the facts that shall be calibrated.

Dong et al. 2022, arXiv:2210.03329. What the model believes falsely is found by
:func:`errata.locate.belief.believes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from errata.methods.base import State, Tags
from errata.methods.neurons.base import ACTS, Lesson, NeuronMethod, Neurons, Taught, latest
from errata.methods.settings import setting
from errata.methods.texts import contexts_of
from errata.model.hf import HFLM
from errata.types import Edit

STILL = 0.01  # of what the MLP says: slots that say less in other texts say nothing there


class CalinetNeurons(Neurons):
    """The edits of a call share their slots."""

    kind: ClassVar[str] = "calinet"


@dataclass(frozen=True, kw_only=True)
class CaliNet(NeuronMethod):
    """Slots that all edits of a call are trained into, by their answers alone.

    The paper's facts come in many phrasings; here they are asked behind a few sampled openers. Facts of earlier calls
    are asked again, so that new slots do not undo what the old ones say. What the paper leaves to chance is asked for
    (``keep``): that slots be still in texts that do not name an edit's subject. Without, nearly every other answer
    becomes one of the new ones. Values begin at zero: released code draws them, which disturbs the model before it
    has learned anything.
    """

    name: ClassVar[str] = "calinet"
    paper: ClassVar[str] = "Dong et al. 2022, Calibrating Factual Knowledge in PLMs, arXiv:2210.03329"
    stores: ClassVar[str] = "a few slots, keys and values, beside the last MLP; no weight changes"
    part: ClassVar[type[Neurons]] = CalinetNeurons
    tags: ClassVar[Tags] = Tags(quick={"steps": 30, "slots": 8, "contexts": 0, "texts": 40})

    slots: int = setting(64, "of a call; paper: 64 for 100 facts", above=0)
    steps: int = setting(200, "at most; paper: 5,000, of all facts", above=0)
    lr: float = setting(0.02, "of a size; released code: Adafactor's 1e-2", above=0)
    stop: float = setting(0.05, "loss of a token below which it is left alone")
    contexts: int = setting(3, "sampled openers, as phrasings")
    keep: float = setting(1.0, "weight, for each token, of what the slots say in other texts (mean square); paper: 0")

    def _taught(self, lm: HFLM, old: Neurons, edits: Sequence[Edit], state: State) -> Neurons:
        log = [
            Taught(e.id, e.prompt, lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new), old.next_group)
            for e in edits
        ]
        whole = (*old.log, *log)
        asked = [whole[i] for i in latest(whole)]
        new = [its for its in asked if its.group == old.next_group]
        contexts = contexts_of(lm, self.contexts, self.seed)[1:]
        facts = [
            *((its.asked, its.answer) for its in asked),
            *((lm.tokens.prompt(context + its.prompt), its.answer) for its in new for context in contexts),
        ]
        lesson = Lesson(lm, old, facts)
        q, size = lesson.queries, float(lesson.outs.square().mean().sqrt())
        d = q.shape[1]
        memory = state.tensors["states"][self._foreign(edits, state)].to(q)
        unit = 1 / (float(q.square().mean().sqrt()) * d**0.5)  # of a key's entry: a linear layer's own scale
        k = (2 * torch.rand(self.slots, d, dtype=torch.float32) - 1).to(q).requires_grad_()
        b = q.new_zeros(self.slots, requires_grad=True)
        v = q.new_zeros(self.slots, lesson.outs.shape[1], requires_grad=True)

        def said(x: Tensor) -> Tensor:
            return ACTS[self.act](x @ (k * unit).T + b) @ v

        adam = torch.optim.Adam([k, b, v], lr=self.lr)
        for _ in range(self.steps):
            adam.zero_grad()
            costs, _ = lesson.descend(lambda x: old.says(x) + said(x) * size, stop=self.stop)
            heard = said(memory).square().mean(-1).sum() / max(1, len(memory))
            if (costs < self.stop).all() and (not self.keep or heard.item() < STILL**2):
                break
            (self.keep * len(costs) * heard).backward()
            adam.step()
        owner = torch.full((self.slots,), old.next_group)
        return old.longer(log, keys=k * unit, biases=b, values=v * size, owner=owner)

    def _foreign(self, edits: Sequence[Edit], state: State) -> Tensor:
        """Which hidden states are of texts that name no subject of these edits."""
        names = {edit.subject for edit in edits}
        foreign = torch.tensor([not any(name in text for name in names) for text in state.info["texts"]])
        return foreign[state.tensors["of"]]
