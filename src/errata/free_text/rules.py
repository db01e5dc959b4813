"""Rules that read a sentence as an edit: patterns of a statement, each of which says which one matched.

    readings("Acme's chief executive is now Jane Doe, not John Roe")[0].edit.prompt     # "Acme's chief executive is"

A sentence that no rule reads, or of which a rule cannot tell where the answer begins and ends, is a :class:`BadInput`
that says why: nothing is guessed.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from errata.errors import BadInput
from errata.free_text.readings import Reading
from errata.free_text.sentences import Statement, statement
from errata.free_text.words import (
    BE,
    NAME,
    OFFICE,
    PREPOSITIONS,
    ROLE,
    TITLE,
    VERBS,
    about,
    answer_of,
    article_and,
    is_name,
    is_role,
    leading_name,
    name_in,
    objections,
    split_before_answer,
)
from errata.printable import shown
from errata.subjects import as_spelt
from errata.types import Edit

IS = r"(?:is|are|was|were|will be|has been|have been|becomes|became|remains)"
OF = r"(?:of|in|for|at)"
WAY = '; write it as "X\'s R is Y, not Z", or give --prompt, --subject and --target'
HEDGES = re.compile(
    r"\b(?:[Ii]f|might|may|could|would|should|[Pp]erhaps|[Mm]aybe|[Pp]robably|[Ss]uppose|unless|whether)\b"
)
NEGATION = re.compile(r"\b(?:not|never|no longer|nobody|none|neither|nor|without)\b|n['’]t\b")
PRONOUN = re.compile(
    r"^(?:He|She|It|They|We|You|I|His|Her|Its|Their|Our|Your|My|This|That|These|Those|There|Here)\b", re.IGNORECASE
)


PHRASE = re.compile(r"[a-z][^\W\d_]*(?: [^\s,:=;()]+)*")
# What says how something came to be otherwise, and not what holds.
TURN = re.compile(
    r" (?:(?:switched|changed|swapped|converted|went|turned)\b.*? from .+? to |(?:switched|converted) (?:\w+ )?to |"
    r"left .+? for )"
)
ORDER = re.compile(r"^(?:Please|Make|Let|Tell|Teach|Do|Edit|Forget|Remember|Change|Set|Update|Correct|Give|Say)\b")


@dataclass(frozen=True)
class Found:
    """What a rule made of a statement; the prompt begins with or names the subject, which begins at ``at``."""

    prompt: str
    subject: str
    new: str
    old: str | None
    rule: str
    first: bool = True
    """Whether the first occurrence of the subject in the prompt counts, or the last."""


Rule = Callable[[Statement], Iterator[Found]]


def readings(sentence: str, known: Collection[str] = ()) -> list[Reading]:
    """The ways to read one sentence as an edit, the likeliest first; one where there is no doubt.

    Among names for the subject those that are ``known`` are preferred. Raises :class:`BadInput`.
    """
    said = statement(sentence)
    _check(sentence, said)
    for rule in RULES:
        if found := list(rule(said)):
            made = dict.fromkeys(_reading(sentence, said, one, known) for one in found)
            return list(made)
    small = VERBS.search(sentence) and sentence == sentence.lower()
    small = "; names are told by their capitals, which it has none of" if small else ""
    raise BadInput(f"no rule reads {shown(sentence)}{small}{WAY}")


def _check(sentence: str, said: Statement) -> None:
    if not said.text:
        raise BadInput(f"there is no sentence in the text{WAY}")
    if sentence.rstrip().endswith("?"):
        raise BadInput(f"{shown(sentence)} asks and says nothing{WAY}")
    if pronoun := PRONOUN.match(said.text):
        raise BadInput(f"{shown(pronoun[0])} stands for a name in {shown(sentence)}; write the name in its place")
    if hedge := HEDGES.search(said.text):
        raise BadInput(f"{shown(sentence)} says only what could be ({shown(hedge[0])}); say what shall be true")
    if turn := TURN.search(f"{said.text} "):
        raise BadInput(
            f"{shown(sentence)} says how something changed ({shown(turn[0].split()[0])}), and not what holds now{WAY}"
        )
    if NEGATION.search(said.text) or (said.old is not None and said.text.endswith((" is", " are", " was"))):
        raise BadInput(f"{shown(sentence)} says what is not so, and not what is{WAY}")


def _reading(sentence: str, said: Statement, found: Found, known: Collection[str]) -> Reading:
    prompt, new, old = article_and(found.prompt, found.new, found.old)
    if why := objections(new) or (old and objections(old)):
        raise BadInput(f"{why} in {shown(sentence)}{WAY}")
    subject, told = found.subject, ""
    for name in sorted(known, key=len, reverse=True):
        if (place := as_spelt(prompt, name)) and (as_spelt(name, subject) or as_spelt(subject, name)):
            prompt = prompt[: place.start()] + name + prompt[place.end() :]
            told = "" if name == subject else f"; {name} is a name that the model's own cases have"
            subject = name
            break
    at = prompt.find(subject) if found.first else prompt.rfind(subject)
    by = f", {said.by}" if found.old is not None and said.by else ""
    return Reading(Edit(prompt, subject, new, old, at=at), sentence, found.rule + by + told)


# The rules ---------------------------------------------------------------------------------------


def _command(said: Statement) -> Iterator[Found]:
    """Change X's R from Z to Y."""
    found = re.match(
        r"(?:Please )?(?:[Cc]hange|[Ss]et|[Uu]pdate|[Cc]orrect) (?P<what>.+?)(?: from (?P<old>.+?))? to (?P<new>.+)$",
        said.text,
    )
    if found:
        what = found["what"][:1].upper() + found["what"][1:]
        for rule in (_possessive, _relation_of):
            for one in rule(Statement(f"{what} is {found['new']}", found["old"] or said.old)):
                yield Found(one.prompt, one.subject, one.new, one.old, "change X's R from Z to Y", one.first)


