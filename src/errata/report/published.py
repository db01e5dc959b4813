"""A section of a protocol's own numbers, by the names and in the units of its paper."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from errata.evaluation.metrics import Mean
from errata.evaluation.protocols import DISTANCES, LESS_IS_BETTER, PROTOCOLS, STAYING, Protocol
from errata.report.comparisons import Axes, Values, compared, comparison_tables
from errata.report.folds import CaseKey, line_values, published
from errata.report.grouping import ByMethod, Cells, at_the_end, cells, checkpoints, first_of, measured
from errata.report.headings import COLUMNS, UNEDITED, titled
from errata.report.significance import Comparison
from errata.report.text_table import TextTable, mean_text

SECONDS = {("cost", "seconds_per_edit"): COLUMNS["cost", "seconds_per_edit"]}


@dataclass(frozen=True)
class PublishedSection:
    """A protocol's own numbers after the edits, by the names and in the units of its paper.

    ``lines`` are (method, edits, a mean for each of ``columns``), the unedited model first; a sequence has a line for
    each checkpoint, elsewhere edits is None. ``seconds`` are those of an edit, by method; ``compared`` are
    values case by case, for pairs of methods.
    """

    title: str
    source: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, int | None, Cells], ...]
    errors: tuple[str, ...] = ()
    seconds: Mapping[str, Mean] = field(default_factory=dict[str, Mean])
    axes: Axes = Axes()
    compared: Values = field(default_factory=dict[str, dict[str, dict[CaseKey, float]]])
    falling: frozenset[str] = frozenset()  # columns in which less is better

    def tables(self) -> list[TextTable]:
        """All the numbers, and how methods compare by them."""
        sequence = any(n is not None for _, n, _ in self.lines)
        head = ("method", *(("edits",) if sequence else ()), *self.columns)
        body = tuple(
            (name, *(("0" if n is None else str(n),) if sequence else ()), *map(mean_text, means))
            for name, n, means in self.lines
        )
        numbers = TextTable(f"by the names and in the units of {self.source}", head, body)
        return [numbers, *comparison_tables(self.comparisons, self.axes)]

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Methods compared by each number that holds values of two or more."""
        return compared(self.compared, self.falling)

    def ends(self, column: str) -> dict[str, Mean]:
        """Method -> the mean of a column (or of the seconds of an edit) after the last edit, where it was measured."""
        if column in SECONDS.values():
            return dict(self.seconds)
        if column not in self.columns:
            return {}
        place = self.columns.index(column)
        return {name: mean for name, _, means in self.lines[1:] if (mean := means[place]) is not None}

    def course_of(self, column: str) -> dict[tuple[str, int], Mean]:
        """(method, edits) -> the mean of a column, where it was measured."""
        place = self.columns.index(column)
        points = [(name, n, means[place]) for name, n, means in self.lines]
        return {(name, n): mean for name, n, mean in points if n is not None and mean is not None}


def published_section(by_method: ByMethod) -> PublishedSection | None:
    """None where the protocol prints no numbers of its own, or none of them was measured."""
    first = first_of(by_method)
    protocol = PROTOCOLS.get(first.protocol)
    if protocol is None or not protocol.lines:
        return None
    last = {name: at_the_end(rows) for name, rows in by_method.items()}
    sequence = sum(map(len, by_method.values())) > sum(map(len, last.values()))
    before = {number.name: number.before for number in published(row for rows in last.values() for row in rows)}
    if not before:
        return None
    lines: list[tuple[str, int | None, dict[str, Mean | None]]] = [(UNEDITED, None, before)]
    for name, rows in by_method.items():
        for n in checkpoints(rows) if sequence else (None,):
            numbers = published(row for row in rows if n in (None, row.after_edits))
            lines.append((name, n, {number.name: number.after for number in numbers}))
    seconds = {name: cells(measured(rows), headings=SECONDS)["seconds per edit"] for name, rows in last.items()}
    return PublishedSection(
        titled(first, "published numbers"),
        protocol.source,
        tuple(before),
        tuple((name, n, tuple(means.get(column) for column in before)) for name, n, means in lines),
        seconds={name: mean for name, mean in seconds.items() if mean is not None},
        axes=_axes(protocol, before),
        compared=_by_line({name: line_values(protocol.name, rows) for name, rows in last.items()}),
        falling=falling(protocol),
    )


def _axes(protocol: Protocol, measured: Iterable[str]) -> Axes:
    """The first numbers of a protocol for edits, for paraphrases, and for what stays, of those that were measured."""
    known = set(measured)
    lines = [line for line in protocol.lines if line.name in known - falling(protocol)]
    wanted = (("edit",), ("paraphrase",), STAYING)
    return Axes(*(next((line.name for line in lines if set(line.kinds) <= set(kinds)), "") for kinds in wanted))


def falling(protocol: Protocol) -> frozenset[str]:
    """The numbers of a protocol in which less is better."""
    return frozenset(line.name for line in protocol.lines if line.metric in (*LESS_IS_BETTER, *DISTANCES))


def _by_line(values: Mapping[str, Mapping[str, Mapping[CaseKey, float]]]) -> Values:
    """By number and method what is given by method and number."""
    names = dict.fromkeys(name for of in values.values() for name in of)
    return {name: {method: of.get(name, {}) for method, of in values.items()} for name in names}
