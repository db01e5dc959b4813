"""A report as a page of Markdown."""

from collections.abc import Iterable
from urllib.parse import quote

from errata.printable import in_markdown, markdown_table
from errata.report.sections import EXPLANATION, report_sections
from errata.types import Row


def markdown(
    rows: Iterable[Row],
    title: str = "Methods, before and after",
    note: str = "",
    picture: str = "",
    intro: str = "",
) -> str:
    """A page with a section for each setting, model, data set, protocol and mode; ``picture`` is the path of one.

    ``intro`` is Markdown, which stands in the place of the title and the explanation of what cells hold.
    """
    blocks = [
        *([intro.strip()] if intro.strip() else [f"# {in_markdown(title)}", EXPLANATION]),
        in_markdown(note),
        f"![curves]({quote(picture)})" if picture else "",
    ]
    for section in report_sections(rows):
        blocks.append(f"## {in_markdown(section.title)}")
        for table in section.tables():
            if table.aside:
                continue
            blocks += [
                f"{in_markdown(table.caption)}:" if table.caption else "",
                markdown_table(table.head, table.body),
            ]
        blocks.append("\n".join(f"- {in_markdown(error)}" for error in section.errors))
    return "\n\n".join(filter(None, blocks)) + "\n"
