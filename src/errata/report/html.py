"""A report as one page of HTML."""

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from errata.types import Row

if TYPE_CHECKING:
    pass
from errata.report.tables import HOW, sections, tables_of


def page(rows: Iterable[Row], title: str = "Methods, before and after", note: str = "", picture: str = "") -> str:
    """The same as HTML, in one file; ``picture`` is SVG."""
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .7em;text-align:right;white-space:nowrap}"
    style += "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f3f3f3}"
    style += "svg{max-width:100%;height:auto}"
    said = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(text)}</p>" for text in (HOW, note) if text), picture]
    for section in sections(rows):
        said.append(f"<h2>{html.escape(section.title)}</h2>")
        for caption, (head, *body) in tables_of(section):
            said += [f"<p>{html.escape(caption)}:</p>"] if caption else []
            lines = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
                     for tag, line in (("th", head), *(("td", line) for line in body))]  # fmt: skip
            said.append("<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>")
        said += [f"<p>{html.escape(error)}</p>" for error in section.errors]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
    return "<!doctype html><html><head>" + head + "</head><body>\n" + "\n".join(said) + "\n</body></html>\n"
