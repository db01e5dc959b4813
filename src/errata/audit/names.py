"""Whom an edit may be about: the subjects of a file, or the names that stand in texts."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from errata.errors import BadInput
from errata.inputs import parsed, read_text
from errata.printable import shown
from errata.subjects import last_word
from errata.types import as_text

MOST_TEXTS = 20_000  # of a corpus
MOST_NAMES = 5_000
LONGEST = 200  # characters of a subject
TIMES = 2  # that a name stands in texts at least
# A run of words that begin with a capital letter; whether a sentence begins with it is looked at apart.
RUN = re.compile(r"(?<![\w'’-])[^\W\d_a-z][\w'’-]*(?: [^\W\d_a-z][\w'’-]*){0,4}")
WORD = re.compile(r"[\w'’-]+")
ENDS = ".!?:\n"  # characters behind which a sentence begins
NEAR = 20  # characters before a name that are looked at


@dataclass(frozen=True)
class Candidate:
    """A subject, and prompts about it that somebody gave."""

    subject: str
    prompts: tuple[str, ...] = ()


def read_subjects(file: str | Path) -> list[Candidate]:
    """The subjects of a file, one on each line: a name, or JSON with a ``subject`` and maybe a ``prompt``, as an edit.

    A ``{}`` in a prompt is filled with the subject. Raises :class:`BadInput`, with the number of the line.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(Path(file), "--subjects").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            subject, prompt = _of_line(line.strip())
        except BadInput as error:
            raise BadInput(
                f"{file}, line {number}: {error}; expected a name, or JSON with a subject and maybe a prompt"
            ) from error
        found.setdefault(subject, []).extend([prompt] if prompt else [])
    if not found:
        raise BadInput(f"{file} holds no subject; write one name on each line")
    return [Candidate(subject, tuple(dict.fromkeys(prompts))) for subject, prompts in found.items()]


def _of_line(line: str) -> tuple[str, str]:
    """The subject and the prompt on a line; an empty prompt where there is none."""
    record = parsed(line) if line.startswith("{") else {"subject": line}
    subject, prompt = (as_text(record.get(key, ""), f"the {key}") for key in ("subject", "prompt"))
    if not subject.strip() or len(subject) > LONGEST:
        raise BadInput(f"the subject {shown(subject)} is empty, or longer than {LONGEST} characters")
    prompt = prompt.replace("{}", subject).rstrip()
    if prompt and last_word(prompt, subject) < 0:
        raise BadInput(f"the subject {shown(subject)} does not occur in the prompt {shown(prompt)}")
    return subject.strip(), prompt


def candidates_of(subjects: Iterable[str | Candidate]) -> list[Candidate]:
    """Each subject once, as a candidate. Raises :class:`BadInput` for an empty one."""
    made: dict[str, Candidate] = {}
    for one in subjects:
        candidate = one if isinstance(one, Candidate) else Candidate(as_text(one, "a subject", LONGEST).strip())
        if not candidate.subject:
            raise BadInput("a subject is empty; name whom the model may know something about")
        made.setdefault(candidate.subject, candidate)
    return list(made.values())


def names_in(texts: Iterable[str], most: int = MOST_NAMES) -> list[str]:
    """The names in texts, most frequent first: runs of words with a capital letter, that stand there twice at least.

    A word that a sentence begins with counts only where it is nowhere written small.
    """
    read = list(islice(texts, MOST_TEXTS))
    small = {word for text in read for word in WORD.findall(text) if word[:1].islower()}
    counts: Counter[str] = Counter()
    for text in read:
        for run in RUN.finditer(text):
            words = run[0].removesuffix("'s").removesuffix("’s").split(" ")
            if _begins(text, run.start()):
                if words[0].lower() in small:
                    words = words[1:]
                elif len(words) > 2:  # the first may be a word like any other: So Ann Lee
                    counts[" ".join(words[1:])] += 1
            if len(name := " ".join(words)) > 1:
                counts[name] += 1
    return [name for name, count in counts.most_common(most) if count >= TIMES]


def _begins(text: str, at: int) -> bool:
    """Whether a sentence begins at a place of a text."""
    near = text[max(0, at - NEAR) : at]
    return "\n" in near[len(near.rstrip()) :] or near.rstrip()[-1:] in ENDS


def sentences_about(texts: Iterable[str], subjects: Sequence[str], most: int) -> Mapping[str, list[str]]:
    """For each subject up to so many sentences of texts that name it and go on behind its name."""
    found: dict[str, list[str]] = {subject: [] for subject in subjects}
    for text in islice(texts, MOST_TEXTS):
        wanted = [subject for subject, kept in found.items() if len(kept) < most and subject in text]
        for sentence in re.split(r"(?<=[.!?])\s+", text) if wanted else ():
            for subject in wanted:
                at = last_word(sentence, subject)
                behind = sentence[at + len(subject) :].strip(" .!?") if at >= 0 else ""
                if behind and len(found[subject]) < most and sentence not in found[subject]:
                    found[subject].append(sentence.strip())
    return found
