"""The wrapper that takes a question over several hops apart, each step answered by the edited model.

An edit changes what follows from it, too: who was born in Lima now was born in Peru. The model below all wrappers
writes a sub-question, the edited model answers it as any question, and so on, as in self-ask (Press et al. 2022,
arXiv:2210.03350) and MeLLo (Zhong et al. 2023, arXiv:2305.14795):

    Question: In which country was Mira Dall born?
    Subquestion: Where was Mira Dall born?
    Intermediate answer: Lima                                 <- the edited model's, all other lines are the model's
    Subquestion: In which country is Lima?
    Intermediate answer: Peru
    Final answer:

The answer of an edit must be among the steps: only then the chain stands in the prompt's place. Every other prompt goes
on unchanged, and so does one that asks for an edit's fact itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, cast

from pydantic import Field
from typing_extensions import TypedDict, Unpack, override

from errata.answers import answer_of, begins_with_answer, normalise
from errata.methods.assured.questions import slot
from errata.methods.memory.log import EditLog, EditRecord, newest
from errata.methods.memory.logged import LoggedWrapper
from errata.model.lm import LM, check_targets, listed
from errata.model.sampling import Sampling, for_rows
from errata.model.tokens import Tokens
from errata.patch.schema import STRICT, read
from errata.subjects import mentions
from errata.types import Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")

QUESTION, SUBQUESTION, FINAL = "Question:", "Subquestion:", "Final answer:"
LAID_OUT = re.compile(r"\s*Q(?:uestion)?:\s*(.+?)\s*A(?:nswer)?:[^\n]*", re.DOTALL)  # a question laid out as a prompt
ROOM = 32  # tokens for a line, and left for an answer
MOST_ROUNDS = 100  # that a file may ask for
STEP = "Subquestion: {question}\nIntermediate answer: {answer}\n"
ASK = "Q: {question} A:"
EXAMPLES = """Question: In which country was the author of The Old Man and the Sea born?
Subquestion: Who wrote The Old Man and the Sea?
Intermediate answer: Ernest Hemingway
Subquestion: In which country was Ernest Hemingway born?
Intermediate answer: the United States
Final answer: the United States

Question: What is the capital of Norway?
Subquestion: What is the capital of Norway?
Intermediate answer: Oslo
Final answer: Oslo

Question: Which language is spoken in the city where the Louvre is?
Subquestion: In which city is the Louvre?
Intermediate answer: Paris
Subquestion: Which language is spoken in Paris?
Intermediate answer: French
Final answer: French

"""


@dataclass
class Chain:
    """A question on its way: the text so far, and the edits whose answers are among the steps."""

    question: str
    text: str
    composed: bool  # known to ask over several hops
    steps: list[str] = field(default_factory=list[str])
    used: list[EditRecord] = field(default_factory=list[EditRecord])
    ended: bool = False

    @property
    def fires(self) -> bool:
        """Whether it came to an end through an edit, over several steps."""
        several = len(self.steps) > 1 and (self.composed or normalise(self.steps[0]) != normalise(self.question))
        return self.ended and bool(self.used) and several


class HopSettings(TypedDict):
    """The settings of a :class:`HopChain`."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    method: str
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)]
    examples: str
    step: str
    ask: str
    asks: list[str]
    hops: list[list[str]]


@dataclass(frozen=True, eq=False)
class HopChain(LoggedWrapper):
    """Edits whose answers are followed through questions over several hops.

    ``settings`` hold the ``method``; at most how many ``rounds``; the ``examples`` before a chain; how a ``step`` of it
    is laid out, and how the edited model is asked (``ask``); templates that ask for one fact (``asks``); and in groups
    those that ask over several ``hops``, by which a text to continue becomes the question of its group.
    """

    kind: ClassVar[str] = "hops"
    declares: ClassVar[type[Any]] = HopSettings

    log: EditLog
    settings: Mapping[str, Any]

    @override
    def check_content(self) -> None:
        read(self.declares, self.settings)

    @cached_property
    def in_use(self) -> list[int]:
        """Indices of the edits whose prompt no later edit repeats."""
        return newest(" ".join(record.prompt.split()).casefold() for record in self.log)

    @cached_property
    def facts(self) -> EditLog:
        """The edits in use, in order."""
        return tuple(self.log[i] for i in self.in_use)

    @cached_property
    def single(self) -> list[re.Pattern[str]]:
        """What matches prompts that ask for one fact."""
        return [slot(template) for template in self.settings["asks"]]

    @cached_property
    def composed(self) -> list[tuple[re.Pattern[str], str]]:
        """What matches prompts that ask over several hops, each with a question that asks the same."""
        groups = [(group, next(filter(None, map(question_in, group)), "")) for group in self.settings["hops"]]
        return [(slot(template), question) for group, question in groups for template in group if question]

    @cached_property
    def direct(self) -> set[str]:
        """The questions that edits answer themselves."""
        return {normalise(self.asked(fact.prompt)[0]) for fact in self.facts}

    def asked(self, prompt: str) -> tuple[str, bool]:
        """The question that a prompt asks, empty for none, and whether it is known to be one over several hops."""
        for pattern, question in self.composed:
            if found := pattern.fullmatch(prompt):
                return question.replace("{}", found[1]), True
        return question_in(prompt), False

    def chain(self, prompt: str) -> Chain | None:
        """The beginning of a prompt's chain; None for one that asks for one fact, or is no question."""
        question, composed = self.asked(prompt)
        if not question or normalise(question) in self.direct:
            return None
        if not composed and any(pattern.fullmatch(prompt) for pattern in self.single):
            return None
        return Chain(question, f"{self.settings['examples']}{QUESTION} {question}\n", composed)

    def used(self, question: str, answer: str) -> list[EditRecord]:
        """The edits about whose subject a question is, and whose target its answer is."""
        named = (fact for fact in self.facts if mentions(question, fact.subject))
        return [fact for fact in named if begins_with_answer(answer, [fact.target_new])]

    @override
    def wrap(self, inner: LM) -> LM:
        return HopLM(self, inner)

    @override
    def summary(self) -> list[dict[str, Any]]:
        return [{"kind": self.kind, "method": self.settings["method"], "facts": len(self.log)}]


