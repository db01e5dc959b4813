# pyright: strict
"""What the model says of two prompts: whether they ask for one fact in other words, or for it from its two ends."""

from collections.abc import Sequence
from typing import Protocol

from errata.answers import answer_of, begins_with_answer, normalise
from errata.model.hf import HFLM
from errata.model.tokens import sentence
from errata.patch.patch import Patch
from errata.types import Edit

FACT = "Fact: {fact}\n"  # how a fact is told, where nothing goes with the model that says it otherwise


class Fact(Protocol):
    """An edit, or what a memory keeps of one."""

    @property
    def prompt(self) -> str:
        """The question."""
        ...

    @property
    def target_new(self) -> str:
        """The answer that it shall have."""
        ...

    @property
    def target_true(self) -> str | None:
        """The answer that it had, where that is named."""
        ...


Pair = tuple[Fact, Fact]  # older, newer


def same_fact(lm: HFLM, pairs: Sequence[Pair], patch: Patch | None = None) -> list[bool]:
    """Whether the newer edit of each pair, about one subject, asks for the older one's fact in other words.

    Both have the same answer before all edits, and with the older one in force its target is the answer to the newer
    one's prompt: with ``patch``, which holds the older ones; or told before the prompt, each before the other's.
    """
    same = _one_old_answer(lm, pairs)
    some = [pair for pair, holds in zip(pairs, same, strict=True) if holds]
    told = iter(_answered(lm, some, patch) if some else [])
    return [holds and next(told) for holds in same]


def inverse(lm: HFLM, pairs: Sequence[tuple[Edit, Edit]]) -> list[bool]:
    """Whether the relations of each pair lead there and back: what one prompt was answered with, asked about in the
    other's words, has the first one's subject as its answer; and the other way round."""
    old = _old_answers(lm, [edit for pair in pairs for edit in pair])
    asked: list[str] = []
    for one, two in pairs:
        asked += [two.template.replace("{}", old[one.prompt]), one.template.replace("{}", old[two.prompt])]
    texts = lm.generate(asked, until_answer=True) if asked else []
    subjects = [edit.subject for pair in pairs for edit in pair]
    back = [begins_with_answer(text, [subject]) for text, subject in zip(texts, subjects, strict=True)]
    return [there and again for there, again in zip(back[::2], back[1::2], strict=True)]


def _one_old_answer(lm: HFLM, pairs: Sequence[Pair]) -> list[bool]:
    """Whether both edits of each pair have one old answer: the one that they name, else the model's own."""
    old = _old_answers(lm, [fact for pair in pairs for fact in pair])
    return [normalise(old[one.prompt]) == normalise(old[two.prompt]) for one, two in pairs]


def _old_answers(lm: HFLM, facts: Sequence[Fact]) -> dict[str, str]:
    """Prompt -> the answer before all edits."""
    named = {fact.prompt: fact.target_true for fact in facts if fact.target_true is not None}
    prompts = list(dict.fromkeys(fact.prompt for fact in facts if fact.prompt not in named))
    texts = lm.generate(prompts, until_answer=True) if prompts else []
    return named | {prompt: answer_of(text) for prompt, text in zip(prompts, texts, strict=True)}


def _answered(lm: HFLM, pairs: Sequence[Pair], patch: Patch | None) -> list[bool]:
    inside = Patch() if patch is None else patch.without_wrappers()  # these tell facts whatever is asked of a subject
    if inside:
        with inside.applied(lm) as edited:
            scores = edited.score([new.prompt for _, new in pairs], [old.target_new for old, _ in pairs])
        return [score.correct for score in scores]
    there, back = _told(lm, pairs), _told(lm, [(new, old) for old, new in pairs])
    return [one and two for one, two in zip(there, back, strict=True)]


def _told(lm: HFLM, pairs: Sequence[Pair]) -> list[bool]:
    """Whether the second of each pair is answered with the first one's target where that is told before it."""
    layout = lm.resources.templates.get("fact", FACT)
    prompts = [layout.replace("{fact}", sentence(one.prompt, one.target_new)) + other.prompt for one, other in pairs]
    return [score.correct for score in lm.score(prompts, [one.target_new for one, _ in pairs])]
