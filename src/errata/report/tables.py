"""Tables for the terminal (rich): before and after, and a protocol's own numbers."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from errata.printable import printable
from errata.report.folds import published, summary
from errata.report.text_table import mean_text
from errata.types import Row

if TYPE_CHECKING:
    from rich.table import Table


def table(rows: Iterable[Row], by: Sequence[str] = ()) -> "Table":
    """The summaries as a table, each with its mode: before and after ± standard error (cases)."""
    rows = list(rows)
    if "protocol" not in by and {row.protocol for row in rows} - {"errata"}:
        by = (*by, "protocol")
    made = _empty("before and after editing: mean ± standard error (cases)", (*by, "measure", "mode"))
    for line in summary(rows, by):
        _add(made, *line.of, line.name, line.mode, mean_text(line.before), mean_text(line.after))
    return made


def published_table(rows: Iterable[Row]) -> "Table":
    """The protocols' own numbers: before and after ± standard error (count), in the papers' units."""
    made = _empty("by the papers' names, in their units", ("protocol", "number"))
    for number in published(rows):
        _add(made, number.protocol, number.name, mean_text(number.before), mean_text(number.after))
    return made


def _add(table: "Table", *cells: object) -> None:
    """Adds a row of plain text: nothing in it is markup, nor steers a terminal."""
    from rich.text import Text

    table.add_row(*(Text(printable(str(cell))) for cell in cells))


def _empty(title: str, columns: Sequence[str]) -> "Table":
    from rich.table import Table

    made = Table(title=title)
    for name in columns:
        made.add_column(name)
    for name in ("before", "after"):
        made.add_column(name, justify="right")
    return made
