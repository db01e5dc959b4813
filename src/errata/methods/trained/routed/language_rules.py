"""What a language patch says: "if c then ...", read from an edit.

Edit("If {} was born in Tivik, {} speaks", "a person", "Russian")     # c: whoever is asked about was born in Tivik
Edit("{} speaks", "Ann Lee", "Russian")                               # c: Ann Lee is who is asked about

A condition is a clause about any subject: the edit's prompt is "If <clause>, <prompt>", both name its subject, and that
is no name (it begins with a small letter).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.printable import shown
from errata.subjects import last_word, mentions, template_of
from errata.types import Edit

IF, THEN = "If ", "then "
NOT = re.compile(r"\b(?:not|never)\b|n't", re.IGNORECASE)
JOINED = ("and", "or")
WORDS = 12  # at the end of a clause, among which the object begins


@dataclass(frozen=True)
class Rule:
    """A prompt that a subject is asked about with, and the condition that the subject must meet.

    Templates have ``{}`` in the subject's place. ``subject`` is the one that is meant, or None: whoever meets the
    ``clause``, a template that ends with what must hold.
    """

    asks: str
    subject: str | None
    clause: str | None = None

    def about(self, subject: str) -> str:
        """The rule's prompt about a subject."""
        return filled(self.asks, subject)


def rule_of(prompt: str, subject: str, at: int | None = None) -> Rule:
    """The rule that an edit's prompt says. Raises :class:`BadInput` for a condition that no gate can look up."""
    start = last_word(prompt, subject) if at is None else at
    head = prompt[:start]
    commas = [m.start() for m in re.finditer(", ", head) if mentions(head[: m.start()], subject)]
    if not (prompt.startswith(IF) and commas and subject[0].islower()):
        return Rule(template_of(prompt, subject, at), subject)
    clause, asks = prompt[len(IF) : commas[-1]], prompt[commas[-1] + 2 :].removeprefix(THEN)
    clause = template_of(clause, subject)
    if not _behind(clause):
        raise BadInput(
            f"the condition {shown(clause)} ends with its subject; put what must hold at its end: "
            f"'{IF}{subject} was born in Oslo, ...'"
        )
    return Rule(template_of(asks, subject), None, clause)


def filled(template: str, subject: str) -> str:
    """The text that a template makes of a subject, with a capital letter at its beginning."""
    text = template.replace("{}", subject)
    return text[:1].upper() + text[1:]


def object_of(lm: HFLM, edit: Edit, clause: str, subjects: Sequence[str]) -> str:
    """What must hold of a subject at a clause's end: "Tivik" of "{} was born in Tivik".

    It begins where the model's next token depends on the subject the most: where the mutual information of the two,
    H(mean p) − mean H(p) over some subjects, is largest.
    """
    words = clause.split(" ")
    starts = range(len(words) - min(WORDS, _behind(clause)), len(words))
    prompts = [filled(" ".join(words[:k]), subject) for k in starts for subject in subjects]
    p = np.exp(lm.next_logprobs(prompts)).reshape(len(starts), len(subjects), -1)  # (k, n, V)
    told = _entropy(p.mean(1)) - _entropy(p).mean(1)
    at = starts[int(told.argmax())]
    two = any(told[k] > told.max() / 2 and set(JOINED) & set(words[starts[k] : at]) for k in range(len(told)))
    if two or NOT.search(" ".join(words[:at])):
        raise BadInput(
            f"the condition of {shown(edit.prompt)} is not one plain statement that ends with what must hold; "
            "make an edit of each"
        )
    return " ".join(words[at:])


def _behind(clause: str) -> int:
    """Words behind the one that holds the subject."""
    return clause.rpartition("{}")[2].count(" ")


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)
