"""CaliNet: some memory slots beside the last MLP, trained on the facts that are to be calibrated.

Dong et al. 2022, arXiv:2210.03329. Which facts the model has wrong is found by
:func:`errata.locate.belief.believes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Self, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import linear
from typing_extensions import override

from errata.methods.base import Tags
from errata.methods.memory.adapter import EditMemory, joint_training
from errata.methods.memory.log import EditRecord, current
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import Measured
from errata.methods.memory.reworded import joined, reworded_by
from errata.methods.neurons.added import ACTIVATIONS, MostActive, Neurons
from errata.methods.neurons.silence import added_noise
from errata.methods.neurons.training import NeuronSettings, TargetTokens, hidden_states
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.texts import kept_contexts
from errata.patch.patch import Patch
from errata.patch.schema import STRICT, held
from errata.subjects import mentions

NEGLIGIBLE = 0.01  # share of the MLP's output below which what slots add to other texts counts as nothing


@dataclass(frozen=True, eq=False)
class CalinetNeurons(EditMemory[MostActive, Neurons]):
    """Slots beside the last MLP; the edits of a call share theirs.

    ``reworded``: by an edit's id those of later edits that contradict it in other words.
    """

    kind: ClassVar[str] = "calinet"

    reworded: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])

    @property
    def answers(self) -> Iterator[tuple[int, int]]:
        """The edits whose prompt no later one repeats, and for each the edit whose answer its prompt has now."""
        last = {record.id: i for i, record in enumerate(self.log)}
        for i in current(self.log):
            yield i, max([i, *(last.get(id, -1) for id in self.reworded.get(self.log[i].id, ()))])

    @override
    def without(self, edit_id: str) -> "Self | None":
        if newer := [record for record in self.log if record.id in self.reworded.get(edit_id, ())]:
            raise joint_training(newer[-1], self.log, [i for i, record in enumerate(self.log) if record.id != edit_id])
        left = super().without(edit_id)
        return None if left is None else replace(left, reworded=joined(self.reworded, {}, {edit_id}))

    @override
    def config(self) -> dict[str, Any]:
        said = {"reworded": dict(self.reworded)} if self.reworded else {}
        return {**super().config(), **said}

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        reworded = held(_Reworded, {"reworded": config.get("reworded", {})}, {})
        rest = {name: value for name, value in config.items() if name != "reworded"}
        return replace(super().build(rest, tensors), **reworded)


class _Reworded(TypedDict):
    """What a file says of the slots besides what it says of all memories."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    reworded: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class CaliNet(NeuronSettings, MemoryMethod):
    """Slots that all edits of a call are trained into, by their targets alone.

    The paper's facts come in many phrasings; here their prompts stand behind a few sampled openers. Facts of earlier
    calls are trained again, so that new slots do not undo what the old ones add; one that a newer edit contradicts in
    other words is trained with the newer answer. Here slots are also trained to be silent in texts that do not name an
    edit's subject (``keep``), which the paper leaves to chance: without, nearly every other answer becomes one of the
    new ones. Values begin at zero: released code draws them, which disturbs the model before it has learned anything.
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
        reworded = joined(old.reworded, reworded_by(lm, whole, len(log), Patch((old,))))
        new = replace(old, log=whole, reworded=reworded)
        under = neurons.added if len(neurons.keys) else None
        tokens = TargetTokens(lm, self.resolved_layer(lm), self._facts(lm, new, len(old.log), state), under)
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
        return replace(new, payload=neurons.extended([group] * len(log), **rows))

    @override
    def read_once(self, lm: HFLM, state: State) -> None:
        kept_contexts(lm, state.once, self.contexts, self.seed)

    def _facts(self, lm: HFLM, memory: CalinetNeurons, first: int, state: State) -> list[tuple[list[int], list[int]]]:
        """Prompt and target (ids) of all edits in force, and behind contexts too where the answer is new: that of an
        edit from the ``first`` on."""
        log, answers = memory.log, list(memory.answers)
        facts = [
            (log[i], log[i].target_ids if i == j else lm.tokens.target(log[i].prompt, log[j].target_new))
            for i, j in answers
        ]
        new = [fact for fact, (_, j) in zip(facts, answers, strict=True) if j >= first]
        contexts = kept_contexts(lm, state.once, self.contexts, self.seed)[1:]
        return [
            *((record.prompt_ids, target) for record, target in facts),
            *((lm.tokens.prompt(context + record.prompt), target) for record, target in new for context in contexts),
        ]

    def _foreign(self, log: Sequence[EditRecord], state: State) -> Tensor:
        """Which hidden states are of texts that name no subject of these edits."""
        subjects = {record.subject for record in log}
        foreign = torch.tensor([not any(mentions(text, name) for name in subjects) for text in state.info["texts"]])
        return foreign[state.tensors["of"]]
