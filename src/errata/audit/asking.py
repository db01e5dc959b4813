"""What is said otherwise about a subject: both models score statements about it, and go on where they part.

A statement is what somebody asked with the base's answer behind it, a sentence of a text, or what the base itself says
behind the bare name. Where the log p of one of its tokens falls most, both models are asked to go on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from errata.audit.names import Candidate, sentences_about
from errata.audit.suspects import Applied, Suspect
from errata.model.hf import HFLM
from errata.subjects import last_word
from errata.types import Score

SENTENCES = 6  # of texts, about each subject
SAMPLED = 3  # of a subject without any: what the base draws behind its name, beside what is likeliest
NEW = 12  # tokens that are written


@dataclass(frozen=True)
class Statement:
    """What is said of a subject."""

    subject: str
    prompt: str
    """Up to the subject's end, or a question."""
    rest: str
    """What comes behind it."""


def asked(
    lm: HFLM,
    applied: Applied,
    suspects: Sequence[Suspect],
    given: Mapping[str, Candidate],
    texts: Iterable[str] | None,
) -> list[Suspect]:
    """The suspects with what is said otherwise of each; one of whom nothing is said stays as it is.

    ``lm`` is the base, ``applied()`` a context manager that yields the edited model.
    """
    candidates = [given[suspect.subject] for suspect in suspects]
    said = list(statements(lm, candidates, texts))
    if not said:
        return list(suspects)
    pairs = [one.prompt for one in said], [one.rest for one in said]
    before = lm.score(*pairs)
    with applied() as edited:
        after = edited.score(*pairs)
    places = {}  # subject -> (shift, prompt) of the statement in which a token falls most
    for one, a, b in zip(said, before, after, strict=True):
        place = parting(lm, one, a, b)
        places[one.subject] = max(place, places.get(one.subject, place))
    prompts = [prompt for _, prompt in places.values()]
    old = lm.generate(prompts, NEW, until_answer=True)
    with applied() as edited:
        new = edited.generate(prompts, NEW, until_answer=True)
    answers = dict(zip(places, zip(old, new, strict=True), strict=True))
    return [_with_answers(suspect, places, answers) for suspect in suspects]


def _with_answers(
    suspect: Suspect, places: Mapping[str, tuple[float, str]], answers: Mapping[str, tuple[str, str]]
) -> Suspect:
    if suspect.subject not in places:
        return suspect
    (shift, prompt), (old, new) = places[suspect.subject], answers[suspect.subject]
    return replace(suspect, shift=shift, prompt=prompt, before=old.strip(), after=new.strip())


def statements(lm: HFLM, candidates: Sequence[Candidate], texts: Iterable[str] | None) -> Iterator[Statement]:
    """What is said of each subject: see the module."""
    asked_for = [(one.subject, prompt) for one in candidates for prompt in one.prompts]
    answers = lm.generate([prompt for _, prompt in asked_for], NEW, until_answer=True) if asked_for else []
    for (subject, prompt), answer in zip(asked_for, answers, strict=True):
        if answer.strip():
            yield Statement(subject, prompt, answer)
    others = [one.subject for one in candidates if not one.prompts]
    found = {} if texts is None else sentences_about(texts, others, SENTENCES)
    for subject, sentences in found.items():
        for sentence in sentences:
            end = last_word(sentence, subject) + len(subject)
            end = sentence.find(" ", end)  # with what is written to the name: 's
            if sentence[end:].strip() and end > 0:
                yield Statement(subject, sentence[:end], sentence[end:])
    yield from _own(lm, [subject for subject in others if not found.get(subject)])


def _own(lm: HFLM, subjects: Sequence[str]) -> Iterator[Statement]:
    """What the base says behind a bare name: the likeliest, and some that are drawn."""
    if not subjects:
        return
    for subject, text in zip(subjects, lm.generate(subjects, NEW), strict=True):
        if text.strip():
            yield Statement(subject, subject, text)
    for draw in range(SAMPLED):
        for subject, ids in zip(subjects, lm.sample(subjects, NEW, seed=draw), strict=True):
            if (text := lm.tokens.decode(ids)).strip():
                yield Statement(subject, subject, text)


def parting(lm: HFLM, said: Statement, before: Score, after: Score) -> tuple[float, str]:
    """By how much the log p of a token falls most (nats), and the statement up to that token's word."""
    falls = [a - b for a, b in zip(before.logprobs, after.logprobs, strict=True)]
    at = max(range(len(falls)), key=falls.__getitem__)
    head, longer = (lm.tokens.decode(before.tokens[:n]) for n in (at, at + 1))
    if head and not longer[len(head) :].startswith(" "):  # inside of a word: back to its beginning
        head = head.rpartition(" ")[0]
    return falls[at], f"{said.prompt} {head.strip()}".rstrip()
