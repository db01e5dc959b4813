"""What ``errata edit`` is told in plain sentences: who reads them, what was found, and which edits were meant."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from errata.answers import answer_of
from errata.cli import common
from errata.errors import BadInput, Refused
from errata.printable import shown
from errata.types import LONGEST, Edit, as_text

if TYPE_CHECKING:
    from errata.completions import Completions
    from errata.free_text import Choice, Reading
    from errata.model.hf import HFLM

TRIED = 8  # readings that are listed


def reader_of(url: str | None, model: str | None, text: str | None) -> "Completions | None":
    """Who reads the text where somebody is named; nothing is sent yet. Raises :class:`BadInput`."""
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise BadInput("a reader needs both --reader URL and --reader-model NAME")
    if text is None:
        raise BadInput('--reader reads a text; give one behind MODEL, such as "X\'s R is now Y, not Z"')
    from errata.completions import Completions

    return Completions(url, model, who="reader", option="--reader")


def found_in(text: str, reader: "Completions | None", yes: bool) -> "list[list[Reading]]":
    """For each statement in a text the ways to read it. Raises :class:`BadInput`, and :class:`Refused` where nobody can
    be asked whether they are right."""
    from errata.free_text import read, readings, sentences

    as_text(text, "a text", LONGEST)
    if not (yes or common.is_interactive()):
        way = "" if reader else f" ({'; '.join(r[0].words for r in map(readings, sentences(text)))})"
        raise Refused(f"nobody is here to confirm what was found in the text{way}; add --yes to take it as it is")
    if reader is not None:
        with common.step(f"{reader.model} reads", quiet=False):
            return [[one] for one in read(reader, text)]
    found = [readings(sentence) for sentence in sentences(text)]
    if not found:
        raise BadInput('the text is empty; say what shall be true, such as "X\'s R is now Y, not Z"')
    return found


def settled(lm: "HFLM", found: "Sequence[list[Reading]]", by_rules: bool, yes: bool, quiet: bool) -> list[Edit]:
    """The edits that were meant: each is shown with why it was found, and confirmed unless ``yes``.

    Raises :class:`Refused` where one is not confirmed, or with ``yes`` is in doubt.
    """
    from errata.free_text import choose, names_of, readings

    names = names_of(lm)
    if by_rules and names:
        found = [readings(ways[0].sentence, names) for ways in found]
    edits: list[Edit] = []
    for ways in found:
        choice = choose(ways, lm, names)
        if not (yes and quiet):
            _show(lm, choice)
        edits.append((_taken(choice) if yes else _confirmed(choice)).edit)
    return edits


def _show(lm: "HFLM", choice: "Choice") -> None:
    reading = choice.reading
    (now,) = lm.generate([reading.edit.prompt], until_answer=True)
    common.say(reading.sentence)
    common.say(f"  {reading.words}")
    common.say(f"  read by: {reading.rule}" + (f"; chosen: {choice.why}" if choice.others else ""))
    common.say(f"  the model says now: {common.one_line(answer_of(now), 60)}")


def _taken(choice: "Choice") -> "Reading":
    if choice.sure:
        return choice.reading
    others = " or ".join(other.words for other in (choice.reading, *choice.others[:TRIED]))
    raise Refused(
        f'{shown(choice.reading.sentence)} can be read as {others}; say what is no longer so (", not Z"), or type '
        f"{_typed(choice.reading.edit)}"
    )


def _confirmed(choice: "Choice") -> "Reading":
    ways = [choice.reading, *choice.others[:TRIED]]
    if len(ways) == 1:
        if typer.confirm("Make this edit?", default=True, err=True):
            return choice.reading
        raise Refused(f"not confirmed, so nothing was written; type {_typed(choice.reading.edit)} and change it")
    for number, way in enumerate(ways, start=1):
        common.say(f"  {number}: {way.words}")
    number = _picked(len(ways), 1 if choice.sure else None)
    if number:
        return ways[number - 1]
    raise Refused(f"not confirmed, so nothing was written; type {_typed(choice.reading.edit)} and change it")


def _picked(most: int, default: int | None) -> int:
    """The number that somebody types, from 0 to ``most``; asked again for anything else."""
    while (
        not 0
        <= (number := int(typer.prompt("Which one is meant (0: none)", type=int, default=default, err=True)))
        <= most
    ):
        common.say(f"type a number from 0 to {most}")
    return number


def _typed(edit: Edit) -> str:
    """The options that give an edit."""
    return shlex.join(["--prompt", edit.template, "--subject", edit.subject, "--target", edit.target_new])
