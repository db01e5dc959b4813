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

    Both have the same answer before all edits; and with either one told before the other's prompt its target is the
    answer, or the older one's is with ``patch`` in force, which holds it.
    """
    some = [i for i, same in enumerate(_one_old_answer(lm, pairs)) if same]
    found = dict(zip(some, _told(lm, [pairs[i] for i in some]), strict=True))
    rest = [i for i, told in found.items() if not told]
    found |= dict(zip(rest, _in_force(lm, [pairs[i] for i in rest], patch), strict=True))
    return [found.get(i, False) for i in range(len(pairs))]


def inverse(lm: HFLM, pairs: Sequence[tuple[Edit, Edit]]) -> list[bool]:
    """Whether the relations of each pair lead there and back: what one prompt was answered with, asked about in the
    other's words, has the first one's subject as its answer; and the other way round."""
    old = _old_answers(lm, [edit for pair in pairs for edit in pair])
    turned = [(one, two) for pair in pairs for one, two in (pair, pair[::-1])]
    some = [i for i, (one, _) in enumerate(turned) if old[one.prompt].strip()]
    asked = [turned[i][1].template.replace("{}", old[turned[i][0].prompt]) for i in some]
    texts = lm.generate(asked, until_answer=True) if asked else []
    back = {i for i, text in zip(some, texts, strict=True) if begins_with_answer(text, [turned[i][0].subject])}
    return [{i, i + 1} <= back for i in range(0, len(turned), 2)]


def _one_old_answer(lm: HFLM, pairs: Sequence[Pair]) -> list[bool]:
    """Whether both edits of each pair have one old answer: the one that they name, else the model's own."""
    old = _old_answers(lm, [fact for pair in pairs for fact in pair])
    answers = [(normalise(old[one.prompt]), normalise(old[two.prompt])) for one, two in pairs]
    return [one == two != "" for one, two in answers]


def _old_answers(lm: HFLM, facts: Sequence[Fact]) -> dict[str, str]:
    """Prompt -> the answer before all edits."""
    named = {fact.prompt: fact.target_true for fact in facts if fact.target_true is not None}
    prompts = list(dict.fromkeys(fact.prompt for fact in facts if fact.prompt not in named))
    texts = lm.generate(prompts, until_answer=True) if prompts else []
    return named | {prompt: answer_of(text) for prompt, text in zip(prompts, texts, strict=True)}


def _in_force(lm: HFLM, pairs: Sequence[Pair], patch: Patch | None) -> list[bool]:
    """Whether the newer prompt of each pair is answered with the older target while the patch is in force.

    Without its wrappers: these tell facts whatever is asked of a subject.
    """
    inside = Patch() if patch is None else patch.without_wrappers()
    if not inside or not pairs:
        return [False] * len(pairs)
    with inside.applied(lm) as edited:
        scores = edited.score([new.prompt for _, new in pairs], [old.target_new for old, _ in pairs])
    return [score.correct for score in scores]


def _told(lm: HFLM, pairs: Sequence[Pair]) -> list[bool]:
    """Whether each of a pair, told before the other's prompt, gives its answer; not where that is too long to read."""
    both = [fact for pair in pairs for fact in (pair, pair[::-1])]
    layout = lm.resources.templates.get("fact", FACT)
    prompts = [layout.replace("{fact}", sentence(one.prompt, one.target_new)) + two.prompt for one, two in both]
    targets = [one.target_new for one, _ in both]
    fits = [i for i, prompt in enumerate(prompts) if _fits(lm, prompt, targets[i])]
    scores = lm.score([prompts[i] for i in fits], [targets[i] for i in fits]) if fits else []
    told = {i for i, score in zip(fits, scores, strict=True) if score.correct}
    return [{i, i + 1} <= told for i in range(0, len(both), 2)]


def _fits(lm: HFLM, prompt: str, target: str) -> bool:
    limit = lm.tokens.limit
    return limit is None or lm.tokens.count(prompt) + lm.tokens.count(target) <= limit
