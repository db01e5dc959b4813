"""The wrapper that prepends text to a prompt: the edits that are near it as facts, and examples of how to use facts.

All methods of the family are rows over one prompt,

    x' = examples(x) + facts(x) + x

and differ in how many examples and facts are taken, from where on a fact counts as near, and in the layout. A prompt
without facts goes to the model as it is.
"""

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NotRequired, Self, cast

import numpy as np
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict, Unpack, override

from errata.errors import BadInput
from errata.methods.memory.log import EditLog, EditRecord, newest
from errata.methods.memory.logged import LoggedWrapper
from errata.methods.memory.reworded import joined as joined_words
from errata.methods.memory.reworded import live
from errata.methods.retrieval import Index, Names, index
from errata.model.lm import LM, listed
from errata.model.sampling import Sampling
from errata.model.tokens import Tokens, joined
from errata.patch.schema import STRICT, read
from errata.types import Score

if TYPE_CHECKING:
    import numpy.typing as npt

log = logging.getLogger(__name__)

ROOM = 32  # tokens that are left for an answer, however few are asked for (the same prompt to score and to generate)
ALL = 1e-6  # what a share of words may lack to count as all of them


@dataclass(frozen=True)
class Example:
    """A fact, and a prompt with its answer under that fact: ``kind`` is copy, update or retain."""

    fact: str
    prompt: str
    answer: str
    kind: str


def template(*fields: str) -> AfterValidator:
    """Annotates a text that has some of these fields, as they are: a format could ask for any width."""

    def check(text: str) -> str:
        found = list(Formatter().parse(text))
        if any(name is not None and (name not in fields or form or how) for _, name, form, how in found):
            raise BadInput("the fields of a template are " + " and ".join(f"{{{field}}}" for field in fields))
        return text

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, le=1)]


