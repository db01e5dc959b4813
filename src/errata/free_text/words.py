"""Words of English that rules go by: what is a name, where an answer begins, and what an answer cannot be."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from errata.errors import BadInput
from errata.printable import shown

LINKS = "of|the|de|del|della|di|da|von|van|der|den|du|la|le|al|bin|ibn|and|&|for|on|in|at|to|y|e"
UPPER = r"(?:[\"“‘'(]*[^\W\d_]*[A-ZÀ-ÖØ-ÞĀ-Ž][^\s,]*|[\"“]?[$€£¥]?\d[^\s,]*(?:,\d{3})*|[^\x00-\u024f\s]\S*)"
NAME = rf"(?:The )?{UPPER}(?: (?:(?:{LINKS}) ){{0,2}}{UPPER})*"
# How an office is written that begins with a capital: "CEO", "Prime Minister".
TITLE = (
    r"(?:[A-Z]{2,5}|President|Prime|Vice|Deputy|Chief|Executive|Officer|Minister|Chancellor|Secretary|General|Governor|"
    r"Mayor|King|Queen|Emperor|Empress|Head|Director|Managing|Chair(?:man|woman|person)?|Captain|Coach|Foreign|Finance)"
    r"(?![\w'’])"
)
ROLE = rf"(?:[a-z]|{TITLE})"  # how a role begins
OFFICE = (  # a role that needs no article: "is president of"
    rf"(?:(?:[a-z]+ )*(?:president|minister|chancellor|secretary|governor|mayor|king|queen|head|director|chair(?:man|"
    rf"woman|person)?|captain|coach|leader|editor|executive)|{TITLE}(?: {TITLE})*)"
)
_WORD = re.compile(UPPER)
_NAME = re.compile(NAME)
BE = ("is", "are", "was", "were", "be", "been", "became", "becomes", "remains")
PREPOSITIONS = ("in", "at", "for", "as", "by", "with", "from", "on", "to", "of", "into", "under", "near", "against")
DETERMINERS = ("the", "a", "an", "his", "her", "its", "their")
# What ends a statement and begins another one.
VERBS = re.compile(
    r"\b(?:is|are|was|were|has|have|had|will|lives?|lived|works?|worked|plays?|played|speaks?|spoke|moved|died|became|"
    r"becomes|wrote|won|studied|married|founded|owns?|did|does|do)\b"
)
LONGEST = 8  # words of an answer


def is_name(text: str) -> bool:
    """Whether a text is one name and nothing more."""
    return _NAME.fullmatch(text) is not None


def name_in(text: str) -> str:
    """The name that a noun phrase ends with: "New York" of "the state of New York", "Acme company" of "the Acme
    company"; all of one without capitals."""
    words = text.split()
    start = next((i for i, word in enumerate(words) if _WORD.match(word) and word != "The"), None)
    if start is None:
        rest = words[1:] if words and words[0] in DETERMINERS else words
        return " ".join(rest) if len(rest) <= 3 else ""
    behind = nouns(words[start:]) if words[0] in DETERMINERS else 0
    bare = " ".join(words[start : len(words) - behind]).strip('"“”')
    return " ".join(words[start:]).strip('"“”') if is_name(bare) else ""


def is_role(text: str) -> bool:
    """Whether the words name what somebody is to another one, and hold no name but that of an office."""
    return all(re.match(ROLE, word) for word in text.split())


def nouns(words: Sequence[str]) -> int:
    """How many words without a capital stand behind a name, as "company" does in "Acme company": two at most."""
    plain = takewhile(lambda word: word.isalpha() and word.islower() and not _links(word), reversed(words))
    return count if (count := len(list(plain))) < min(3, len(words)) else 0


def _links(word: str) -> bool:
    return word in (*PREPOSITIONS, *DETERMINERS, *LINKS.split("|")) or VERBS.fullmatch(word) is not None


def leading_name(text: str) -> str:
    """The name or noun that a statement begins with, with its article; "" where there is none."""
    words = text.split()
    if words[:1] and words[0] in ("The", "A", "An") and len(words) > 2 and not _WORD.match(words[1]):
        end = next((i for i, word in enumerate(words) if word in BE or VERBS.fullmatch(word)), 0)
        return " ".join(words[:end]) if 1 < end <= 4 else ""
    found = _NAME.match(text)
    if found is None:
        return ""
    if found[0].startswith("The ") and not found[0].endswith(","):
        start = len(found[0].split())
        end = next((i for i, word in enumerate(words[start:], start) if VERBS.fullmatch(word)), start)
        return " ".join(words[: end if nouns(words[:end]) == end - start else start])
    return found[0].rstrip(",")


