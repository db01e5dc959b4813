"""T-Patcher: a neuron for each token of a target that the model gets wrong, which is active there and nowhere else.

Huang et al. 2023, arXiv:2301.09785.
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
from errata.methods.memory.replacing import replaced
from errata.methods.neurons.added import ACTIVATIONS, MostActive, Neurons
from errata.methods.neurons.silence import Memory, Strongest
from errata.methods.neurons.training import NeuronSettings, TargetTokens, hidden_states
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.subjects import mentions

CHECK = 25  # steps between two looks at whether more would help (released code)
AGAIN = 10  # steps after which the states where a neuron is most active are looked for anew; at first after each
FALL = 1e-3  # fall of a neuron's memory loss in so many steps that still counts (released code)


class TPatcherNeurons(EditMemory[MostActive, Neurons]):
    """Neurons beside the last MLP; each edit has its own."""

    kind: ClassVar[str] = "t-patcher"


@dataclass(frozen=True, kw_only=True)
class TPatcher(NeuronSettings, MemoryMethod):
    """Neurons that are active at the wrong tokens of an edit, and silent in other texts and at older edits.

    An edit that contradicts an older one in other words has neurons at that one's prompt too, so that the newest answer
    wins there.

    The edits of one call are trained together, each with the others' q as memory, which is why hundreds take a minute.
    Keys, biases and values are trained in units of their own size, so that one rate does for every model. Values begin
    at zero, where the paper draws them 10 times as large as a normal number: with 10 edits of the bundled model's
    validation split draws of 1 and of 10 times the MLP's output gave the same answers, with values 1.2 and 4.7 times as
    long.
    """

    name: ClassVar[str] = "t-patcher"
    family: ClassVar[str] = "added neurons"
    paper: ClassVar[str] = "Huang et al. 2023, Transformer-Patcher, arXiv:2301.09785"
    stores: ClassVar[str] = "a neuron for each wrong token of an edit, beside the last MLP; no weight changes"
    part: ClassVar[type[EditMemory[Any, Any]]] = TPatcherNeurons
    height: ClassVar[Fraction] = Fraction(1)
    writes: ClassVar[bool] = True
    tags: ClassVar[Tags] = Tags(quick={"steps": 60, "lr": 0.5, "texts": 40}, memory=True)

    tokens: int = setting(5, "released code: neurons of an edit at most", above=0)
    steps: int = setting(400, "at most; released code: 2,000, of one edit", above=0)
    lr: float = setting(0.1, "of a size; released code: 1e-2 outright", above=0)
    smooth: float = setting(0.1, "released code", most=1)
    near: float = setting(10.0, "weight of the activation loss; paper: 1.0, with which paraphrases leave it silent")
    far: float = setting(10.0, "weight of the memory loss (released code, zsRE; FEVER: 5)")
    margin: float = setting(3.0, "released code: below 0, and below what the edit's own q gives")
    top: float = setting(0.025, "of the memory, where neurons are most active; released code: 1,000 of 40,000", most=1)

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        return hidden_states(lm, self.resolved_layer(lm), texts, self.memory, self.seed)

    @override
    def empty(self, lm: HFLM, state: State) -> TPatcherNeurons:
        neurons = Neurons.empty(lm, self.resolved_layer(lm), self.act)
        return TPatcherNeurons(self.site(lm), (), MostActive(decoder=lm.seq2seq), neurons)

    @override
    def train(self, lm: HFLM, old: TPatcherNeurons, log: Sequence[EditRecord], state: State) -> TPatcherNeurons:
        neurons, whole = old.payload, (*old.log, *log)
        groups = [neurons.next_group + i for i in range(len(log))]
        found = replaced(lm, old, current(old.log), log)
        facts, owners = list[EditRecord](), list[int]()  # questions, and the group of each
        for i in current(log):
            asked = {tuple(other.prompt_ids): other for other in (log[i], *(old.log[j] for j in found[i]))}
            facts += [self._asked(lm, log[i], other) for other in asked.values()]
            owners += [groups[i]] * len(asked)
        rows = [(fact.prompt_ids, fact.target_ids) for fact in facts]
        tokens = TargetTokens(lm, self.resolved_layer(lm), rows, neurons.added if len(neurons.keys) else None)
        wrong = tokens.wrong().tolist()
        chosen: list[int] = []  # tokens that get a neuron
        for fact in range(len(facts)):
            chosen += [k for k in (tokens.of == fact).nonzero()[:, 0].tolist() if wrong[k]][: self.tokens]
        if not chosen:
            return replace(old, log=whole, payload=neurons.extended(groups))
        of = tokens.of[chosen]
        memory = Memory.of(*self._memory(old, facts, owners, tokens, of, state))
        keys, biases, values = self._descend(tokens, chosen, memory, float(state.info["size"]))
        owner = torch.tensor([owners[i] for i in of.tolist()])
        rows = {"keys": keys, "biases": biases, "values": values, "owner": owner, "queries": tokens.queries[chosen]}
        return replace(old, log=whole, payload=neurons.extended(groups, **rows))

    def _asked(self, lm: HFLM, edit: EditRecord, other: EditRecord) -> EditRecord:
        """The question of an edit that this one replaces, with this one's answer."""
        return replace(other, target_ids=lm.tokens.target(other.prompt, edit.target_new))

    def _memory(
        self,
        old: TPatcherNeurons,
        facts: Sequence[EditRecord],
        owners: Sequence[int],
        tokens: TargetTokens,
        of: Tensor,
        state: State,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (m, d), and at which of them each new neuron is to be silent (n, m).

        They are those of the texts that do not name its edit's subject, those of older neurons, and those of the
        other facts of this call; not those of the prompts that its edit answers (``owners`` has the edit of each fact).
        """
        q, neurons = tokens.queries, old.payload
        memory = torch.cat([state.tensors["states"].to(q), neurons.queries.to(q), q])
        prompts = {group: record.prompt_ids for group, record in zip(neurons.groups.tolist(), old.log, strict=True)}
        others = [prompts[g] for g in neurons.owner.tolist()] + [facts[i].prompt_ids for i in tokens.of.tolist()]
        texts: list[str] = state.info["texts"]
        silent: list[Tensor] = []
        for fact, owner in zip(facts, owners, strict=True):
            named = torch.tensor([mentions(text, fact.subject) for text in texts])[state.tensors["of"]]
            own = [other.prompt_ids for other, group in zip(facts, owners, strict=True) if group == owner]
            same = torch.tensor([other in own for other in others], dtype=torch.bool)
            silent.append(~torch.cat([named, same]))
        return memory, torch.stack(silent)[of].to(q.device)

    def _descend(
        self, tokens: TargetTokens, chosen: Sequence[int], memory: Memory, size: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (n, d), biases (n,) and values (n, d) of neurons for the ``chosen`` tokens."""
        q, mean = tokens.queries[chosen], memory.states.mean(0)  # (n, d), (d,)
        apart = q - mean
        unit = 1 / (apart.norm(dim=-1, keepdim=True) * q.shape[1] ** 0.5)  # (n, 1): of a key's entry
        k = apart / apart.square().sum(-1, keepdim=True)  # activation 1 at q, as in the paper, and 0 at the mean
        b = (-k @ mean).requires_grad_()
        k, v = (k / unit).requires_grad_(), torch.zeros_like(tokens.outputs[chosen], requires_grad=True)
        act, most = ACTIVATIONS[self.act], max(1, round(self.top * len(memory.states)))
        nearest = memory.strongest(k * unit, most)

        def added(x: Tensor) -> Tensor:
            return act(linear(x, k * unit, b)) @ v * size

        adam = torch.optim.Adam([k, b, v], lr=self.lr)
        before = torch.inf
        for step in range(self.steps):
            adam.zero_grad()
            _, right = tokens.backward(added, self.smooth)
            if step < CHECK or step % AGAIN == 0:
                nearest = memory.strongest(k * unit, most)
            held = self._losses(k * unit, b, q, nearest)  # (n, 2)
            (self.near * held[:, 0].sum() + self.far * held[:, 1].sum()).backward()
            if step % CHECK == CHECK - 1:
                now = float(held.detach()[:, 1].mean())
                if right.all() and before - now < FALL:
                    break
                before = now
            adam.step()
        return k.detach() * unit, b.detach(), v.detach() * size

    def _losses(self, keys: Tensor, b: Tensor, q: Tensor, nearest: Strongest) -> Tensor:
        """For each neuron the activation loss, exp(-k q), and the memory loss of the states where it is most active.
        (n, 2)"""
        own = (keys * q).sum(-1) + b  # (n,)
        others = nearest.activity(keys) + b[:, None]  # (n, m')
        real = torch.isfinite(others)
        over = (others + self.margin).exp() + (others - own[:, None] + self.margin).exp()
        return torch.stack([(-own).exp(), (over * real).sum(-1) / real.sum(-1).clamp(min=1)], -1)
