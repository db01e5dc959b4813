"""A review on the terminal, for ten seconds: whether it passed, the measures, some of what moved (rich)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from errata.printable import printable
from errata.review import outline
from errata.review.record import Review

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

SHOWN = 8  # examples, and weights
WIDTH = 44  # characters of a question or an answer


def shown(review: Review) -> "Iterator[Text | Table]":
    """What to print, in order."""
    from rich.text import Text

    colour = "green" if review.passed else "red"
    yield Text(printable(f"{outline.about(review)}: "), style="bold") + Text(
        printable(outline.verdict(review)), style=f"bold {colour}"
    )
    yield _table(
        ("measure", "before", "after", "limit", ""),
        [(*vars(line).values(),) for line in outline.measures(review)],
    )
    yield Text(printable(outline.counted(review)))
    if moved := outline.examples(review, SHOWN):
        rows = [
            (
                outline.kind_words(q.kind),
                _cut(q.prompt, False),
                _cut(q.before),
                _cut(q.after),
                _cut(_expected(q.expected)),
            )
            for q in moved
        ]
        yield _table(("what moved", "question", "before", "after", "expected"), rows)
    if weights := outline.weights(review):
        more = f" (the first {SHOWN} of {len(weights)})" * (len(weights) > SHOWN)
        yield _table((f"weight{more}", "‖Δ‖ / ‖W‖", "rank", "effective"), weights[:SHOWN])
    for line in [*outline.other_parts(review)[:SHOWN], *review.notes]:
        yield Text(printable(line), style="dim")


def _expected(answers: tuple[str, ...]) -> str:
    return " or ".join(answers[:2]) or outline.DASH


def _cut(text: str | None, front: bool = True) -> str:
    """On one line, of the question its end, of an answer its beginning."""
    line = outline.DASH if text is None else " ".join(text.split())
    if len(line) <= WIDTH:
        return line
    return line[: WIDTH - 1] + "…" if front else "…" + line[-WIDTH + 1 :]


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> "Table":
    from rich.table import Table

    made = Table()
    for name in head:
        made.add_column(
            name, overflow="fold", justify="right" if name in ("before", "after", "limit") and "" in head else "left"
        )
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def _cell(value: Any) -> "Text":
    from rich.text import Text

    if value is None or isinstance(value, bool):
        return Text({True: "ok", False: "refused", None: ""}[value], style={True: "green", False: "red"}.get(value, ""))
    return Text(printable(str(value)))
