"""A report as a page of Markdown."""

from collections.abc import Iterable

from errata.report.sections import EXPLANATION, TextTable, report_sections
from errata.types import Row


def markdown(rows: Iterable[Row], title: str = "Methods, before and after", note: str = "", picture: str = "") -> str:
    """A page with a section for each setting, model, data set, protocol and mode; ``picture`` is the path of one."""
    blocks = [f"# {title}", EXPLANATION, note, f"![curves]({picture})" if picture else ""]
    for section in report_sections(rows):
        blocks.append(f"## {section.title}")
        for table in section.tables():
            blocks += [f"{table.caption}:" if table.caption else "", _table(table)]
        blocks.append("\n".join(f"- {error}" for error in section.errors))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _table(table: TextTable) -> str:
    lines = [table.head, ("---",) * len(table.head), *table.body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
