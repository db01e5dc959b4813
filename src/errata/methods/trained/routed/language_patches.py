"""Language patches: "if c then ..." in words, for one subject or for all that meet a condition."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import State, Tags
from errata.methods.memory.log import EditRecord
from errata.methods.settings import setting
from errata.methods.trained.examples import Asked, Example
from errata.methods.trained.method import QUICK, Trained, TrainedMethod
from errata.methods.trained.routed.language_gate import Gate, Read, read
from errata.methods.trained.routed.language_part import LanguagePatches
from errata.methods.trained.routed.language_rules import object_of, rule_of
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.patch.parts import same_tensors
from errata.patch.patch import Patch
from errata.subjects import last_word
from errata.types import Edit, Kind

SUBJECTS = 32  # on which it is seen where a condition's object begins


class Prepared(Trained):
    """The state also says names of subjects."""

    subjects: list[str]


@dataclass(frozen=True, kw_only=True)
class LanguagePatchMethod(TrainedMethod):
    """Patches in words."""

    name: ClassVar[str] = "language-patches"
    paper: ClassVar[str] = "Murty et al. 2022, Fixing Model Bugs with Natural Language Patches, arXiv:2211.03318"
    stores: ClassVar[str] = "rules in words and a small gate, outside the model"
    holds: ClassVar[type[Any] | None] = Prepared
    tags: ClassVar[Tags] = Tags(quick=QUICK, prepares_with="cases", memory=True)
    keeps: ClassVar[tuple[Kind, ...]] = ("same_subject",)
    when_editing: ClassVar[tuple[str, ...]] = ("threshold",)

    steps: int = setting(300, "of training at most", above=0)
    batch: int = setting(6, "examples of a step", above=0)
    warmup: int = setting(20, "steps in which the learning rate rises; then it falls linearly to 0")
    check_every: int = setting(50, "steps between validations, each of which writes a checkpoint", above=0)
    lr: float = setting(2e-3, "Adam's", above=0)
    layers: tuple[int, ...] | None = setting(None, "blocks that the gate reads: at half and at 3/4 of the depth")
    rank: int = setting(64, "inside the gate", above=0)
    follow: int = setting(3, "prompts in other words for each example of a step", above=0)
    keep: int = setting(2, "other facts of the subject for each example of a step", above=0)
    threshold: float = setting(0.5, "gate from which on a patch answers", least=0.5, most=0.99)

    # Training

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        depth = lm.sites.prompt_stack.depth
        layers = tuple(sorted(set(self.layers or (depth // 2, 3 * depth // 4))))
        if layers[-1] >= depth:
            raise BadInput(f"{self.name}'s layers lie within 0 to {depth - 1}; found {list(layers)}")
        return replace(self, layers=layers)

    @override
    def network(self, lm: HFLM) -> Gate:
        assert self.layers is not None
        block = lm.sites.prompt_stack.layer[0]
        width = lm.read([lm.tokens.prompt("a")], [[0]], [(block, "out")])[block, "out"].shape[-1]
        return Gate.drawn(len(self.layers) * width, self.rank).to(lm.device)

    @override
    def told(self, examples: Sequence[Example]) -> dict[str, Any]:
        subjects = sorted({example.edit.subject for example in examples})
        Random(self.seed).shuffle(subjects)
        return {"subjects": subjects[:SUBJECTS]}

    @override
    def backward(self, lm: HFLM, network: Gate, batch: list[Example], rng: Random) -> Losses:
        some = [example.sampled(rng, self.follow, self.keep) for example in batch]
        asked = _Questions.of(lm, network, some, cast(Any, self.layers), rng)
        with torch.enable_grad():
            losses = {
                "whom": torch.stack([network.pointed(one, span) for one, span in asked.known]).mean(),
                "what": bce(network.asks(*asked.pairs), asked.same),
                "holds": bce(network.holds(asked.logprobs), asked.true),
            }
            loss = torch.stack(list(losses.values())).sum()
            loss.backward()
        return {"loss": float(loss.detach()), **{name: float(value.detach()) for name, value in losses.items()}}

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Gate, held: list[Example]) -> Losses:
        rng = Random(self.seed)
        some = [example.sampled(rng, self.follow, self.keep) for example in held]
        asked = _Questions.of(lm, network, some, cast(Any, self.layers), rng)
        whom = sum(int(network.spans(one).argmax()) == span for one, span in asked.known) / max(1, len(asked.known))
        what = _balanced(network.asks(*asked.pairs), asked.same)
        holds = _balanced(network.holds(asked.logprobs), asked.true)
        return {"score": (whom + what + holds) / 3, "whom": whom, "what": what, "holds": holds}

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        gate = self.loaded(lm, state)
        rules = [rule_of(edit.prompt, edit.subject, edit.at) for edit in edits]
        with prior.without_wrappers().applied(lm) as edited:
            objects = tuple(
                "" if rule.clause is None else object_of(edited, edit, rule.clause, state.info["subjects"])
                for edit, rule in zip(edits, rules, strict=True)
            )
        log = tuple(EditRecord.of(edit) for edit in edits)
        tensors = {name: tensor.cpu() for name, tensor in gate.state_dict().items()}
        part = LanguagePatches(log, objects, cast(Any, self.layers), self.threshold, **tensors)
        for held in prior.of_kind(LanguagePatches):
            if (held.layers, held.threshold) != (part.layers, part.threshold) or not same_tensors(
                held.tensors(), part.tensors()
            ):
                raise BadInput(
                    f"the {self.name} in prior have another gate or threshold ({held.threshold}); go on with the same "
                    "settings and state"
                )
            return prior.swap(held, replace(held, log=(*held.log, *log), objects=(*held.objects, *objects)))
        return prior + Patch((part,))


@dataclass
class _Questions:
    """What the gate is asked about some examples, with the right answers."""

    known: list[tuple[Read, int]]
    """Texts whose subject is known, with its span."""
    pairs: tuple[Tensor, Tensor]
    """Ends of two prompts about one subject each. (m, w)"""
    same: Tensor
    """1 where they ask for the same. (m,)"""
    logprobs: Tensor
    """Of statements about subjects. (k,)"""
    true: Tensor
    """1 where they are. (k,)"""

    @classmethod
    def of(
        cls, lm: HFLM, network: Gate, examples: Sequence[Example], layers: Sequence[int], rng: Random
    ) -> "_Questions":
        asked = [[e.asked, *e.follow, *e.keep] for e in examples]
        reads = iter(read(lm, [one.prompt for some in asked for one in some], layers))
        by_example = [[next(reads) for _ in some] for some in asked]
        known = [
            (one, span)
            for example, some in zip(examples, by_example, strict=True)
            for one in some
            if (span := one.span_of(last_word(one.text, example.edit.subject), example.edit.subject)) is not None
        ]
        a, b, same = [], [], []
        for example, some in zip(examples, by_example, strict=True):
            n = 1 + len(example.follow)
            ways, others = [r.end for r in some[:n]], [r.end for r in some[n:]]
            for i, way in enumerate(ways):
                a += [way] * (n - i - 1 + len(others))
                b += ways[i + 1 :] + others
                same += [1.0] * (n - i - 1) + [0.0] * len(others)
        device = network.look.device
        statements, true = _statements(examples, rng)
        scores = lm.score([s.prompt for s in statements], [s.answer for s in statements])
        logprobs = torch.tensor([score.total for score in scores], device=device)
        return cls(
            known,
            (torch.stack(a).to(device), torch.stack(b).to(device)),
            torch.tensor(same, device=device),
            logprobs,
            torch.tensor(true, device=device),
        )


def _statements(examples: Sequence[Example], rng: Random) -> tuple[list[Asked], list[float]]:
    """A true fact of each example's subject, and the same with another object."""
    facts = [rng.choice(example.keep) for example in examples]
    found, true = list[Asked](), list[float]()
    for fact in facts:
        others = sorted({other.answer for other in facts} - {fact.answer})
        found += [fact, *(replace(fact, answer=rng.choice(others)) for _ in others[:1])]
        true += [1.0, *(0.0 for _ in others[:1])]
    return found, true


def _balanced(odds: Tensor, right: Tensor) -> float:
    """The mean of the shares of both sides that are right."""
    hit = ((odds > 0).float() == right).float()
    sides = [hit[right == side] for side in (0.0, 1.0)]
    return sum(float(side.mean()) for side in sides if len(side)) / max(1, sum(len(side) > 0 for side in sides))
