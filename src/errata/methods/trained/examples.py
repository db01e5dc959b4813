"""What trained methods learn from: edits of cases, prompts that must follow each, and prompts that must not."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, cast

from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.model.reading import Pair
from errata.subjects import mentions
from errata.types import Case, Edit, Kind

FOLLOW: tuple[Kind, ...] = ("paraphrase", "question", "alias")
KEEP: tuple[Kind, ...] = ("neighborhood", "same_subject", "unrelated", "distractor")
FEWEST = 8  # cases with all that is needed
DRAWS = 32  # of training cases, where they go with the model


class Trainable(Protocol):
    """What a network is trained on. What is about one subject is held out together."""

    @property
    def subject(self) -> str:
        """Whom or what it is about."""
        ...


T = TypeVar("T", bound=Trainable)


@dataclass(frozen=True)
class Asked:
    """A prompt and the answer that is, or stays, right."""

    prompt: str
    answer: str
    kind: str = "edit"

    def fits(self, lm: HFLM) -> bool:
        """Whether the model can read prompt and answer."""
        try:
            return lm.tokens.fits(*self.ids(lm))
        except BadInput:  # the prompt alone is too long
            return False

    def ids(self, lm: HFLM) -> Pair:
        """Token ids of prompt and answer."""
        return lm.tokens.prompt(self.prompt), lm.tokens.target(self.prompt, self.answer)


@dataclass(frozen=True)
class Example:
    """An edit with the prompts that it must change, in other words, and those that it must leave as they are."""

    edit: Edit
    follow: tuple[Asked, ...]
    keep: tuple[Asked, ...]

    @property
    def subject(self) -> str:
        """The edit's subject."""
        return self.edit.subject

    @property
    def asked(self) -> Asked:
        """The edit's own prompt with the new answer."""
        return Asked(self.edit.prompt, self.edit.target_new)

    @property
    def old(self) -> tuple[Asked, ...]:
        """The edit's own prompt with the old answer, where the edit says it."""
        edit = self.edit
        return () if edit.target_true is None else (Asked(edit.prompt, edit.target_true),)

    def sampled(self, rng: random.Random, follow: int, keep: int) -> "Example":
        """The example with at most so many of its prompts, drawn anew; kinds of ``keep`` count alike."""
        kinds: dict[str, list[Asked]] = {}
        for asked in self.keep:
            kinds.setdefault(asked.kind, []).append(asked)
        kept: list[Asked] = []
        names = rng.sample(list(kinds), len(kinds))
        while len(kept) < keep and names:
            for name in list(names):
                if not kinds[name]:
                    names.remove(name)
                elif len(kept) < keep:
                    kept.append(kinds[name].pop(rng.randrange(len(kinds[name]))))
        followed = rng.sample(self.follow, min(follow, len(self.follow)))
        return replace(self, follow=tuple(followed), keep=tuple(kept))


def training_cases(lm: HFLM, method: str, data: Iterable[object] | None) -> list[Case]:
    """The cases given, else some draws of those that go with the model. Raises :class:`BadInput` for none."""
    if data is None:
        if lm.resources.draw is None:
            raise BadInput(
                f"{method} is trained on cases, and none go with {lm.name or 'this model'}: "
                "prepare(lm, errata.cases(...)), or --data with a file of cases"
            )
        return [case for number in range(DRAWS) for case in lm.resources.draw(number)]
    cases = list(data)
    for case in cases:
        if not isinstance(case, Case):
            raise BadInput(
                f"{method} is trained on cases; found {type(case).__name__}: "
                "give errata.cases(...), or --data with a file of cases"
            )
    return cast(list[Case], cases)


