"""Texts from outside as a person may see them: what would steer a terminal, or turn a line around, is written out.

printable("\x1b[2J")       # '\\x1b[2J', the four characters of the escape in the place of one
"""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from reprlib import Repr
from typing import Any

# C0 and C1 controls and DEL, Unicode's line ends, marks that turn the direction of text, halves of characters.
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
WIDTH = 80  # characters of a value in a message
LISTED = 20  # names in a list


def printable(text: str, keep: str = "") -> str:
    """The text with each steering character as Python writes it (``\\x1b``, ``\\n``), but for those in ``keep``."""
    return STEERING.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), text)


def shown(value: Any, width: int = WIDTH) -> str:
    """The value as Python writes it, cut at some ``width`` characters: for messages, where a text may be a book."""
    if isinstance(value, str):
        return repr(value) if len(value) <= width else f"{value[:width]!r}…"
    short = Repr()  # goes no deeper and no further than a few items
    short.maxstring = short.maxother = width
    short.maxlevel = 3
    line = short.repr(value)
    return line if len(line) <= width else f"{line[:width]}…"


def listed(names: Iterable[Any]) -> str:
    """Names with commas between, the first of them where they are many; "nothing" where there are none."""
    items = [printable(str(name)) for name in islice(names, LISTED + 1)]
    line = ", ".join(items[:LISTED])
    line = line if len(line) <= LISTED * WIDTH else line[: LISTED * WIDTH] + "…"
    return (line + ", …" * (len(items) > LISTED)) or "nothing"


def in_markdown(text: str) -> str:
    """The text on one line, so that Markdown shows its letters: there are no tags, links, code or emphasis in it."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*]|_(?=\W|$)|(?<!\w)_|\](?=[(:\[])", r"\\\g<0>", text)


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, each cell shown letter by letter."""
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(
        f"| {' | '.join(in_markdown(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
