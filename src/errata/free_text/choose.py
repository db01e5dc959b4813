"""Which of several readings of a sentence is meant: what the model knows decides, or nobody does."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from errata.errors import BadInput
from errata.free_text.readings import Reading
from errata.model.hf import HFLM
from errata.model.lm import LM

FACTOR = 2.0  # how much likelier the old answer must be under one prompt than under the next


@dataclass(frozen=True)
class Choice:
    """The reading that was chosen, why, and whether that is beyond doubt; ``others`` are the rest, in order."""

    reading: Reading
    why: str
    sure: bool = True
    others: tuple[Reading, ...] = ()


def names_of(lm: HFLM) -> frozenset[str]:
    """The subjects of the cases that go with a model; none where it brings none."""
    cases = lm.resources.cases() if lm.resources.cases is not None else []
    return frozenset(edit.subject for case in cases for edit in case.edits)


def choose(readings: Sequence[Reading], lm: LM | None = None, names: Collection[str] = ()) -> Choice:
    """The reading that is meant.

    The only one; else the one whose subject alone is among ``names``; else the one under whose prompt the model ``lm``
    has the old answer likeliest, by a factor of two for each token. Readings that are about the same subject and have
    the same answers are the same fact in other words, of which any will do. Otherwise the first, which is not sure.
    With ``lm`` they are told as it speaks (:func:`as_it_speaks`). Raises :class:`BadInput` where there is none.
    """
    if not readings:
        raise BadInput("there is no reading to choose from")
    readings = readings if lm is None else as_it_speaks(readings, lm)
    first, *rest = readings
    if not rest:
        return Choice(first, "the only reading")
    named = [reading for reading in readings if reading.edit.subject in names]
    if len(named) == 1:
        return _chosen(named[0], readings, f"only {named[0].edit.subject} is a name that the model's own cases have")
    same_fact = len({(r.edit.subject, r.edit.target_new, r.edit.target_true) for r in readings}) == 1
    if lm is not None and all(reading.edit.target_true for reading in readings):
        return _by_old_answer(readings, lm, same_fact)
    if same_fact:
        return _chosen(first, readings, "the first of several prompts for one fact")
    return _chosen(first, readings, "the first that the rule gives; nothing decides", sure=False)


def as_it_speaks(readings: Sequence[Reading], lm: LM) -> list[Reading]:
    """The readings without an article in front of a name, where the model has the name likelier without it.

    Some texts say "works for the Zegi Group", and a model whose own say "works for Zegi Group" knows no prompt "works
    for the".
    """
    found = [re.search(r" (the|an?)$", r.edit.prompt) if r.edit.target_new[:1].isupper() else None for r in readings]
    bare = {
        i: (r.edit.prompt[: match.start()], match[1])
        for i, (r, match) in enumerate(zip(readings, found, strict=True))
        if match
    }
    pairs = [(prompt, said) for i, (prompt, article) in bare.items() for said in (article, readings[i].edit.target_new)]
    scores = iter(lm.score([prompt for prompt, _ in pairs], [said for _, said in pairs]) if pairs else ())
    told = list(readings)
    for i, (prompt, article) in bare.items():
        if next(scores).logprobs[0] < next(scores).logprobs[0]:
            edit, rule = readings[i].edit, f"{readings[i].rule}, without {article!r}, as the model has it"
            told[i] = replace(readings[i], edit=replace(edit, prompt=prompt, id=""), rule=rule)
    return told


def _by_old_answer(readings: Sequence[Reading], lm: LM, same_fact: bool) -> Choice:
    scores = lm.score([r.edit.prompt for r in readings], [str(r.edit.target_true) for r in readings])
    means = [score.total / max(1, len(score.logprobs)) for score in scores]
    best, second, *_ = sorted(range(len(readings)), key=lambda i: -means[i])
    old = readings[best].edit.target_true
    clear = means[best] - means[second] >= math.log(FACTOR)
    p, q = (f"{math.exp(means[i]):.2g}" for i in (best, second))
    why = f"the model has {old!r} likeliest here (p = {p} per token; next {q})"
    return _chosen(readings[best], readings, why if clear else f"{why}, which is close", clear or same_fact)


def _chosen(reading: Reading, readings: Sequence[Reading], why: str, sure: bool = True) -> Choice:
    return Choice(reading, why, sure, tuple(other for other in readings if other is not reading))
