"""Examples in which subjects and answers have other names, so that a reader learns to read and not the names."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from errata.methods.trained.examples import Asked, Example
from errata.subjects import mentions, template_of
from errata.types import Edit

ROOM = 4  # for special tokens


def crossed(name: str, other: str) -> str:
    """The beginning of one name with the end of another: by words where both have several, else by letters."""
    one, two = name.split(), other.split()
    if len(one) > 1 and len(two) > 1:
        return " ".join([*one[: len(one) // 2], *two[len(two) // 2 :]])
    return name[: (len(name) + 1) // 2] + other[len(other) // 2 :]


def renamed(text: str, subject: str, name: str) -> str:
    """The text with another name in the subject's place, wherever it stands as a word."""
    while mentions(text, subject) and not mentions(name, subject):
        text = template_of(text, subject).replace("{}", name)
    return text


def varied(example: Example, others: Sequence[Example], rng: Random, limit: int | None = None) -> Example:
    """The example about another subject, at one half, and with another answer, at one half.

    Subject and answer are crossed from those of other examples. The answer is changed where all that follows from the
    edit has it. Where a text might come to more than ``limit`` tokens the example stays as it is.
    """
    subjects, targets = [e.edit.subject for e in others], [e.edit.target_new for e in others]
    subject, target = example.edit.subject, example.edit.target_new
    if rng.random() < 0.5:
        subject = crossed(rng.choice(subjects), rng.choice(subjects))
    if rng.random() < 0.5 and all(asked.answer == target for asked in example.follow):
        target = crossed(rng.choice(targets), rng.choice([*targets, *subjects]))
    found = _about(example, subject, target)
    return found if limit is None or _longest(found) + ROOM <= limit else example


def _longest(example: Example) -> int:
    """Bytes of the longest prompt with its answer: no tokenizer makes more tokens of them, but for special ones."""
    return max(len(f"{a.prompt} {a.answer}".encode()) for a in (example.asked, *example.follow, *example.keep))


def _about(example: Example, subject: str, target: str) -> Example:
    old = example.edit

    def of(asked: Asked) -> Asked:
        answer = target if asked.answer == old.target_new else asked.answer
        return replace(asked, prompt=renamed(asked.prompt, old.subject, subject), answer=answer)

    edit = Edit(old.template, subject, target) if subject != old.subject or target != old.target_new else old
    return Example(edit, tuple(map(of, example.follow)), tuple(map(of, example.keep)))
