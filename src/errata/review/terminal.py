"""A review on the terminal, for ten seconds: whether it passed, the measures, some of what moved (rich)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from errata.printable import printable
from errata.review import outline
from errata.review.record import Question, Review

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

SHOWN = 8  # examples, and weights
WIDTH = 40  # characters of a question or an answer


def shown(review: Review) -> "Iterator[Text | Table]":
    """What to print, in order."""
    from rich.text import Text

    said = Text(printable(outline.verdict(review)), style=f"bold {'green' if review.passed else 'red'}")
    yield Text(printable(f"{outline.about(review)}: "), style="bold") + said
    yield _measures(review)
    yield Text(outline.counted(review))
    if moved := outline.examples(review, SHOWN):
        yield _moved(moved)
    if weights := outline.weights(review):
        more = f" (the first {SHOWN} of {len(weights)})" * (len(weights) > SHOWN)
        yield _table((f"weight{more}", "‖Δ‖ / ‖W‖", "rank", "effective rank"), weights[:SHOWN], right=3)
    for line in [*outline.other_parts(review)[:SHOWN], *review.notes]:
        yield Text(printable(line), style="dim")


def _measures(review: Review) -> "Table":
    from rich.text import Text

    rows = [
        (
            line.words,
            line.before,
            line.after,
            line.limit,
            Text(line.sign, style="" if line.passed is None else "green" if line.passed else "bold red"),
        )
        for line in outline.measures(review)
    ]
    return _table(("measure", "before", "after", "limit", ""), rows, right=4)


def _moved(moved: Sequence[Question]) -> "Table":
    rows = [
        (outline.kind_words(q.kind), _end(q.prompt), _start(q.before), _start(q.after), _start(_expected(q.expected)))
        for q in moved
    ]
    return _table(("what moved", "question", "before", "after", "expected"), rows)


def _expected(answers: tuple[str, ...]) -> str:
    return " or ".join(answers[:2]) or outline.DASH


def _start(text: str | None) -> str:
    """The beginning of an answer on one line; a dash for none."""
    line = outline.DASH if text is None else " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _end(text: str) -> str:
    """The end of a question on one line."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else "…" + line[-WIDTH + 1 :]


def _table(head: Sequence[str], rows: Iterable[Sequence["str | Text"]], right: int = 0) -> "Table":
    """A table of plain text; of its columns those behind the first, up to so many, are numbers."""
    from rich.table import Table
    from rich.text import Text

    made = Table()
    for i, name in enumerate(head):
        made.add_column(name, overflow="fold", justify="right" if 0 < i < right + 1 and name else "left")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return made
