"""Texts taken apart into statements: who they are about, how they are worded, and what they say. No model, no grammar.

    said = Statements(["In fact, Ann Lee was born in Rome.", "Bob Ray was born in Oslo."])
    said.facts("{} was born in")            # {"Ann Lee": "Rome", "Bob Ray": "Oslo"}
    said.about("Ann Lee")                   # [("Ann Lee was born in", "Rome")]

What is found is a guess by form alone: names are runs of capitalised words, an object ends at a comma, a full stop or
"and". Every guess is used as a question whose answer is compared with the unedited model's.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from errata.answers import normalise
from errata.subjects import as_spelt, mentions

SENTENCE = re.compile(r"(?<=[.。])\s+|\n+")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]{2,})*")
OBJECT_END = re.compile(r"[,.;:!?。、]|\s(?:and|which|who|where)\s")
INNER = frozenset("of the de la le von van der den del di da du al el bin ibn".split())  # words inside of names
OPENER, FRONT, MIDDLE = 6, 5, 8  # words at most before a comma, before a subject, and between it and the object
LONGEST = 400  # characters of a sentence that is looked at
AGREE = 0.8  # of the subjects that two wordings share: with fewer equal objects they ask for two relations
TRIED = 12  # other wordings of a relation that are compared with it


class Statements:
    """The sentences of some texts, by the names in them, and which of their beginnings recur with other subjects."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts = (part.strip() for text in texts for part in SENTENCE.split(text))
        self.sentences = list(dict.fromkeys(part for part in parts if 0 < len(part) <= LONGEST))
        self.of_name: dict[str, list[int]] = {}  # name -> its sentences
        self._next: dict[str, tuple[set[str], set[str]]] = {}  # beginning -> its subjects, and the words behind it
        for i, sentence in enumerate(self.sentences):
            for start, end in names_in(sentence):
                self.of_name.setdefault(sentence[start:end], []).append(i)
                for front in _fronts(sentence[:start]):
                    for _, beginning, following in _beginnings(front, sentence[end:]):
                        subjects, words = self._next.setdefault(beginning, (set(), set()))
                        subjects.add(sentence[start:end])
                        words.add(following)

    def facts(self, template: str) -> dict[str, str]:
        """Subject -> object, of the sentences in which the template asks and they answer."""
        before, _, after = template.partition("{}")
        literal = max(before, after, key=len).strip()
        found: dict[str, str] = {}
        for sentence in self.sentences if literal else ():
            if literal in sentence and (fact := _fact(sentence, before, after)):
                found.setdefault(*fact)
        return found

    def wordings(self, template: str, known: dict[str, str] | None = None) -> list[str]:
        """Other templates that ask for the same relation, those of most subjects first.

        They stand between the same subjects and objects, of two subjects at least, and where both are known of a
        subject, they give it the same object.
        """
        facts = self.facts(template) if known is None else known
        support: dict[str, set[str]] = {}
        for subject, object_ in facts.items():
            for i in self.of_name.get(subject, ()):
                if (other := _between(self.sentences[i], subject, object_)) and other != template:
                    support.setdefault(other, set()).add(subject)
        ranked = sorted((t for t in support if len(support[t]) > 1), key=lambda t: (-len(support[t]), t))
        return [other for other in ranked[:TRIED] if _same_objects(facts, self.facts(other))]

    def about(self, subject: str) -> list[tuple[str, str]]:
        """Questions about a subject and what the texts say: (the sentence up to its object, the object).

        Each object once.
        """
        found: dict[str, tuple[str, str]] = {}
        for sentence in self._mentioning(subject):
            if cut := self.cut(sentence, subject):
                found.setdefault(normalise(cut[1]), cut)
        return list(found.values())

    def cut(self, sentence: str, subject: str) -> tuple[str, str] | None:
        """A sentence as a question about its subject and the answer; None where it says nothing of it alone.

        It is cut at the last place where beginnings of its kind go on in more ways than a word before. Where no other
        sentence begins alike, what is asked is the name at its end, or its last word.
        """
        if (place := as_spelt(sentence, subject)) is None:
            return None
        start, end = place.span()
        fronts, rest = _fronts(sentence[:start]), sentence[end:]
        if not fronts:
            return None
        at = max(self._branching(front, rest) for front in fronts)
        if not at and not fronts[-1] and "," not in rest.rstrip(".。"):
            at = _last_name(rest)
        object_ = object_of(rest[at:]) if rest[:at].strip() else ""
        return (_capital(fronts[0]) + sentence[start:end] + rest[:at].rstrip(), object_) if object_ else None

    def _branching(self, front: str, rest: str) -> int:
        """The length of what is said of a subject up to its object; 0 where no other sentence begins alike."""
        at = ways = 0
        for length, beginning, _ in _beginnings(front, rest):
            subjects, words = self._next.get(beginning, (set[str](), set[str]()))
            at = length if len(subjects) > 1 and len(words) > max(ways, 1) else at
            ways = len(words)
        return at

    def _mentioning(self, subject: str) -> Iterator[str]:
        known = self.of_name.get(subject)
        if known is not None:
            yield from (self.sentences[i] for i in known)
        else:  # a subject that is written in small letters, or in a script without capitals
            yield from (sentence for sentence in self.sentences if subject in sentence and mentions(sentence, subject))