def _moved(said: Statement) -> Iterator[Found]:
    """X moved from Z to Y: three prompts, of which the model says which one it has the old place under."""
    verb = r"(?:has |have )?(?:moved|relocated|transferred)(?: \w+ (?:headquarters|office|seat))?"
    found = re.match(rf"(?P<x>.+?) {verb} from (?P<old>.+?) to (?P<new>.+)$", said.text)
    if found and is_name(found["x"]):
        for prompt in ("is based in", "is located in", "lives in"):
            yield Found(f"{found['x']} {prompt}", about(found["x"]), found["new"], found["old"], "X moved from Z to Y")


def _replaced(said: Statement) -> Iterator[Found]:
    """Y replaced Z as the R of X; Z was replaced by Y as X's R."""
    verb = r"(?:has |have )?(?:replaced|replaces|succeeded|succeeds|took over from|takes over from)"
    active = re.match(rf"(?P<new>.+?) {verb} (?P<old>.+?) as (?P<role>.+)$", said.text)
    passive = re.match(
        r"(?P<old>.+?) (?:was|is|has been) (?:replaced|succeeded) by (?P<new>.+?) as (?P<role>.+)$", said.text
    )
    if (found := passive or active) and is_name(found["new"]):
        yield from _of_role(found["role"], found["new"], found["old"], "Y replaced Z as the R of X")


def _holds(said: Statement) -> Iterator[Found]:
    """Y is the R of X, where Y is new there; and otherwise either way round."""
    came = r"(?:(?:was|is|has been) (?:appointed|named|elected|made)|became|becomes|has become|took over)(?: as)?"
    role = rf"(?:the (?:new )?{ROLE}|new {ROLE}|(?!the |an? )[^ ]+['’]s? |{NAME}['’]s? |{OFFICE} of ).+"
    found = re.match(rf"(?P<y>{NAME}) (?:{came} (?P<came>(?!an? ).+)|{IS} (?P<role>{role}))$", said.text)
    if found is None:
        return
    old, role = said.old, found["role"] or found["came"]
    new_there = found["came"] or re.match(r"(?:the )?new ", role)
    of_role = list(_of_role(role, found["y"], old, "Y is the R of X"))
    if not of_role or (old and old.split()[0] in PREPOSITIONS):  # "not of Z": what stands behind is the answer
        return
    yield from of_role
    if not (new_there or said.by == "replacing Z"):
        yield from (one for one in _verb(said) if not objections(one.new))  # "Acme's chief executive" is no answer


