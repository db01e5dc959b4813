"""Where a prompt names its subject. Functions of texts; no model."""

import re
import unicodedata

from errata.errors import BadInput
from errata.printable import shown

# Scripts whose words may stand side by side, as a class of a regular expression: Thai to Burmese, Khmer, Japanese,
# Chinese; and Korean, where particles join the noun.
UNSPACED = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
# Words that no subject begins or ends with, where it is no name; and with which a sentence begins in a capital.
FUNCTION_WORDS = frozenset(
    "the a an of in on at to from for by with and or as is are was were be been has have had do does did will not no "
    "he she it they we you i his her its their our your my this that these those who whom whose what which where when "
    "why how there here if so but q".split()
)
_LINKS = "of|the|de|del|della|di|da|von|van|der|den|du|la|le|al|bin|ibn|and|&"
_UPPER = r"(?:(?:[A-Z]\.)+|(?:St|Dr|Mr|Mrs|Ms|Jr|Sr)\.|[^\W\d_]*[A-ZÀ-ÖØ-ÞĀ-Ž][\w&’'-]*(?:\.\w+)*|\d[\d.,]*\w*)"
_NAMES = re.compile(rf"(?<!\w){_UPPER}(?: (?:(?:{_LINKS}) ){{0,2}}{_UPPER})*")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def placed(prompt: str, subject: str, at: int | None = None) -> tuple[str, int]:
    """The prompt, each ``{}`` in it filled with the subject, and where the subject begins in it.

    That is the place of the last ``{}``; without one, ``at``; without that, the subject's last occurrence that begins
    and ends at a word border. Raises :class:`BadInput` where there is none.
    """
    before, slot, after = prompt.rpartition("{}")
    if slot:
        before = before.replace("{}", subject)
        return before + subject + after, len(before)
    if at is not None:
        if prompt[at : at + len(subject)] != subject or at < 0:
            raise BadInput(
                f"the subject {shown(subject)} does not begin at character {at} of {shown(prompt)}; leave `at` out"
            )
        return prompt, at
    found = last_word(prompt, subject)
    if found < 0 and subject in prompt:
        raise BadInput(
            f"the subject {shown(subject)} occurs in {shown(prompt)} only inside of words; put {{}} where it is meant: "
            f"{shown('{}'.join(prompt.rsplit(subject, 1)), 200)}"
        )
    if found < 0:
        raise BadInput(
            f"the subject {shown(subject)} does not occur in the prompt {shown(prompt)}; "
            "write it there as it is, or put {} in its place"
        )
    return prompt, found


def last_word(text: str, subject: str) -> int:
    """Where the last occurrence begins that begins and ends at a word border; -1 where there is none."""
    at = text.rfind(subject)
    while at >= 0 and not _is_word(text, at, at + len(subject)):
        at = text.rfind(subject, 0, at + len(subject) - 1)
    return at


def mentions(text: str, subject: str) -> bool:
    """Whether the text has the subject as a word, and not only inside of others."""
    return subject in text and last_word(text, subject) >= 0


def as_spelt(text: str, subject: str) -> re.Match[str] | None:
    """The first place where a text names its subject as a word, whatever its letter cases."""
    found = re.finditer(re.escape(subject), text, re.IGNORECASE)
    return next((place for place in found if _is_word(text, *place.span())), None)


def words_of(text: str) -> list[tuple[int, int]]:
    """Where each word of a text begins and ends; each sign is one in a script without spaces."""
    return [place.span() for place in _WORD.finditer(text)]


def names_in(text: str) -> list[tuple[int, int]]:
    """Where each name of a text begins and ends: words with capitals or digits, with "of" and the like between them.

    Without "'s" at its end, and without a word at its beginning that only a sentence's start has made large.
    """
    found: list[tuple[int, int]] = []
    for place in _NAMES.finditer(text):
        start, words = place.start(), place[0].split(" ")
        while words and words[0].strip(".,").lower() in FUNCTION_WORDS:
            start, words = start + len(words[0]) + 1, words[1:]
        name = re.split(r"['’]s(?!\w)", " ".join(words))[0].rstrip("'’,")
        if any(character.isalpha() for character in name):
            found.append((start, start + len(name)))
    return found


def content_spans(text: str, longest: int) -> list[tuple[int, int]]:
    """Where each run of at most ``longest`` words begins and ends that no function word begins or ends."""
    words = words_of(text)
    bare = [text[a:b].lower() in FUNCTION_WORDS or (b - a < 2 and text[a:b].isascii()) for a, b in words]
    pairs = ((i, j) for i in range(len(words)) for j in range(i, min(i + longest, len(words))))
    return [(words[i][0], words[j][1]) for i, j in pairs if not bare[i] and not bare[j]]


def template_of(prompt: str, subject: str, at: int | None = None) -> str:
    """A prompt that names its subject (at ``at``, by default as :func:`placed`) with ``{}`` in its place."""
    start = last_word(prompt, subject) if at is None else at
    return prompt[:start] + "{}" + prompt[start + len(subject) :]


def _is_word(text: str, start: int, end: int) -> bool:
    return _border(text, start) and _border(text, end)


def _border(text: str, at: int) -> bool:
    """Whether no word goes on from before ``at`` to behind it; any place is one beside a script without spaces."""
    sides = text[max(at - 1, 0) : at + 1]
    inside = 0 < at < len(text) and all(c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" for c in sides)
    return not inside or _UNSPACED.search(sides) is not None
