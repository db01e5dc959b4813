"""Editing by what is said before a prompt: facts that are told, examples of how to take them, and a rule of which.

All the methods are rows over one prompt,

    x' = examples(x) + facts(x) + x

and differ in how many examples and facts are taken, from where on a fact counts as near, and in how it is all laid
out. No pass of the model is needed to edit, and a prompt to which nothing is told goes to the model as it is.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import Method, State, Tags
from errata.methods.prompting.retrieval import Index, default_encoder, index, named
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.tokens import Tokens, sentence
from errata.patch.parts import Wrapper
from errata.patch.patch import Patch
from errata.types import Edit, Score

if TYPE_CHECKING:
    import numpy.typing as npt

log = logging.getLogger(__name__)

ROOM = 32  # tokens that are left for an answer, whatever is asked for (the same prompt to score and to generate)
ALL = 1e-6  # what a share of words may lack to be all of them


@dataclass(frozen=True)
class Fact:
    """An edit as it is told."""

    id: str
    prompt: str
    subject: str
    answer: str

    @property
    def text(self) -> str:
        return sentence(self.prompt, self.answer)


@dataclass(frozen=True)
class Example:
    """A fact, and how a prompt is answered by one who has been told it: ``kind`` is copy, update or retain."""

    fact: str
    prompt: str
    answer: str
    kind: str


@dataclass(frozen=True, eq=False)
class Facts(Wrapper):
    """The edits in order. ``settings`` hold the encoder, the layout and what the rule needs; ``by`` names the method.

    Of two edits with one prompt the newer counts.
    """

    facts: tuple[Fact, ...]
    settings: Mapping[str, Any]
    examples: tuple[Example, ...] = ()

    @cached_property
    def newest(self) -> dict[str, int]:
        """prompt -> the last fact about it."""
        return {_same(fact.prompt): i for i, fact in enumerate(self.facts)}

    @cached_property
    def live(self) -> list[Fact]:
        """The facts that no newer one takes the place of."""
        return [self.facts[i] for i in sorted(self.newest.values())]

    def keys(self) -> Sequence[str]:
        """What a question is held against, a text for each live fact."""
        return [fact.prompt for fact in self.live]

    @cached_property
    def index(self) -> Index:
        return index(self.settings["encoder"], tuple(self.keys()))

    def chosen(self, questions: Sequence[str]) -> list[list[Fact]]:
        """The facts to tell with each question, the newest last: where two disagree, the later is believed more often.

        A fact's weight is the cosine of its key and the share of its subject's words that the question names. At
        most ``most`` are told, of those whose cosine is at least ``near`` and whose share is at least ``named``.
        """
        if not questions:
            return []
        its = self.settings
        near, share = self.index.near(questions), named([fact.subject for fact in self.live], questions)  # (b, n)
        fires = (near >= its["near"]) & (share >= its["named"] - ALL)
        fires &= np.array([bool(question.strip()) for question in questions])[:, None]
        order = np.argsort(np.where(fires, near + share, -np.inf), axis=1, kind="stable")[:, -its["most"] :]
        return [[self.live[j] for j in sorted(row) if fires[i, j]] for i, row in enumerate(order)]

    def wrap(self, inner: LM) -> LM:
        return Teller(self, inner)

    def shown(self, questions: Sequence[str]) -> list[list[str]]:
        """The examples to show with each question, laid out, the nearest last: of each kind its share."""
        if not self.examples or not questions:
            return [[] for _ in questions]
        texts = [_laid_out(self.settings, [e.fact], e.prompt) for e in self.examples]
        near = index(self.settings["encoder"], tuple(texts)).near(questions)  # (b, examples)
        kinds = np.array([example.kind for example in self.examples])
        taken: list[npt.NDArray[np.int64]] = []  # (b, some) of each kind
        for kind, count in self.settings["shown"].items():
            of_kind = np.flatnonzero(kinds == kind)
            taken.append(of_kind[np.argsort(near[:, of_kind], axis=1, kind="stable")[:, len(of_kind) - count :]])
        every = np.concatenate(taken, axis=1)
        order = np.take_along_axis(every, np.argsort(np.take_along_axis(near, every, 1), axis=1, kind="stable"), 1)
        ended = [sentence(text, example.answer) + "\n\n" for text, example in zip(texts, self.examples, strict=True)]
        return [[ended[j] for j in row] for row in order]

    # The part --------------------------------------------------------------------------------------

    def without(self, edit_id: str) -> "Facts | None":
        facts = tuple(fact for fact in self.facts if fact.id != edit_id)
        return replace(self, facts=facts) if facts else None

    def entries(self) -> list[dict[str, Any]]:
        return [
            {
                "edit": fact.id,
                "fact": fact.text,
                "told": "yes" if self.newest[_same(fact.prompt)] == i else "a newer one",
            }
            for i, fact in enumerate(self.facts)
        ]

    def summary(self) -> list[dict[str, Any]]:
        its = self.settings
        line = {"kind": self.kind, "by": its["by"], "encoder": its["encoder"], "facts": len(self.facts)}
        return [line | ({"examples": len(self.examples)} if self.examples else {})]

    def config(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "facts": [asdict(fact) for fact in self.facts],
            "examples": [asdict(example) for example in self.examples],
        }

    def tensors(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        facts = tuple(Fact(**fact) for fact in config["facts"])
        return cls(facts, config["settings"], tuple(Example(**example) for example in config["examples"]))


class FactPrompt(Facts):
    """Facts that are told before a prompt."""

    kind: ClassVar[str] = "told"


# The model that is told ----------------------------------------------------------------------------


def _same(prompt: str) -> str:
    """What two prompts have in common that ask the same."""
    return " ".join(prompt.split()).casefold()


def _laid_out(settings: Mapping[str, Any], facts: Sequence[str], prompt: str) -> str:
    said = "".join(settings["told"].format(fact=fact) for fact in facts)
    return settings["layout"].format(facts=said, prompt=prompt)


def fitting(tokens: Tokens | None, ahead: Sequence[str], text: str, room: int) -> list[str]:
    """What of the texts ``ahead`` stays, so that all fits the model with ``room`` tokens left: the far end goes."""
    kept = list(ahead)
    if not kept or tokens is None or tokens.limit is None:
        return kept
    rough = np.cumsum([tokens.count(part) for part in [text, *reversed(kept)]])[1:]  # parts, from the near end on
    kept = kept[len(kept) - int((rough <= tokens.limit).sum()) :]
    while kept and tokens.count("".join(kept) + text) > tokens.limit - room:
        kept.pop(0)
    if len(kept) < len(ahead):
        log.info("%d of %d texts before %r were cut to fit the model", len(ahead) - len(kept), len(ahead), text[-60:])
    return kept


@dataclass(frozen=True, eq=False)
class Teller(LM):
    """A model that is told facts before it is asked."""

    part: Facts
    inner: LM

    @property
    def tokens(self) -> Tokens | None:
        return getattr(self.inner, "tokens", None)

    def told(self, prompts: Sequence[str], room: int = ROOM) -> list[tuple[str, list[Fact]]]:
        """Each prompt with what stands before it, and the facts among that."""
        questions = [prompt if isinstance(cast(Any, prompt), str) else "" for prompt in prompts]  # no text: see inner
        chosen = self.part.chosen(questions)
        asked = [i for i, facts in enumerate(chosen) if facts]
        shown = dict(zip(asked, self.part.shown([questions[i] for i in asked]), strict=True))
        return [
            self._fitted(shown[i], facts, prompt, room) if facts else (prompt, [])
            for i, (prompt, facts) in enumerate(zip(prompts, chosen, strict=True))
        ]

    def _fitted(self, shown: list[str], facts: list[Fact], prompt: str, room: int) -> tuple[str, list[Fact]]:
        """Examples go before facts do; a prompt for which not even one fact fits is asked as it is."""
        its, limit = self.part.settings, (self.tokens and self.tokens.limit) or 0
        for cut in range(len(facts)):
            text = _laid_out(its, [fact.text for fact in facts[cut:]], prompt)
            if self.fits(text, room):
                kept = fitting(self.tokens, shown, text, max(room, round((1 - its.get("fill", 1.0)) * limit)))
                return "".join(kept) + text, facts[cut:]
        log.warning("no fact fits the model before %r: asked as it is", prompt[:60])
        return prompt, []

    def fits(self, text: str, room: int) -> bool:
        """Whether the model reads it all, with so many tokens left."""
        return self.tokens is None or self.tokens.limit is None or self.tokens.count(text) + room <= self.tokens.limit

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        told = [prompt for prompt, _ in self.told(prompts, max(ROOM, max_new_tokens))]
        return self.inner.generate(told, max_new_tokens, until_answer=until_answer, until=until)

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        return self.inner.score([p for p, _ in self.told(prompts)], targets)

    def next_logprobs(self, prompts: Sequence[str]) -> "npt.NDArray[np.float32]":
        return self.inner.next_logprobs([p for p, _ in self.told(prompts)])

    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        told, by = self.told(prompts), self.part.settings["by"]
        inside = self.inner.explain([prompt for prompt, _ in told])
        own = [[f"{by}: edit {fact.id}, {fact.text!r}" for fact in reversed(facts)] for _, facts in told]
        return [lines + more for lines, more in zip(own, inside, strict=True)]


# The methods ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prompting(Method):
    """Adds facts to those that are told; nothing inside the model changes."""

    family: ClassVar[str] = "prompting"
    stores: ClassVar[str] = "the facts as text; no weight changes"
    part: ClassVar[type[Facts]] = FactPrompt
    tags: ClassVar[Tags] = Tags(quick={"encoder": "tfidf"}, reads_context=True, runs_model=False)

    encoder: str | None = setting(None, "the sentence encoder where the extra `retrieval` is installed, else tfidf")

    @abstractmethod
    def rule(self, lm: HFLM) -> dict[str, Any]:
        """The settings that go into the part: see :meth:`Facts.chosen` and the layout (``told``, ``layout``)."""

    def examples(self, state: State) -> tuple[Example, ...]:
        return ()

    def resolve(self, lm: HFLM, state: State) -> Self:
        encoder = self.encoder or state.info.get("encoder") or default_encoder()
        if state.info.get("encoder", encoder) != encoder:
            raise BadInput(f"this state was prepared with the encoder {state.info['encoder']!r}, not {encoder!r}")
        return replace(self, encoder=encoder)

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        new = tuple(Fact(edit.id, edit.prompt, edit.subject, edit.target_new) for edit in edits)
        part = self.part(new, {"by": self.name, **self.rule(lm)}, self.examples(state))
        part.index  # noqa: B018  an encoder that is missing is told now
        for old in reversed(prior.of_kind(self.part)):
            if old.settings["by"] == self.name:
                self._check(old, part)
                grown = replace(part, facts=(*old.facts, *new))
                return replace(prior, parts=tuple(grown if its is old else its for its in prior.parts))
        return prior + Patch((part,))

    def _check(self, old: Facts, new: Facts) -> None:
        for name, value in new.settings.items():
            if old.settings.get(name) != value:
                raise BadInput(
                    f"{self.name} in prior has {name} = {old.settings.get(name)!r}, and this one {value!r}; "
                    "go on with the same settings and state"
                )
        if old.examples != new.examples:
            raise BadInput(f"{self.name} in prior has other examples; go on with the same state")