class FactSettings(TypedDict):
    """The settings of a :class:`FactPrompt`."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    method: str
    encoder: str
    most: Annotated[int, Field(ge=1)]
    near: float
    named: Share
    fact: Annotated[str, template("fact")]
    layout: Annotated[str, template("facts", "prompt")]
    ended: NotRequired[bool]
    fill: NotRequired[Share]
    shown: NotRequired[dict[str, Annotated[int, Field(ge=0)]]]
    own: NotRequired[bool]
    reworded: NotRequired[dict[str, list[str]]]


@dataclass(frozen=True, eq=False)
class FactPrompt(LoggedWrapper):
    """Edits as facts that are prepended to a prompt. Of two edits of one fact the newer counts.

    ``settings`` hold the ``method``, the ``encoder``, how facts are chosen (``most``, ``near``, ``named``) and laid out
    (``fact``, ``layout``, ``ended``), and how many examples of each kind are ``shown`` in what share of the context
    (``fill``), with the facts' ``own`` among them. ``reworded`` are, by an edit's id, those that contradict it in other
    words.
    """

    kind: ClassVar[str] = "facts"

    declares: ClassVar[type[Any]] = FactSettings

    log: EditLog
    settings: Mapping[str, Any]
    examples: tuple[Example, ...] = ()

    @override
    def check_content(self) -> None:
        read(self.declares, self.settings)
        if self.examples and not self.settings.get("shown"):
            raise BadInput("settings.shown is missing: how many of the examples are shown")

    @cached_property
    def in_use(self) -> list[int]:
        """Indices of the edits whose prompt no later edit repeats, and that none contradicts in other words."""
        latest = newest(" ".join(record.prompt.split()).casefold() for record in self.log)
        return live(self.log, latest, self.settings.get("reworded", {}))

    @cached_property
    def facts(self) -> EditLog:
        """The edits in use, in order."""
        return tuple(self.log[i] for i in self.in_use)

    def keys(self) -> Sequence[str]:
        """The text of each fact that a question is compared with."""
        return [fact.prompt for fact in self.facts]

    @cached_property
    def index(self) -> Index:
        """The index of :meth:`keys`."""
        return index(self.settings["encoder"], tuple(self.keys()))

    def similarity(self, questions: Sequence[str]) -> "tuple[npt.NDArray[Any], npt.NDArray[Any]]":
        """The cosine of each question with each fact's key, and the share of the subject's words that it names.
        (b, n) and (b, n)"""
        return self.index.near(questions), self.names.named(questions)

    @cached_property
    def names(self) -> Names:
        """The subjects of the facts."""
        return Names([fact.subject for fact in self.facts])

    def retrieved(self, questions: Sequence[str]) -> list[list[EditRecord]]:
        """The facts for each question, the newest last: where two disagree, models tend to follow the later one.

        At most ``most``, of those whose cosine is at least ``near`` and whose share is at least ``named``, with the
        largest sums of both.
        """
        if not questions:
            return []
        near, share = self.similarity(questions)  # (b, n)
        fires = (near >= self.settings["near"]) & (share >= self.settings["named"] - ALL)
        fires &= np.array([bool(question.strip()) for question in questions])[:, None]
        return [self._chosen(row) for row in np.where(fires, near + share, -np.inf)]

    def _chosen(self, wanted: "npt.NDArray[Any]", facts: "npt.NDArray[Any] | None" = None) -> list[EditRecord]:
        """The facts that are wanted most, of those that are more than −∞ (n,); of equal ones the newer. In order.

        ``facts`` (n,) are their numbers, by default all in order.
        """
        if not len(wanted):
            return []
        most = min(self.settings["most"], len(wanted))
        some = np.flatnonzero(wanted >= max(np.partition(wanted, -most)[-most], -np.finfo(wanted.dtype).max))
        ranked = some[np.argsort(wanted[some], kind="stable")[-most:]]
        return [self.facts[j] for j in sorted((ranked if facts is None else facts[ranked]).tolist())]

    def laid_out(self, facts: Sequence[str], prompt: str) -> str:
        """The text of a prompt behind facts."""
        lines = "".join(self.settings["fact"].format(fact=fact) for fact in facts)
        return self.settings["layout"].format(facts=lines, prompt=prompt)

    def statement(self, fact: EditRecord) -> str:
        """The text of a fact as it is told: with a full stop, unless it is laid out without."""
        return fact.text if self.settings.get("ended", True) else joined(fact.prompt, fact.target_new)

    def demonstration(self, example: Example) -> str:
        """The text of an example: a prompt behind a fact, and its answer."""
        return joined(self.laid_out([example.fact], example.prompt), example.answer) + "\n\n"

    def own(self, facts: Sequence[EditRecord]) -> list[tuple[float, str]]:
        """The demonstrations of the facts themselves, nearer than any other, where there are to be any."""
        if not self.settings.get("own"):
            return []
        copies = (Example(self.statement(fact), fact.prompt, fact.target_new, "copy") for fact in facts)
        return [(np.inf, self.demonstration(copy)) for copy in copies]

    def shown(self, questions: Sequence[str]) -> list[list[tuple[float, str]]]:
        """The examples for each question, the most wanted last: how near each is, and its text.

        Of each kind the nearest, as many as ``shown`` says; and among however many of the last, each kind has its
        share.
        """
        if not self.examples or not questions:
            return [[] for _ in questions]
        texts = [self.laid_out([example.fact], example.prompt) for example in self.examples]
        near = index(self.settings["encoder"], tuple(texts)).near(questions)  # (b, examples)
        kinds = np.array([example.kind for example in self.examples])
        taken: list[npt.NDArray[np.int64]] = []  # (b, some) of each kind, the nearest first
        turns: list[float] = []  # of n examples the i-th is wanted at (i + 1/2) / n: Sainte-Laguë's shares
        for kind, count in self.settings["shown"].items():
            of_kind = np.flatnonzero(kinds == kind)
            taken.append(of_kind[np.argsort(-near[:, of_kind], axis=1, kind="stable")[:, :count]])
            turns += [(i + 0.5) / count for i in range(taken[-1].shape[1])]
        every = np.concatenate(taken, axis=1)[:, np.argsort(turns, kind="stable")[::-1]]
        whole = [self.demonstration(example) for example in self.examples]
        return [[(float(near[i, j]), whole[j]) for j in row] for i, row in enumerate(every)]

    @override
    def wrap(self, inner: LM) -> LM:
        return PromptedLM(self, inner)

    # The part --------------------------------------------------------------------------------------

    @override
    def without(self, edit_id: str) -> "Self | None":
        left = super().without(edit_id)
        return None if left is None else left.with_reworded({edit_id})

    def with_reworded(self, gone: Container[str], more: Mapping[str, Sequence[str]] | None = None) -> Self:
        """With more of ``reworded``, and less of it about edits that are gone."""
        kept = joined_words(self.settings.get("reworded", {}), more or {}, gone)
        rest = {name: value for name, value in self.settings.items() if name != "reworded"}
        return replace(self, settings=rest | ({"reworded": kept} if kept else {}))

    @override
    def summary(self) -> list[dict[str, Any]]:
        line = {"kind": self.kind, "method": self.settings["method"], "encoder": self.settings["encoder"]}
        return [{**line, "facts": len(self.log), **({"examples": len(self.examples)} if self.examples else {})}]


# The model behind the wrapper ----------------------------------------------------------------------


def fitting(tokens: Tokens | None, before: Sequence[str], text: str, room: int) -> list[str]:
    """The last of the texts ``before`` that fit the model together with ``text`` and ``room`` more tokens."""
    kept = list(before)
    if not kept or tokens is None or tokens.limit is None:
        return kept
    parts = [tokens.count(text), *map(tokens.length, reversed(kept))]
    rough = np.cumsum(parts)[1:]  # from the near end on
    kept = kept[len(kept) - int((rough <= tokens.limit).sum()) :]
    while kept and tokens.count("".join(kept) + text) > tokens.limit - room:
        kept.pop(0)
    if len(kept) < len(before):
        log.info("%d of %d texts before %r were cut to fit the model", len(before) - len(kept), len(before), text[-60:])
    return kept


@dataclass(frozen=True, eq=False)
class PromptedLM(LM):
    """The inner model with facts and examples prepended to each prompt that is about an edit."""

    part: FactPrompt
    inner: LM

    @property
    def tokens(self) -> Tokens | None:
        """The inner model's, where it has any."""
        return getattr(self.inner, "tokens", None)

    def prompted(self, prompts: Sequence[str], room: int = ROOM) -> list[tuple[str, list[EditRecord]]]:
        """Each prompt with the text before it, and the facts in that."""
        prompts = listed(prompts)
        questions = [prompt if isinstance(cast(Any, prompt), str) else "" for prompt in prompts]  # no text: see inner
        retrieved = self.part.retrieved(questions)
        some = [i for i, facts in enumerate(retrieved) if facts]
        shown = dict(zip(some, self.part.shown([questions[i] for i in some]), strict=True))
        return [
            self._fitted(shown[i], facts, prompt, room) if facts else (prompt, [])
            for i, (prompt, facts) in enumerate(zip(prompts, retrieved, strict=True))
        ]

    def _fitted(
        self, shown: list[tuple[float, str]], facts: list[EditRecord], prompt: str, room: int
    ) -> tuple[str, list[EditRecord]]:
        """Examples are dropped before facts are; a prompt for which not even one fact fits stays as it is.

        Of the examples that fit the nearest stand last.
        """
        limit = (self.tokens and self.tokens.limit) or 0
        for cut in range(len(facts)):
            text = self.part.laid_out([self.part.statement(fact) for fact in facts[cut:]], prompt)
            if self.fits(text, room):
                reserved = max(room, round((1 - self.part.settings.get("fill", 1.0)) * limit))
                wanted = [*shown, *self.part.own(facts[cut:])]
                kept = fitting(self.tokens, [example for _, example in wanted], text, reserved)
                nearest_last = sorted(wanted[len(wanted) - len(kept) :])
                return "".join(example for _, example in nearest_last) + text, facts[cut:]
        log.warning("no fact fits the model before %r: the prompt stays as it is", prompt[:60])
        return prompt, []

    def fits(self, text: str, room: int) -> bool:
        """Whether the model reads it all, with so many tokens left."""
        return self.tokens is None or self.tokens.limit is None or self.tokens.count(text) + room <= self.tokens.limit

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
        extended = [text for text, _ in self.prompted(prompts, max(ROOM, max_new_tokens))]
        return self.inner.generate(extended, max_new_tokens, until_answer=until_answer, until=until, **sampling)

    @override
    def stream(self, prompt: str, max_new_tokens: int = 32, **sampling: Unpack[Sampling]) -> Iterator[str]:
        ((extended, _),) = self.prompted([prompt], max(ROOM, max_new_tokens))
        return self.inner.stream(extended, max_new_tokens, **sampling)

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        return self.inner.score([text for text, _ in self.prompted(prompts)], targets)

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> "npt.NDArray[np.float32]":
        return self.inner.next_logprobs([text for text, _ in self.prompted(prompts)])

    @override
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        """The text before a prompt takes nothing of its total: as many new tokens as the bare prompt would get."""
        if self.tokens is None:
            return super().prolong(prompts, totals, top_k=top_k, seeds=seeds)
        bare = [self.tokens.count(prompt) for prompt in listed(prompts)]
        room = max((total - n for total, n in zip(totals, bare, strict=True)), default=0)
        extended = [text for text, _ in self.prompted(prompts, max(ROOM, room))]
        longer = [t + self.tokens.count(text) - n for t, text, n in zip(totals, extended, bare, strict=True)]
        return self.inner.prolong(extended, longer, top_k=top_k, seeds=seeds)

    @override
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        """The facts before each prompt, a line for each, newest first; then what the inner model reports."""
        prompted, method = self.prompted(prompts), self.part.settings["method"]
        inside = self.inner.explain([text for text, _ in prompted])
        own = [[f"{method}: edit {fact.id}, {fact.text!r}" for fact in reversed(facts)] for _, facts in prompted]
        return [lines + more for lines, more in zip(own, inside, strict=True)]
