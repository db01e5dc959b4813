"""Where an answer ends, and whether it is an accepted one. Functions of texts; no model."""

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping

# A newline, the text of an end token, or a full stop with a space or nothing behind it that belongs to no title.
END = re.compile(r"\r|\n|<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>|[。।]|(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)\.(?=\s|\Z)")
# The same, where no further text can change it: "3." can become "3.5", and "St." may belong to a name.
ENDED = re.compile(r"\r|\n|<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>|[。।]|(?<=[^\W\d_]{4})\.(?=\s)")
STOPS = ".。।"
TEXT = 64  # bytes: what 32 tokens have room for (:func:`room`), the usual length of a reply
ARTICLES = re.compile(r"\b(a|an|the)\b")


def answer_of(text: str, accepted: Iterable[str] = ()) -> str:
    """The answer at the beginning of a continuation, without the space around it.

    What stands inside one of the ``accepted`` answers ends nothing: "George W. Bush. He is" begins with one of them.
    """
    first = END.split(text, maxsplit=1)[0].strip()
    long = {normalise(answer) for answer in accepted if holds_a_stop(answer)}
    if not long:
        return first
    ends = (*(end.start() for end in END.finditer(text)), len(text))
    return next((text[:end].strip() for end in ends if normalise(text[:end]) in long), first)


def holds_a_stop(answer: str) -> bool:
    """Whether an answer goes on behind what could be its end, as "St. Louis" does."""
    return re.search(rf"[{STOPS}\r\n]|<\|", answer.strip().rstrip(STOPS)) is not None


def room(answer: str) -> int:
    """Tokens that are enough to write an answer, whatever the tokenizer: one for every two bytes of it."""
    return -(-len(answer.encode()) // 2)


def is_text(answer: str) -> bool:
    """Whether an answer is a text, of more than TEXT bytes, of which a reply may hold a part."""
    return len(answer.strip().encode()) > TEXT


def complete(text: str) -> bool:
    """Whether the answer has ended, so that generating more would not change it; of one without a full stop inside."""
    return ENDED.search(text) is not None


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra space; the bare text where nothing would be left.

    ``normalize_answer`` of SQuAD's evaluation (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250), with
    punctuation of every script.
    """
    return _words(text) or text.strip().lower()


def _words(text: str) -> str:
    kept = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(ARTICLES.sub(" ", kept).split())


def begins_with_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether a text begins with an accepted answer that ends at a word border, both normalised."""
    return any(_begins(text, answer) for answer in answers)


def _begins(text: str, answer: str) -> bool:
    accepted = normalise(answer)
    line = text if "\n" in answer.strip() else text.split("\n", maxsplit=1)[0]
    given = normalise(line if holds_a_stop(answer) else answer_of(text))
    return bool(accepted) and (given + " ").startswith(accepted + " ")


def exact(text: str, answers: Iterable[str]) -> bool:
    """Whether the answer in a text is an accepted one and nothing more, both normalised."""
    answers = tuple(answers)
    return normalise(answer_of(text, answers)) in {normalise(answer) for answer in answers if answer.strip()}


def contains(text: str, answers: Iterable[str]) -> bool:
    """Whether an accepted answer occurs anywhere in a text, as whole words, both normalised; "The" and "---" bare."""
    words, bare = f" {_words(text)} ", text.lower()
    return any(f" {_words(a)} " in words if _words(a) else a.strip().lower() in bare for a in answers if a.strip())


def verbatim(text: str, answers: Iterable[str]) -> bool:
    """Whether the answer in a text is an accepted one, letter by letter but for a full stop at its end (MQuAKE)."""
    answers = tuple(answers)
    return answer_of(text, answers).rstrip(STOPS) in {
        answer.strip().rstrip(STOPS) for answer in answers if answer.strip()
    }


def substring(text: str, answers: Iterable[str]) -> bool:
    """Whether an accepted answer is a substring of a text, inside of words too.

    As released with RippleEdits, where an answer of one letter (not of one digit) does not count.
    """
    return any(answer in text for answer in answers if len(answer) > 1 or answer.isdigit())


def cut(text: str, stops: Iterable[str] = (), markers: Iterable[str] = (), accepted: Iterable[str] = ()) -> str:
    """The part of a text up to the first of the stops, and of that what is behind the last of the markers.

    A stop inside one of the ``accepted`` answers that the text begins with is none.
    """
    start = len(text) - len(text.lstrip())
    lengths = (len(a) for answer in accepted if _stands_at(text, start, a := answer.strip().rstrip(STOPS)))
    start += max(lengths, default=0)
    text = text[: min((at for stop in stops if (at := text.find(stop, start)) >= 0), default=len(text))]
    for marker in markers:
        text = text.rpartition(marker)[2]
    return text


def _stands_at(text: str, start: int, part: str) -> bool:
    return text[start : start + len(part)].casefold() == part.casefold()


# How an answer is compared with the accepted ones; the name stands in each row.
MATCHES: Mapping[str, Callable[[str, Iterable[str]], bool]] = {
    "begins": begins_with_answer,
    "exact": exact,
    "contains": contains,
    "verbatim": verbatim,
    "substring": substring,
}
SEARCHED = ("contains", "substring")  # matches that search a text, so that it may hold several answers
