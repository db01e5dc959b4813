"""The wrapper that answers by language patches: p(y | x) = g · I(y | x) + (1 − g) · f(y | x).

f is the model, g the gate (:mod:`.language_gate`), and I, of an override patch, says the patch's answer and goes on as
f does. A mixture of texts, token by token: w₀ = g, p(yⱼ) = wⱼ I(yⱼ) + (1 − wⱼ) f(yⱼ), wⱼ₊₁ / (1 − wⱼ₊₁) =
I(yⱼ) / f(yⱼ) · wⱼ / (1 − wⱼ). With g above 1/2 its greedy text begins with the answer; at or below the threshold, which
is 1/2 at least, g counts as 0, and the model answers as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field
from torch import Tensor
from typing_extensions import Unpack, override

from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.memory.log import EditLog
from errata.methods.trained.routed.language_gate import Gate
from errata.methods.trained.routed.language_routing import Routing
from errata.methods.trained.routed.language_rules import Rule, rule_of
from errata.model.hf import HFLM
from errata.model.lm import LM, listed
from errata.model.sampling import Sampling, for_rows, is_drawn
from errata.model.tokens import Tokens, joined
from errata.patch.parts import Wrapper
from errata.patch.schema import Floats, Length
from errata.types import Score

if TYPE_CHECKING:
    import numpy.typing as npt

EQUAL = 0.1  # open gates that lie this much or less below the highest count as equal to it: the newest patch wins


@dataclass(frozen=True, eq=False)
class LanguagePatches(Wrapper):
    """Patches in words, in the order in which they were made, and the gate that says which one a query is under.

    ``objects`` are what the conditions' clauses end with ("Tivik"), empty for edits about one subject.
    """

    kind: ClassVar[str] = "language-patches"

    log: EditLog
    objects: Annotated[tuple[str, ...], Length("n")]
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Length("l")]
    threshold: Annotated[float, Field(ge=0.5, lt=1)]
    look: Annotated[Tensor, Floats("r *")]
    ends: Annotated[Tensor, Floats("2 r")]
    relation: Annotated[Tensor, Floats("r w")]
    alike: Annotated[Tensor, Floats("2")]
    belief: Annotated[Tensor, Floats("2")]

    @cached_property
    def gate(self) -> Gate:
        """The gate of the part's tensors."""
        return Gate.of(self.tensors())

    @cached_property
    def rules(self) -> list[Rule]:
        """What each patch says."""
        return [rule_of(record.prompt, record.subject, record.at) for record in self.log]

    @override
    def check_content(self) -> None:
        if self.look.shape[1] != 3 * self.relation.shape[1]:
            raise BadInput(f"look is {self.look.shape[1]} wide, expected 3 x {self.relation.shape[1]}")
        for rule, object_ in zip(self.rules, self.objects, strict=True):
            if bool(object_) != (rule.clause is not None) or not (rule.clause or "").endswith(object_):
                raise BadInput(f"the object {object_!r} does not end the clause {rule.clause!r}")

    @override
    def check_model(self, lm: HFLM) -> None:
        self.sizes()
        depth, width = lm.sites.prompt_stack.depth, getattr(lm.text_config, "hidden_size", None)
        if max(self.layers) >= depth or (width and len(self.layers) * width != self.relation.shape[1]):
            raise WrongModel(
                f"the language patches read blocks {list(self.layers)}, {self.relation.shape[1]} numbers in all; this "
                f"model has {depth} of the width {width}"
            )

    @override
    def wrap(self, inner: LM) -> LM:
        return PatchedLM(self, inner)

    @override
    def without(self, edit_id: str) -> "Self | None":
        left = [i for i, record in enumerate(self.log) if record.id != edit_id]
        kept = replace(self, log=tuple(self.log[i] for i in left), objects=tuple(self.objects[i] for i in left))
        return kept if left else None

    @override
    def entries(self) -> list[dict[str, Any]]:
        return [
            {"edit": record.id, "if": says(rule), "then": record.target_new, "asked": rule.asks}
            for record, rule in zip(self.log, self.rules, strict=True)
        ]

    @override
    def summary(self) -> list[dict[str, Any]]:
        numbers = sum(tensor.numel() for tensor in self.tensors().values())
        return [{"kind": self.kind, "patches": len(self.log), "numbers": numbers}]


def says(rule: Rule) -> str:
    """A rule's condition in words."""
    return f"the subject is {rule.subject}" if rule.clause is None else rule.clause.replace("{}", "the subject")


# The model behind the gate -------------------------------------------------------------------------


@dataclass(frozen=True)
class Open:
    """The patch that a query is under: its number, its gate g and the ids of its answer, as many as the model reads."""

    patch: int
    g: float
    ids: list[int]


