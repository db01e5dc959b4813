"""CaliNet: some memory slots beside the last MLP, trained on the facts that are to be calibrated.

Dong et al. 2022, arXiv:2210.03329. Which facts the model has wrong is found by
:func:`errata.locate.belief.believes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear
from typing_extensions import override

from errata.methods.base import Tags
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord, current
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import Measured
from errata.methods.neurons.added import ACTIVATIONS, MostActive, Neurons
from errata.methods.neurons.silence import added_noise
from errata.methods.neurons.training import NeuronSettings, TargetTokens, hidden_states
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.texts import kept_contexts
from errata.subjects import mentions

NEGLIGIBLE = 0.01  # share of the MLP's output below which what slots add to other texts counts as nothing


class CalinetNeurons(EditMemory[MostActive, Neurons]):
    """Slots beside the last MLP; the edits of a call share theirs."""

    kind: ClassVar[str] = "calinet"


@dataclass(frozen=True, kw_only=True)
class CaliNet(NeuronSettings, MemoryMethod):
    """Slots that all edits of a call are trained into, by their targets alone.

    The paper's facts come in many phrasings; here their prompts stand behind a few sampled openers. Facts of earlier
    calls are trained again, so that new slots do not undo what the old ones add. Here slots are also trained to be
    silent in texts that do not name an edit's subject (``keep``), which the paper leaves to chance: without, nearly
    every other answer becomes one of the new ones. Values begin at zero: released code draws them, which disturbs the
    model before it has learned anything.
    """

    name: ClassVar[str] = "calinet"
    family: ClassVar[str] = "added neurons"
    paper: ClassVar[str] = "Dong et al. 2022, Calibrating Factual Knowledge in PLMs, arXiv:2210.03329"
    stores: ClassVar[str] = "a few slots, keys and values, beside the last MLP; no weight changes"
    part: ClassVar[type[EditMemory[Any, Any]]] = CalinetNeurons
    height: ClassVar[Fraction] = Fraction(1)
    writes: ClassVar[bool] = True
    tags: ClassVar[Tags] = Tags(quick={"steps": 30, "slots": 8, "contexts": 0, "texts": 40}, memory=True)

    slots: int = setting(64, "of a call; paper: 64 for 100 facts", above=0)
    steps: int = setting(200, "at most; paper: 5,000, of all facts", above=0)
    lr: float = setting(0.02, "of a size; released code: Adafactor's 1e-2", above=0)
    stop: float = setting(0.05, "loss of a token below which it is left alone")
    contexts: int = setting(3, "sampled openers, as phrasings")
    keep: float = setting(1.0, "weight, for each token, of what the slots add to other texts (mean square); paper: 0")

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        return hidden_states(lm, self.resolved_layer(lm), texts, self.memory, self.seed)

    @override
    def empty(self, lm: HFLM, state: State) -> CalinetNeurons:
        neurons = Neurons.empty(lm, self.resolved_layer(lm), self.act)
        return CalinetNeurons(self.site(lm), (), MostActive(decoder=lm.seq2seq), neurons)

    @override
    def train(self, lm: HFLM, old: CalinetNeurons, log: Sequence[EditRecord], state: State) -> CalinetNeurons:
        neurons, whole = old.payload, (*old.log, *log)
        under = neurons.added if len(neurons.keys) else None
        tokens = TargetTokens(lm, self.resolved_layer(lm), self._facts(lm, old, log, state), under)
        q, size = tokens.queries, float(tokens.outputs.square().mean().sqrt())
        d = q.shape[1]
        others = state.tensors["states"][self._foreign(log, state)].to(q)
        unit = 1 / (float(q.square().mean().sqrt()) * d**0.5)  # of a key's entry: a linear layer's own scale
        k = (2 * torch.rand(self.slots, d, dtype=torch.float32) - 1).to(q).requires_grad_()
        b = q.new_zeros(self.slots, requires_grad=True)
        v = q.new_zeros(self.slots, tokens.outputs.shape[1], requires_grad=True)
        act = ACTIVATIONS[self.act]
        adam = torch.optim.Adam([k, b, v], lr=self.lr)
        quiet: Tensor | None = None
        for _ in range(self.steps):
            adam.zero_grad()
            nlls, _ = tokens.backward(lambda x: act(linear(x, k * unit, b)) @ v * size, stop=self.stop, quiet=quiet)
            noise, quiet = added_noise(act, others, k * unit, b, v), nlls < self.stop
            if quiet.all() and (not self.keep or noise.item() < NEGLIGIBLE**2):
                break
            (self.keep * len(nlls) * noise).backward()
            adam.step()
        group = neurons.next_group
        rows = {"keys": k * unit, "biases": b, "values": v * size, "owner": torch.full((self.slots,), group)}
        return replace(old, log=whole, payload=neurons.extended([group] * len(log), **rows))

    @override
    def read_once(self, lm: HFLM, state: State) -> None:
        kept_contexts(lm, state.once, self.contexts, self.seed)

    def _facts(
        self, lm: HFLM, old: CalinetNeurons, log: Sequence[EditRecord], state: State
    ) -> list[tuple[list[int], list[int]]]:
        """Prompt and target (ids) of all edits in force, and of the new ones behind contexts too."""
        whole = (*old.log, *log)
        live = current(whole)
        contexts = kept_contexts(lm, state.once, self.contexts, self.seed)[1:]
        new = [whole[i] for i in live if i >= len(old.log)]
        return [
            *((whole[i].prompt_ids, whole[i].target_ids) for i in live),
            *((lm.tokens.prompt(context + fact.prompt), fact.target_ids) for fact in new for context in contexts),
        ]

    def _foreign(self, log: Sequence[EditRecord], state: State) -> Tensor:
        """Which hidden states are of texts that name no subject of these edits."""
        subjects = {record.subject for record in log}
        foreign = torch.tensor([not any(mentions(text, name) for name in subjects) for text in state.info["texts"]])
        return foreign[state.tensors["of"]]