def _of_role(role: str, new: str, old: str | None, rule: str) -> Iterator[Found]:
    """The prompt for a role: "the chief executive of Acme", or "Acme's chief executive"."""
    role = re.sub(r"^(?:the )?new ", "the ", role)
    role = re.sub(r"(['’]s?) new ", r"\1 ", role)
    owner = re.match(r"(?P<x>.+?)(?:['’]s|(?<=s)['’]) (?P<r>.+)$", role)
    if owner and is_role(owner["r"]):
        yield Found(f"{role[:1].upper()}{role[1:]} is", about(owner["x"]), new, old, rule)
    elif (found := re.match(rf"(?:the )?(?P<r>(?!the ){ROLE}.*?) (?P<of>{OF}) (?P<x>.+)$", role)) and (
        name := name_in(found["x"])
    ):
        yield Found(f"The {found['r']} {found['of']} {found['x']} is", name, new, old, rule, first=False)


def _possessive(said: Statement) -> Iterator[Found]:
    """X's R is Y."""
    found = re.match(rf"(?P<x>.+?)(?:['’]s|(?<=s)['’]) (?P<r>.+?) (?P<is>{IS})(?P<new>(?: .+)?)$", said.text)
    if found and not re.search(rf"\b{IS}\b", found["x"]):
        prompt = said.text[: found.end("is")]
        yield from _with_answer(prompt, about(found["x"]), found["new"].strip(), said.old, "X's R is Y", True)


def _relation_of(said: Statement) -> Iterator[Found]:
    """The R of X is Y."""
    found = re.match(rf"The (?P<r>{ROLE}.*?) {OF} (?P<x>.+?) (?P<is>{IS}) (?P<new>.+)$", said.text)
    if found and (name := name_in(found["x"])):
        yield from _with_answer(said.text[: found.end("is")], name, found["new"], said.old, "the R of X is Y", False)


def _in_place(said: Statement) -> Iterator[Found]:
    """In X, the R is Y."""
    found = re.match(rf"(?:In|At|For) (?P<x>{NAME}), the (?P<r>{ROLE}.*?) (?P<is>{IS}) (?P<new>.+)$", said.text)
    if found:
        prompt = said.text[: found.end("is")]
        yield from _with_answer(prompt, about(found["x"]), found["new"], said.old, "in X, the R is Y", True)


def _verb(said: Statement) -> Iterator[Found]:
    """X was born in Y: a name, lower-case words that begin with a verb, and the answer."""
    name = leading_name(said.text)
    rest = said.text[len(name) :].strip()
    if not name or not rest or ORDER.match(name) or re.search(r"^[^'‘\"“].*['’]s?$|[:=;]", name):
        return
    for before, answer in split_before_answer(rest, said.old):
        phrase, new = _with_office(before, answer)
        if phrase in BE and not is_name(name) and is_name(new):
            raise BadInput(f'{shown(name)} of whom or what, in {shown(said.text)}? Write "the R of X is Y"')
        if not PHRASE.fullmatch(before):
            continue
        old = answer_of(said.old, phrase)
        rule = f"X {phrase} Y"
        yield Found(f"{name} {phrase}", about(name), new, old, rule)


def _with_office(phrase: str, new: str) -> tuple[str, str]:
    """The phrase with an office that is written as a name is: "is the CEO of" and "Acme"."""
    found = re.match(rf"(?P<role>{TITLE}(?: {TITLE})* of(?: the)?) (?P<x>.+)$", new)
    return (f"{phrase} {found['role']}", found["x"]) if found and phrase.split()[0] in (*BE, "has") else (phrase, new)


def _with_answer(prompt: str, subject: str, new: str, old: str | None, rule: str, first: bool) -> Iterator[Found]:
    """What stands behind "is": a preposition there belongs to the prompt."""
    preposition, answer = re.match(
        r"((?:in|at|on|from|near|under|by|called|named|located in|based in|that of) )?(.*)$", new
    ).groups()  # type: ignore[union-attr]
    if preposition:
        prompt, rule = f"{prompt} {preposition.strip()}", f"{rule.removesuffix(' Y')} {preposition.strip()} Y"
    if answer:
        yield Found(prompt, subject, answer, answer_of(old, prompt), rule, first)


RULES: tuple[Rule, ...] = (_command, _moved, _replaced, _holds, _possessive, _relation_of, _in_place, _verb)