@dataclass(frozen=True, eq=False)
class PatchedLM(LM):
    """The inner model, where no patch's gate is open, and else the mixture with the patch's answer."""

    part: LanguagePatches
    inner: LM

    @property
    def tokens(self) -> Tokens:
        """The inner model's."""
        return self.model.tokens

    @cached_property
    def model(self) -> HFLM:
        """The model inside all wrappers, which the gate reads."""
        lm: Any = self.inner
        while not isinstance(lm, HFLM):
            lm = getattr(lm, "inner", None)
            if lm is None:
                raise Unsupported(f"language patches read hidden states, and {type(self.inner).__name__} shows none")
        return lm

    @cached_property
    def routing(self) -> Routing:
        """What opens the gates."""
        part = self.part
        own = [record.prompt for record in part.log]
        return Routing(self.model, part.gate, part.layers, part.threshold, own, part.rules, part.objects)

    def gates(self, prompts: Sequence[str]) -> "npt.NDArray[np.float64]":
        """The gate of each patch for each prompt. (b, n)"""
        return self.routing.gates(prompts)

    def opened(self, prompts: Sequence[str]) -> list[Open | None]:
        """The patch that each prompt is under: of those with open gates the newest that is about as high as any."""
        found: list[Open | None] = []
        for x, row in zip(listed(prompts), self.gates(prompts), strict=True):
            is_open = row > self.part.threshold
            if not is_open.any():
                found.append(None)
                continue
            best = int(np.flatnonzero(is_open & (row >= row[is_open].max() - EQUAL))[-1])
            ids = self.tokens.beginning(x, self.part.log[best].target_new)  # the model answers long prompts, too
            found.append(Open(best, float(row[best]), ids))
        return found

    # Verbs -----------------------------------------------------------------------------------------

    @override
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
        **sampling: Unpack[Sampling],
    ) -> list[str]:
        def generated(some: Sequence[str], rows: Sequence[int], rooms: Sequence[int]) -> list[str]:
            texts = [""] * len(some)
            for room in dict.fromkeys(rooms):
                of_room = [k for k, other in enumerate(rooms) if other == room]
                asked = [some[k] for k in of_room]
                draws = for_rows(sampling, len(prompts), [rows[k] for k in of_room])
                replies = self.inner.generate(asked, room, until_answer=until_answer, until=until, **draws)
                for k, reply in zip(of_room, replies, strict=True):
                    texts[k] = reply
            return texts

        is_drawn(sampling)  # refuses what is no sampling, before the gates are asked
        if max_new_tokens < 1:
            return self.inner.generate(prompts, max_new_tokens)  # which refuses it
        return self._continued(prompts, [max_new_tokens] * len(prompts), generated)

    @override
    def stream(self, prompt: str, max_new_tokens: int = 32, **sampling: Unpack[Sampling]) -> Iterator[str]:
        """Behind an open gate in one piece."""
        (found,) = self.opened([prompt])
        return (super() if found else self.inner).stream(prompt, max_new_tokens, **sampling)

    @override
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        """As :meth:`LM.prolong`; an open patch's answer comes first, and is not drawn."""
        draws = list(range(len(prompts)) if seeds is None else seeds)

        def prolonged(some: Sequence[str], rows: Sequence[int], rooms: Sequence[int]) -> list[str]:
            chosen = [draws[i] for i in rows]
            return self.inner.prolong(some, [totals[i] for i in rows], top_k=top_k, seeds=chosen)

        rooms = [total - self.tokens.count(x) for x, total in zip(listed(prompts), totals, strict=True)]
        return self._continued(prompts, rooms, prolonged)

    def _continued(
        self,
        prompts: Sequence[str],
        rooms: Sequence[int],
        ask: Callable[[Sequence[str], Sequence[int], Sequence[int]], list[str]],
    ) -> list[str]:
        """The continuation of each prompt, of so many tokens: ``ask(texts, rows, rooms)`` is the inner model's.

        Behind an answer the model goes on; an encoder-decoder, which is fed no answer, ends with it, and so does a
        chat, in which the prompt is another's turn.
        """
        found, texts, left = self.opened(prompts), list(prompts), list(rooms)
        answers = [""] * len(prompts)
        for i, one in enumerate(found):
            if one is not None:
                texts[i], left[i] = joined(prompts[i], self.part.log[one.patch].target_new), rooms[i] - len(one.ids)
                answers[i] = self.tokens.continuation(self.tokens.prompt(prompts[i]), one.ids[: max(0, rooms[i])])
        rows = [i for i, one in enumerate(found) if one is None or (left[i] > 0 and self._goes_on(texts[i]))]
        asked = ask([texts[i] for i in rows], rows, [left[i] for i in rows]) if rows else []
        for i, text in zip(rows, asked, strict=True):
            answers[i] += text
        return answers

    def _goes_on(self, text: str) -> bool:
        limit = self.tokens.limit
        if self.model.seq2seq or self.model.chat:
            return False
        return limit is None or self.tokens.count(text) <= limit

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        scores = self.inner.score(prompts, targets)
        found = self.opened(prompts)
        return [score if one is None else mixed(score, one) for score, one in zip(scores, found, strict=True)]

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> "npt.NDArray[np.float32]":
        logprobs = self.inner.next_logprobs(prompts)
        for i, one in enumerate(self.opened(prompts)):
            if one is not None:
                first = one.ids[0]
                answer = np.logaddexp(np.log(one.g), np.log1p(-one.g) + logprobs[i, first])
                logprobs[i] += np.log1p(-one.g)
                logprobs[i, first] = answer
        return logprobs

    @override
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        """The patch that each prompt is under; then what the inner model reports."""
        inside, log = self.inner.explain(prompts), self.part.log
        return [
            lines if one is None else [f"language-patches: {log[one.patch]}, gate {one.g:.2f}", *lines]
            for lines, one in zip(inside, self.opened(prompts), strict=True)
        ]


def mixed(score: Score, one: Open) -> Score:
    """The score of the mixture, from the model's."""
    logprobs, argmax = list(score.logprobs), list(score.argmax)
    odds = float(np.log(one.g) - np.log1p(-one.g))
    for j, (token, answer) in enumerate(zip(score.tokens, one.ids, strict=False)):
        argmax[j] = answer
        rest = -float(np.logaddexp(0, odds)) + score.logprobs[j]  # log (1 − w) f
        if token != answer:
            logprobs[j] = rest
            break
        logprobs[j] = float(np.logaddexp(-np.logaddexp(0, -odds), rest))
        odds -= score.logprobs[j]
    return Score(score.tokens, tuple(logprobs), tuple(argmax))