def examples_of(
    lm: HFLM,
    method: str,
    cases: Sequence[Case],
    *,
    follow: bool = True,
    keep: bool = True,
    kinds: tuple[Kind, ...] = KEEP,
) -> list[Example]:
    """An example for each edit that stands alone in its case and that the model can read.

    ``follow`` and ``keep`` say which prompts the method needs, and ``kinds`` which ones to keep it reads: cases without
    one are left out. Raises :class:`BadInput` where fewer than FEWEST are left, saying what is missing.
    """
    found = [_example(lm, case, kinds) for case in cases if len(case.edits) == 1]
    found = [example for example in found if example.asked.fits(lm)]
    some = [example for example in found if (example.follow or not follow) and (example.keep or not keep)]
    if len(some) < FEWEST:
        without = {
            "other words for the edit (paraphrases, questions)": follow and sum(not e.follow for e in found),
            f"prompts that must stay ({', '.join(kinds)})": keep and sum(not e.keep for e in found),
        }
        missing = "".join(f"; {count} have no {what}" for what, count in without.items() if count)
        raise BadInput(
            f"{method} is trained on at least {FEWEST} cases of one edit each, and {len(some)} of the {len(cases)} "
            f"given can be used{missing}: give more, or others"
        )
    return some


def _example(lm: HFLM, case: Case, kept: tuple[Kind, ...]) -> Example:
    edit = case.edits[0]

    def of(kinds: tuple[Kind, ...]) -> tuple[Asked, ...]:
        asked = [Asked(p.prompt, p.answers[0], p.kind) for p in case.probes if p.kind in kinds and p.answers]
        return tuple(a for a in asked if a.fits(lm))

    return Example(edit, of(FOLLOW), of(kept))


def divided(examples: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """(training, held out): the examples of a share of the subjects are held out, of one subject at least."""
    subjects = sorted({example.subject for example in examples})
    random.Random(f"held out {seed}").shuffle(subjects)
    out = set(subjects[: max(1, round(share * len(subjects)))])
    held = [example for example in examples if example.subject in out]
    rest = [example for example in examples if example.subject not in out]
    if len(rest) < 2 or not held:
        raise BadInput(f"the cases are of {len(subjects)} subjects; to hold some out, give cases of more subjects")
    return rest, held


def compatible(batch: Sequence[Example]) -> list[Example]:
    """The examples that can be made at once: one of each subject, without prompts to keep that name another's."""
    first: dict[str, Example] = {}
    for example in batch:
        first.setdefault(example.edit.subject, example)

    def untouched(asked: Asked, own: str) -> bool:
        rest = asked.prompt.replace(own, "")  # "Ann" is not named by "Ann Lee"
        return not any(subject in rest and mentions(rest, subject) for subject in first if subject != own)

    return [replace(e, keep=tuple(a for a in e.keep if untouched(a, own))) for own, e in first.items()]


class Stream(Generic[T]):
    """Batches of examples without end, each example once a round; a batch depends on its number and the seed alone.

    A round goes through the subjects, one example of each, then another of each, so that a batch seldom holds two edits
    of one subject.
    """

    def __init__(self, examples: Sequence[T], seed: int) -> None:
        self.seed = seed
        self.of: dict[str, list[T]] = {}
        for example in examples:
            self.of.setdefault(example.subject, []).append(example)
        self.length = len(examples)
        self._number, self._round = -1, list[T]()

    def batch(self, number: int, size: int) -> list[T]:
        """The examples of a batch."""
        return [self._at(i) for i in range(number * size, (number + 1) * size)]

    def rng(self, number: int) -> random.Random:
        """Random numbers of a batch."""
        return random.Random(f"batch {number} of {self.seed}")

    def _at(self, i: int) -> T:
        if i // self.length != self._number:
            self._number = i // self.length
            self._round = self._ordered(random.Random(f"round {self._number} of {self.seed}"))
        return self._round[i % self.length]

    def _ordered(self, rng: random.Random) -> list[T]:
        left = [rng.sample(examples, len(examples)) for examples in self.of.values()]
        order: list[T] = []
        while left:
            rng.shuffle(left)
            order += [examples.pop() for examples in left]
            left = [examples for examples in left if examples]
        return order