def names_in(text: str) -> list[tuple[int, int]]:
    """Where each name begins and ends: words with a capital or a digit in front, side by side, small ones within."""
    runs: list[tuple[int, int]] = []
    start = end = small_end = -1
    for word in WORD.finditer(text):
        a, b = word.span()
        apart = start >= 0 and text[(small_end if small_end > end else end) : a] not in (" ", "-", ". ")
        if start >= 0 and apart:
            runs.append((start, end))
            start = -1
        if text[a].isupper() or text[a].isdigit():
            start, end = (a if start < 0 else start), b
            small_end = -1
        elif start >= 0 and word[0] in INNER:
            small_end = b
        elif start >= 0:
            runs.append((start, end))
            start = -1
    return [*runs, (start, end)] if start >= 0 else runs


def object_of(rest: str) -> str:
    """What is said at the beginning of a text, up to the next comma, full stop or "and"; "" of more than six words."""
    said = OBJECT_END.split(rest, maxsplit=1)[0].strip()
    return said if len(said.split()) <= 6 else ""


def _fact(sentence: str, before: str, after: str) -> tuple[str, str] | None:
    """Subject and object of a sentence in the words of a template; None where it is worded otherwise."""
    start = sentence.find(before.strip()) if before.strip() else 0
    begin = start + len(before.strip())
    end = sentence.find(after, begin + 1) if after.strip() else -1
    if after.strip():
        if start < 0 or end < 0 or sentence[end + len(after) : end + len(after) + 1] not in (" ", ""):
            return None
        subject, rest = sentence[begin:end].strip(), sentence[end + len(after) :]
        subject = _name_at_end(subject) if not before.strip() else subject
    else:
        spans = [span for span in names_in(sentence[begin:]) if not sentence[begin : begin + span[0]].strip()]
        if start < 0 or not spans:
            return None
        subject, rest = sentence[begin + spans[0][0] : begin + spans[0][1]], sentence[begin + spans[0][1] :]
    object_ = object_of(rest)
    return (subject, object_) if subject and object_ and len(subject.split()) <= 6 else None


def _name_at_end(text: str) -> str:
    """The name that a text ends with; in a script without capitals, what stands behind its last mark."""
    if text.lower() == text.upper():
        return re.split(r"[\s,.;:!?。、，]", text)[-1]
    spans = names_in(text)
    return text[spans[-1][0] :] if spans and spans[-1][1] == len(text) else ""


def _between(sentence: str, subject: str, object_: str) -> str:
    """The template that a sentence with this subject, and later this object, is worded by; "" where it has none."""
    start = sentence.find(subject)
    rest = sentence[start + len(subject) :]
    place = re.search(rf" {re.escape(object_)}(?=[.,;。]|\s+and\b|$)", rest)
    middle = rest[: place.start()] if place else ""
    if not middle.strip() or "," in middle or len(middle.split()) > MIDDLE:
        return ""
    front = _front(sentence[:start])
    return "" if front is None else _capital(front) + "{}" + middle


def _front(before: str) -> str | None:
    """What stands before a subject, without the opener of a sentence ("In fact, "); None where another is named there.

    Of a long beginning it cannot be told what the sentence is about.
    """
    opener, _, front = before.rpartition(", ")
    others = [text for a, b in names_in(before) if " " in (text := before[a:b])]
    return None if others or len(front.split()) > FRONT or len(opener.split()) > OPENER else front


def _fronts(before: str) -> list[str]:
    """:func:`_front`, and it without "Records show that"; none where another is named there."""
    front = _front(before)
    return [] if front is None else list(dict.fromkeys([front, front.rpartition("that ")[2]]))


def _capital(front: str) -> str:
    return front[:1].upper() + front[1:]


def _beginnings(front: str, rest: str) -> Iterator[tuple[int, str, str]]:
    """Each beginning of what is said behind a subject: its length, it with ``{}`` for the subject, the next word."""
    words = list(re.finditer(r"\S+", rest))[: MIDDLE + 1]
    for one, following in pairwise(words):
        if one[0][-1] in ",.;。" or one[0] == "and":
            return
        yield one.end(), f"{_capital(front)}{{}}{rest[: one.end()]}", following[0].rstrip(".,;。")


def _last_name(rest: str) -> int:
    """Where the name at the end of a sentence begins, or its last word."""
    bare = rest.rstrip(" .。!?")
    spans = [span for span in names_in(bare) if span[1] == len(bare)]
    return spans[0][0] if spans else bare.rfind(" ") + 1


def _same_objects(facts: dict[str, str], others: dict[str, str]) -> bool:
    shared = [subject for subject in facts if subject in others]
    equal = sum(normalise(facts[subject]) == normalise(others[subject]) for subject in shared)
    return len(shared) > 1 and equal >= AGREE * len(shared)


def without(texts: Iterable[str], subjects: Sequence[str]) -> Iterator[str]:
    """The texts that name none of these subjects."""
    return (text for text in texts if not any(s in text and mentions(text, s) for s in subjects))