def question_in(prompt: str) -> str:
    """The question that a prompt asks; empty where it is a text to continue."""
    laid_out = LAID_OUT.fullmatch(prompt)
    return laid_out[1] if laid_out else prompt.strip() if prompt.rstrip().endswith("?") else ""


@dataclass(frozen=True, eq=False)
class HopLM(LM):
    """The inner model, which continues the chain of a question over several hops in the question's place."""

    part: HopChain
    inner: LM

    @cached_property
    def below(self) -> LM:
        """The model below all wrappers: told facts, it would answer a question instead of asking another."""
        below: Any = self.inner
        while hasattr(below, "inner"):
            below = below.inner
        return below

    @property
    def tokens(self) -> Tokens | None:
        """The inner model's, where it has any."""
        return getattr(self.inner, "tokens", None)

    def chains(self, prompts: Sequence[str]) -> list[Chain | None]:
        """The chain of each prompt that has one which fires."""
        begun = [self.part.chain(prompt) if isinstance(cast(Any, prompt), str) else None for prompt in listed(prompts)]
        going = [chain for chain in begun if chain is not None]
        for _ in range(self.part.settings["rounds"] + 1):
            if not (going := [chain for chain in going if self._fits(chain.text)]):
                break
            going = self._advanced(going)
        return [chain if chain is not None and chain.fires else None for chain in begun]

    def _advanced(self, chains: Sequence[Chain]) -> list[Chain]:
        """The chains that go on, each with one step more: a sub-question, and the edited model's answer."""
        settings = self.part.settings
        lines = self.below.generate([chain.text for chain in chains], ROOM, until=("\n",))
        asking: list[tuple[Chain, str]] = []
        for chain, line in zip(chains, lines, strict=True):
            head, _, question = line.strip().split("\n")[0].partition(":")
            chain.ended = f"{head}:" == FINAL
            if f"{head}:" == SUBQUESTION and question.strip():
                asking.append((chain, question.strip()))
        prompts = [settings["ask"].replace("{question}", question) for _, question in asking]
        texts = self.inner.generate(prompts, ROOM, until_answer=True) if prompts else []
        for (chain, question), text in zip(asking, texts, strict=True):
            chain.steps.append(question)
            chain.used += self.part.used(question, text)
            chain.text += settings["step"].replace("{question}", question).replace("{answer}", answer_of(text))
        return [chain for chain, _ in asking]

    def _fits(self, text: str) -> bool:
        tokens = self.tokens
        return tokens is None or tokens.limit is None or tokens.count(text) + 2 * ROOM <= tokens.limit

    def _parted(self, prompts: Sequence[str]) -> tuple[dict[int, str], list[int]]:
        """Index -> the text in the place of a prompt whose chain fires; and the indices of all others."""
        found = {i: f"{chain.text}{FINAL}" for i, chain in enumerate(self.chains(prompts)) if chain is not None}
        return found, [i for i in range(len(prompts)) if i not in found]

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
        def generated(lm: LM, texts: Sequence[str], rows: Sequence[int]) -> list[str]:
            draws = for_rows(sampling, len(prompts), rows)
            return lm.generate(texts, max_new_tokens, until_answer=until_answer, until=until, **draws)

        return self._each(prompts, generated)

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        check_targets(prompts, targets)
        return self._each(prompts, lambda lm, texts, rows: lm.score(texts, [targets[i] for i in rows]))

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> "npt.NDArray[np.float32]":
        found, _ = self._parted(prompts)
        logprobs = self.inner.next_logprobs(prompts)
        if found:
            logprobs[list(found)] = self.below.next_logprobs(list(found.values()))
        return logprobs

    @override
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        """A chain takes nothing of its prompt's total: as many new tokens as the bare prompt would get."""
        seeds = range(len(prompts)) if seeds is None else seeds

        def prolonged(lm: LM, texts: Sequence[str], rows: Sequence[int]) -> list[str]:
            count = self.tokens.count if self.tokens is not None else len
            longer = [totals[i] + count(text) - count(prompts[i]) for i, text in zip(rows, texts, strict=True)]
            return lm.prolong(texts, longer, top_k=top_k, seeds=[seeds[i] for i in rows])

        return self._each(prompts, prolonged)

    def _each(self, prompts: Sequence[str], verb: Callable[[LM, Sequence[str], Sequence[int]], list[T]]) -> list[T]:
        """What a verb gives for each prompt: of the model below for a chain, else of the inner model."""
        found, rest = self._parted(prompts)
        own = verb(self.below, list(found.values()), list(found)) if found else []
        others = verb(self.inner, [prompts[i] for i in rest], rest)
        results = dict(zip([*found, *rest], [*own, *others], strict=True))
        return [results[i] for i in range(len(prompts))]

    @override
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        """For a chain a line for each edit among its steps; for the rest what the inner model reports."""
        name = self.part.settings["method"]
        inside = self.inner.explain(prompts)
        return [
            lines if chain is None else [f"{name}: {fact}, in {len(chain.steps)} steps" for fact in chain.used]
            for chain, lines in zip(self.chains(prompts), inside, strict=True)
        ]
