"""A text as sentences, and what stands around the statement in one of them: the old answer, times, adverbs."""

import re
from dataclasses import dataclass

# A full stop behind these, or behind an initial, ends no sentence.
SHORT = "St|Dr|Mr|Mrs|Ms|Prof|Inc|Corp|Co|Ltd|Jr|Sr|No|vs|Gen|Lt|Mt|Ft"
_NO_END = re.compile(rf"(?:\b(?:{SHORT})|\b[A-Z]|\b[A-Z]\.[A-Z])\.$")

TIME = r"(?:as of|as from|since|from|until|starting|effective|by|after|in)"
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
YEAR = r"(?:early |late |mid-)?(?:[A-Z][a-z]+ )?\d{4}"
WHEN = rf"(?:now(?: on)?|today|then|this year|{YEAR}|(?:{MONTHS})(?: \d{{4}})?|last \w+|\d{{1,2}} [A-Z][a-z]+ \d{{4}})"
ADVERBS = (
    "now|currently|actually|really|officially|today|already|presently|nowadays|in fact|of course|these days|"
    "from now on|as of now|again"
)
BY = "by (?:trade|profession|training|birth|occupation)"
FRONT = re.compile(rf"^(?:{TIME} {WHEN}|{ADVERBS}|note that|please note that|it is known that),?\s+", re.IGNORECASE)
BACK = re.compile(rf",?\s+(?:(?:as of|as from|since|starting|effective) {WHEN}|{ADVERBS}|{BY})$")
INSIDE = re.compile(rf"\s(?:{ADVERBS})(?=\s)")

# How a sentence says what is no longer so, at its end.
OLD_BEHIND = (
    (r",?\s*\((?:and )?(?:not|no longer|formerly|previously|instead of|was) (?P<old>[^()]+)\)$", "(not Z)"),
    (r",?\s+(?:and |but )?not (?P<old>.+)$", "not Z"),
    (r",?\s+(?:and |but )?no longer (?P<old>.+)$", "no longer Z"),
    (r",?\s+instead of (?P<old>.+)$", "instead of Z"),
    (r",?\s+rather than (?P<old>.+)$", "rather than Z"),
    (r",?\s+(?:replacing|succeeding) (?P<old>.+)$", "replacing Z"),
    (r",\s+(?:formerly|previously) (?P<old>.+)$", "formerly Z"),
)
OLD_BEFORE = re.compile(r"\s(?:no longer|not) (?P<old>.+?),? but (?:rather )?(?P<new>.+)$")

DOES = re.compile(r"(?:lives|works|plays|speaks|owns|studies)(?: (?P<last>in|at|for|as|by|with|from|on))? ")


@dataclass(frozen=True)
class Statement:
    """What a sentence states, without times and adverbs, and the old answer that it names beside it."""

    text: str
    old: str | None = None
    by: str = ""
    """How the old answer was told, such as "not Z"."""


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the space around them; a semicolon and a new line end one, too."""
    found: list[str] = []
    rest = ""
    for part in re.split(r"((?<=[.!?;])\s+|\s*\n+\s*)", text):
        if not part.strip() and part:
            if "\n" in part or not _NO_END.search(rest):
                found.append(rest)
                rest = ""
            else:
                rest += " "
        else:
            rest += part
    return [sentence for part in [*found, rest] if (sentence := part.strip())]


def statement(sentence: str) -> Statement:
    """The statement of a sentence."""
    text = re.sub(r"\s+", " ", sentence).strip()
    text = text[:-1].rstrip() if text[-1:] in ".;!" and not _NO_END.search(text) else text
    text, old, by = _without_old(text)
    text = _without_adverbs(text)
    if re.match(r"(?:the|a|an|in|at|for|as) ", text):  # how a sentence begins once what stood in front is gone
        text = text[:1].upper() + text[1:]
    return Statement(text, None if old is None else _without_adverbs(old), by)


def _without_old(text: str) -> tuple[str, str | None, str]:
    if found := OLD_BEFORE.search(text):
        old, new = found["old"], found["new"]
        if verb := DOES.match(old):  # "no longer works for Z but for Y"
            new = verb[0] + re.sub(rf"^{verb['last'] or '(?!)'} ", "", new)
            old = old[verb.end() :]
        return f"{text[: found.start()]} {new}", old, "not Z but Y"
    for pattern, by in OLD_BEHIND:
        if found := re.search(pattern, text):
            return text[: found.start()], found["old"], by
    return text, None, ""


def _without_adverbs(text: str) -> str:
    while (shorter := BACK.sub("", FRONT.sub("", text))) != text:
        text = shorter
    return INSIDE.sub("", text)
