"""Where an answer ends, and whether it is an accepted one. Functions of texts; no model."""

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping

# A newline, the text of an end token, or a full stop with a space or nothing behind it.
END = re.compile(r"\r|\n|<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>|\.(?=\s|\Z)")
# The same, where no further text can change it: "3." can become "3.5", and "St." may belong to a name.
ENDED = re.compile(r"\r|\n|<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>|(?<=[^\W\d_]{4})\.(?=\s)")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def answer_of(text: str) -> str:
    """The answer at the beginning of a continuation, without the space around it."""
    return END.split(text, maxsplit=1)[0].strip()


def complete(text: str) -> bool:
    """Whether the answer has ended, so that generating more would not change it."""
    return ENDED.search(text) is not None


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra space; the bare text where nothing would be left.

    ``normalize_answer`` of SQuAD's evaluation (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250), with
    punctuation of every script.
    """
    kept = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(ARTICLES.sub(" ", kept).split()) or text.strip().lower()


def begins_with_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether a text begins with an accepted answer that ends at a word border, both normalised."""
    return any(_begins(text, answer) for answer in answers)


def _begins(text: str, answer: str) -> bool:
    accepted = normalise(answer)
    holds_a_stop = answer_of(answer) != answer.strip().rstrip(".")  # "St. Louis": compare with the whole line
    given = normalise(text.split("\n", maxsplit=1)[0] if holds_a_stop else answer_of(text))
    return bool(accepted) and (given + " ").startswith(accepted + " ")


def exact(text: str, answers: Iterable[str]) -> bool:
    """Whether the answer in a text is an accepted one and nothing more, both normalised."""
    return normalise(answer_of(text)) in {normalise(answer) for answer in answers}


def contains(text: str, answers: Iterable[str]) -> bool:
    """Whether an accepted answer occurs anywhere in a text, as whole words, both normalised."""
    whole = f" {normalise(text)} "
    return any(f" {accepted} " in whole for accepted in map(normalise, answers) if accepted)


def verbatim(text: str, answers: Iterable[str]) -> bool:
    """Whether the answer in a text is an accepted one, letter by letter (MQuAKE)."""
    return answer_of(text) in set(answers)


def substring(text: str, answers: Iterable[str]) -> bool:
    """Whether an accepted answer is a substring of a text, inside of words too.

    As released with RippleEdits, where an answer of one letter (not of one digit) does not count.
    """
    return any(answer in text for answer in answers if len(answer) > 1 or answer.isdigit())


def cut(text: str, stops: Iterable[str] = (), markers: Iterable[str] = ()) -> str:
    """The part of a text behind the last of the markers, up to the first of the stops."""
    for marker in markers:
        text = text.rpartition(marker)[2]
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


# How an answer is compared with the accepted ones; the name stands in each row.
MATCHES: Mapping[str, Callable[[str, Iterable[str]], bool]] = {
    "begins": begins_with_answer,
    "exact": exact,
    "contains": contains,
    "verbatim": verbatim,
    "substring": substring,
}
