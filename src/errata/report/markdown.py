"""A report as a page of Markdown."""

import re
from collections.abc import Iterable
from urllib.parse import quote

from errata.printable import printable
from errata.report.sections import EXPLANATION, TextTable, report_sections
from errata.types import Row


def markdown(rows: Iterable[Row], title: str = "Methods, before and after", note: str = "", picture: str = "") -> str:
    """A page with a section for each setting, model, data set, protocol and mode; ``picture`` is the path of one."""
    blocks = [f"# {plain(title)}", EXPLANATION, plain(note), f"![curves]({quote(picture)})" if picture else ""]
    for section in report_sections(rows):
        blocks.append(f"## {plain(section.title)}")
        for table in section.tables():
            if table.aside:
                continue
            blocks += [f"{plain(table.caption)}:" if table.caption else "", _table(table)]
        blocks.append("\n".join(f"- {plain(error)}" for error in section.errors))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _table(table: TextTable) -> str:
    lines = [table.head, ("---",) * len(table.head), *table.body]
    return "\n".join(f"| {' | '.join(plain(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def plain(text: str) -> str:
    """The text on one line, so that Markdown shows its letters: there are no tags, links, code or emphasis in it."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*]|_(?=\W|$)|(?<!\w)_|\](?=[(:\[])", r"\\\g<0>", text)
