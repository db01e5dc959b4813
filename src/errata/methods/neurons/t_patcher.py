"""T-Patcher: a neuron for each token of an answer that the model gets wrong, which fires there and nowhere else.

Huang et al. 2023, arXiv:2301.09785.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import State, Tags
from errata.methods.neurons.base import ACTS, Lesson, NeuronMethod, Neurons, Taught, latest
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.types import Edit

CHECK = 25  # steps between two looks at whether more would help (released code)
FALL = 1e-3  # of the memory loss of a neuron in so many steps: less is none (released code)


class TPatcherNeurons(Neurons):
    """Each edit's neurons are its own."""

    kind: ClassVar[str] = "t-patcher"


@dataclass(frozen=True, kw_only=True)
class TPatcher(NeuronMethod):
    """Neurons that fire at the wrong tokens of an edit, and are silent at what is read elsewhere and at older edits.

    The edits of one call are trained together, each with the others' q as memory, which is why hundreds take minutes.
    Keys, biases and values are trained in units of their own size, so that one rate does for every model.
    """

    name: ClassVar[str] = "t-patcher"
    paper: ClassVar[str] = "Huang et al. 2023, Transformer-Patcher, arXiv:2301.09785"
    stores: ClassVar[str] = "a neuron for each wrong token of an edit, beside the last MLP; no weight changes"
    part: ClassVar[type[Neurons]] = TPatcherNeurons
    tags: ClassVar[Tags] = Tags(quick={"steps": 60, "lr": 0.5, "texts": 40})

    tokens: int = setting(5, "released code: neurons of an edit at most", above=0)
    steps: int = setting(400, "at most; released code: 2,000, of one edit", above=0)
    lr: float = setting(0.1, "of a size; released code: 1e-2 outright", above=0)
    smooth: float = setting(0.1, "released code")
    near: float = setting(10.0, "weight of the activation loss; paper: 1.0, with which paraphrases leave it silent")
    far: float = setting(10.0, "weight of the memory loss (released code, zsRE; FEVER: 5)")
    margin: float = setting(3.0, "released code: below 0, and below what the edit's own q gives")
    top: float = setting(0.025, "of the memory, where neurons are nearest to firing; released code: 1,000 of 40,000")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top > 1 or self.smooth > 1:
            raise BadInput(f"t-patcher's top and smooth are shares, 0 to 1; found {self.top} and {self.smooth}")

    def _taught(self, lm: HFLM, old: Neurons, edits: Sequence[Edit], state: State) -> Neurons:
        log = [
            Taught(e.id, e.prompt, lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new), group)
            for group, e in enumerate(edits, old.next_group)
        ]
        last = latest(log)
        subjects, facts = [edits[i].subject for i in last], [log[i] for i in last]
        lesson = Lesson(lm, old, [(its.asked, its.answer) for its in facts])
        wrong = lesson.wrong(old.says).tolist()
        chosen: list[int] = []  # tokens that get a neuron
        for fact in range(len(facts)):
            chosen += [k for k in (lesson.of == fact).nonzero()[:, 0].tolist() if wrong[k]][: self.tokens]
        if not chosen:
            return old.longer(log)
        of = lesson.of[chosen]
        memory, silent = self._memory(old, subjects, facts, lesson, of, state)
        keys, biases, values = self._descend(old, lesson, chosen, memory, silent, float(state.info["size"]))
        owner = torch.tensor([facts[i].group for i in of.tolist()])
        return old.longer(log, keys=keys, biases=biases, values=values, owner=owner, queries=lesson.queries[chosen])

    def _memory(
        self,
        old: Neurons,
        subjects: Sequence[str],
        facts: Sequence[Taught],
        lesson: Lesson,
        of: Tensor,
        state: State,
    ) -> tuple[Tensor, Tensor]:
        """(m, d) hidden states, and (n, m) at which of them each new neuron shall be silent.

        They are those of the texts that do not name its edit's subject, those of older neurons, and those of the
        other facts of this call; not those of the same question.
        """
        q = lesson.queries
        memory = torch.cat([state.tensors["states"].to(q), old.queries.to(q), q])
        asked = {edit.group: edit.asked for edit in old.log}
        theirs = [asked[g] for g in old.owner.tolist()] + [facts[i].asked for i in lesson.of.tolist()]
        texts: list[str] = state.info["texts"]
        allowed: list[Tensor] = []
        for subject, its in zip(subjects, facts, strict=True):
            named = torch.tensor([subject in text for text in texts])[state.tensors["of"]]
            same = torch.tensor([other == its.asked for other in theirs], dtype=torch.bool)
            allowed.append(~torch.cat([named, same]))
        return memory, torch.stack(allowed)[of].to(q.device)

    def _descend(
        self, old: Neurons, lesson: Lesson, chosen: Sequence[int], memory: Tensor, silent: Tensor, size: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (n, d), biases (n,) and values (n, d) of the new neurons."""
        q, mean = lesson.queries[chosen], memory.mean(0)  # (n, d), (d,)
        apart = q - mean
        unit = 1 / (apart.norm(dim=-1, keepdim=True) * q.shape[1] ** 0.5)  # (n, 1): of a key's entry
        k = apart / apart.square().sum(-1, keepdim=True)  # fires with 1 at q, as in the paper, and with 0 at the mean
        b = (-k @ mean).requires_grad_()
        k, v = (k / unit).requires_grad_(), torch.zeros_like(lesson.outs[chosen], requires_grad=True)
        act = ACTS[self.act]

        def says(x: Tensor) -> Tensor:
            return old.says(x) + act(x @ (k * unit).T + b) @ v * size

        adam = torch.optim.Adam([k, b, v], lr=self.lr)
        before = torch.inf
        for step in range(self.steps):
            adam.zero_grad()
            _, right = lesson.descend(says, self.smooth)
            held = self._held(k * unit, b, q, memory, silent)  # (n, 2)
            (self.near * held[:, 0].sum() + self.far * held[:, 1].sum()).backward()
            if step % CHECK == CHECK - 1:
                now = float(held.detach()[:, 1].mean())
                if right.all() and before - now < FALL:
                    break
                before = now
            adam.step()
        return k.detach() * unit, b.detach(), v.detach() * size

    def _held(self, keys: Tensor, b: Tensor, q: Tensor, memory: Tensor, silent: Tensor) -> Tensor:
        """(n, 2): for each neuron the activation loss, exp(-k q), and the memory loss of those that fire most."""
        own = (keys * q).sum(-1) + b  # (n,)
        most = max(1, round(self.top * len(memory)))
        others = (memory @ keys.T + b).T.masked_fill(~silent, -torch.inf).topk(most, -1).values  # (n, m')
        real = torch.isfinite(others)
        over = (others + self.margin).exp() + (others - own[:, None] + self.margin).exp()
        return torch.stack([(-own).exp(), (over * real).sum(-1) / real.sum(-1).clamp(min=1)], -1)