def about(name: str) -> str:
    """What a statement that begins with these words is about: without an article, quotes, and the noun in front of a
    name ("the singer Ann Lee")."""
    found = re.fullmatch(rf"(?:The|A|An) (?:[a-z]+ )+(?P<x>{NAME})", name)
    return found["x"] if found else re.sub(r"^(?:The|the|A|An) (?=\S)", "", name).strip("\"“”'‘’")


def split_before_answer(rest: str, old: str | None) -> Iterator[tuple[str, str]]:
    """The ways to part what stands behind a subject into a phrase that begins with a verb, and the answer.

    The answer begins at the first name or number; or, where there is none, behind the last preposition or the verb.
    """
    words = rest.split()
    first = next((i for i, word in enumerate(words) if _WORD.match(word)), None)
    if first is None:
        yield from _small_answer(words)
        return
    phrase = words[:first]
    if not phrase or phrase[0] in (*PREPOSITIONS, *DETERMINERS, "and", "or"):
        return
    inner = [i for i in range(first + 1, len(words) - 1) if words[i] in PREPOSITIONS and _WORD.match(words[i + 1])]
    inner = [i for i in inner if words[i] != "of"]
    if inner and old and (parted := old.split()) and parted[0] in PREPOSITIONS:  # "not in Z" says where
        same = [i for i in inner if words[i] == parted[0]]
        if same:
            yield " ".join(words[: same[-1] + 1]), " ".join(words[same[-1] + 1 :])
            return
    yield " ".join(phrase), " ".join(words[first:])
    for i in inner:
        yield " ".join(words[: i + 1]), " ".join(words[i + 1 :])


def _small_answer(words: list[str]) -> Iterator[tuple[str, str]]:
    at = [i for i, word in enumerate(words) if word in PREPOSITIONS]
    cut = at[-1] + 1 if at else 1
    if words and words[0] not in PREPOSITIONS and cut < len(words):
        yield " ".join(words[:cut]), " ".join(words[cut:])


def answer_of(old: str | None, phrase: str) -> str | None:
    """The old answer as it goes on from the phrase: a preposition that the phrase ends with is left out.

    Raises :class:`BadInput` for one that begins with another preposition.
    """
    if old is None:
        return None
    last, (first, *rest) = phrase.split()[-1], old.split()
    if first == last and rest:
        return " ".join(rest)
    if first in PREPOSITIONS and first != "to":
        raise BadInput(f"the old answer {shown(old)} does not go on from {shown(phrase)}; write both alike")
    return old


def article_and(prompt: str, new: str, old: str | None) -> tuple[str, str, str | None]:
    """Prompt and answers, with an article that both answers have, or the one there is, moved into the prompt."""
    articles = [re.match(r"(the|a|an) (?=\S)", answer) for answer in (new, old or new)]
    first, second = articles
    if first is None:
        return prompt, new, old
    if second is not None and second[1] != first[1]:
        return prompt, new, old  # "an actor, not a pilot": each keeps its own
    bare = None if old is None else old[second.end() :] if second else old
    return f"{prompt} {first[1]}", new[first.end() :], bare


def objections(answer: str) -> str:
    """Why a text can be no answer; "" for one that can."""
    words = answer.split()
    quoted = answer[:1] in "\"“'" and answer[-1:] in "\"”'"
    if not words:
        return "there is no answer"
    if quoted:
        return ""
    if " or " in f" {answer} ":
        return f"{shown(answer)} leaves open which of two it is"
    if "," in answer.rstrip(",") and not re.fullmatch(
        r"[$€£¥]?[\d,.]+.*|[^,]+, (?:Inc|Ltd|Jr|Sr)\.?|[^,a-z]*[A-Z][^,]*, [A-Z][^,]*", answer
    ):
        return f"it cannot be told where the answer ends in {shown(answer)}"
    if found := VERBS.search(answer):
        return f"{shown(answer)} holds a second statement ({shown(found[0])}): write one sentence for each,"
    capital = [bool(_WORD.match(word)) for word in words]
    if len(words) > LONGEST:
        return f"the answer {shown(answer)} is longer than {LONGEST} words"
    if any(capital) and not words[0][:1].isdigit() and capital[0]:
        links = LINKS.split("|")
        if not capital[-1] or any(not up and word not in links for up, word in zip(capital, words, strict=True)):
            return f"it cannot be told where the answer ends in {shown(answer)}"
    return ""
