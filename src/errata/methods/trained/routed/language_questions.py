"""What the gate of language patches is trained on: three kinds of question that cases give, with their answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from errata.methods.trained.examples import Asked, Example
from errata.methods.trained.routed.language_gate import Gate, Read, read
from errata.model.hf import HFLM
from errata.subjects import last_word


@dataclass
class Questions:
    """What the gate is asked about some examples, with the right answers.

    *Whom*: an example's texts name its subject. *What*: the edit's prompt and its other phrasings ask for one thing,
    and each of them for another than the subject's other facts. *Does it hold*: such a fact, and the same with another
    object.
    """

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

    def losses(self, gate: Gate) -> dict[str, Tensor]:
        """The gate's loss on each kind of question."""
        whom = [gate.pointed(one, span) for one, span in self.known]
        return {
            "whom": torch.stack(whom).mean() if whom else self.same.new_zeros(()),
            "what": bce(gate.asks(*self.pairs), self.same),
            "holds": bce(gate.holds(self.logprobs), self.true),
        }

    def right(self, gate: Gate) -> dict[str, float]:
        """The share of each kind of question that the gate answers rightly."""
        whom = [int(gate.spans(one).argmax()) == span for one, span in self.known]
        return {
            "whom": sum(whom) / max(1, len(whom)),
            "what": _balanced(gate.asks(*self.pairs), self.same),
            "holds": _balanced(gate.holds(self.logprobs), self.true),
        }

    @classmethod
    def of(cls, lm: HFLM, examples: Sequence[Example], layers: Sequence[int], rng: Random) -> "Questions":
        """The questions that examples give; ``layers`` are those that the gate reads."""
        asked = [[e.asked, *e.follow, *e.keep] for e in examples]
        reads = iter(read(lm, [one.prompt for some in asked for one in some], layers))
        by_example = [[next(reads) for _ in some] for some in asked]
        known = [
            (one, span)
            for example, some in zip(examples, by_example, strict=True)
            for one in some
            if (span := one.span_of(last_word(one.text, example.edit.subject), example.edit.subject)) is not None
        ]
        a, b, same = list[Tensor](), list[Tensor](), list[float]()
        for example, some in zip(examples, by_example, strict=True):
            n = 1 + len(example.follow)
            ways, others = [one.end for one in some[:n]], [one.end for one in some[n:]]
            for i, way in enumerate(ways):
                a += [way] * (n - i - 1 + len(others))
                b += ways[i + 1 :] + others
                same += [1.0] * (n - i - 1) + [0.0] * len(others)
        statements, true = _statements(examples, rng)
        scores = lm.score([one.prompt for one in statements], [one.answer for one in statements])
        logprobs = [score.total for score in scores]
        ends = torch.stack(a).to(lm.device), torch.stack(b).to(lm.device)
        return cls(known, ends, *(torch.tensor(values, device=lm.device) for values in (same, logprobs, true)))


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
