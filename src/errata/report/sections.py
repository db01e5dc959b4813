"""What a report shows, as data: sections and their tables of text. Markdown and HTML only lay them out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.evaluation.metrics import Mean, mean_over_cases
from errata.evaluation.protocols import PROTOCOLS
from errata.report.changes import DERIVED, derived
from errata.report.folds import case_key, edit_metric, published
from errata.report.headings import COLUMNS, COURSE, EDIT_CURVES, PLAIN, TO_GOLD, kind_of
from errata.report.rows import told_apart
from errata.types import Row

EXPLANATION = "Mean over cases ± standard error (cases); a dash where nothing could be measured."
UNEDITED = "(unedited)"
GOLD = "distance to the gold, KL(retrained ‖ edited) in units of that between two retrainings, by what is asked"
Cells = tuple[Mean | None, ...]


@dataclass(frozen=True)
class TextTable:
    """A table of text: a caption ("" where it has none), headings, and lines as long as the headings."""

    caption: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """Methods measured in one setting, on one model and data, by one protocol in one mode.

    ``lines`` begin with the unedited model and have a cell for each of ``columns``; a sequence is shown at its end.
    ``course`` holds a sequence at each checkpoint: (method, edits) -> a mean for each of ``COURSE``, what was asked of
    the model itself also at 0 edits. ``changes`` has the numbers of :func:`errata.report.changes.derived`, by method;
    retention is that of the metric ``edited``. ``to_gold`` are headings and lines as those of the methods: how far each
    kind of probe is from the gold, where it was measured.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, Cells], ...]
    course: Mapping[tuple[str, int], Cells]
    edited: str
    changes: Mapping[str, Mapping[str, Mean]]
    errors: tuple[str, ...]
    to_gold: tuple[tuple[str, ...], tuple[tuple[str, Cells], ...]] = ((), ())

    def tables(self) -> list[TextTable]:
        """The methods, how far they are from the gold, their changes of accuracy, and each of ``COURSE``."""
        made = [_methods_table("", self.columns, self.lines)]
        if self.to_gold[0]:
            made.append(_methods_table(GOLD, *self.to_gold))
        names = [name for name in DERIVED if any(name in numbers for numbers in self.changes.values())]
        if names:
            lines = tuple((method, *(mean_text(of.get(name)) for name in names)) for method, of in self.changes.items())
            measure = (
                "" if self.edited == "accuracy" else f" (over a sequence: {self.edited.replace('_', ' ')} of edits)"
            )
            made.append(TextTable(f"changes of accuracy{measure}", ("method", *names), lines))
        return made + [self._course_table(column) for column in COURSE if self.course_of(column)]

    def course_of(self, column: str) -> dict[tuple[str, int], Mean]:
        """(method, edits) -> the mean of one of ``COURSE``, where it was measured."""
        place = COURSE.index(column)
        return {key: mean for key, cells in self.course.items() if (mean := cells[place]) is not None}

    def _course_table(self, column: str) -> TextTable:
        means = self.course_of(column)
        points = sorted({n for _, n in means})
        names = dict.fromkeys(name for name, _ in self.course)
        body = tuple((name, *(_column_text(column, means.get((name, n))) for n in points)) for name in names)
        return TextTable(f"{column} after so many edits", ("method", *map(str, points)), body)


@dataclass(frozen=True)
class PublishedSection:
    """A protocol's own numbers after the edits, by the names and in the units of its paper.

    ``lines`` are (method, edits, a mean for each of ``columns``), the unedited model first; a sequence has a line for
    each checkpoint, elsewhere edits is None.
    """

    title: str
    source: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, int | None, Cells], ...]
    errors: tuple[str, ...] = ()

    def tables(self) -> list[TextTable]:
        """One table of all the numbers."""
        sequence = any(n is not None for _, n, _ in self.lines)
        head = ("method", *(("edits",) if sequence else ()), *self.columns)
        body = tuple(
            (name, *(("0" if n is None else str(n),) if sequence else ()), *map(mean_text, cells))
            for name, n, cells in self.lines
        )
        return [TextTable(f"by the names and in the units of {self.source}", head, body)]


def report_sections(rows: Iterable[Row]) -> list[Section | PublishedSection]:
    """All that a report shows: the sections of each setting, model, data set and protocol, and then its own numbers.

    Costs are shown once, with the first mode; one in which nothing of a table's columns was measured is left out where
    there is another.
    """
    rows = told_apart(rows)
    alone = _made_alone(rows)
    shown: list[Section | PublishedSection] = []
    for group in _grouped(rows, "setting", "model", "data", "protocol"):
        numbers = _published_section(group)
        modes = _grouped(group, "mode")
        of_edits = edit_metric(group[0].protocol)
        measured = [of for of in modes if any(_is_shown(row, of_edits) for row in of)] or modes[:1]
        shown += [_section(of, alone, costs=i == 0) for i, of in enumerate(measured)]
        shown += [numbers] if numbers else []
    return shown


def _is_shown(row: Row, of_edits: str) -> bool:
    """Whether the row is of a measure of the model that a section's tables show."""
    return row.kind != "cost" and ((kind_of(row), row.metric) in COLUMNS or row.metric in ("accuracy", of_edits))


def sections(rows: Iterable[Row]) -> list[Section]:
    """A section for each setting, model, data set, protocol and mode, in the order of the rows."""
    rows = told_apart(rows)
    alone = _made_alone(rows)
    return [_section(group, alone) for group in _grouped(rows, "setting", "model", "data", "protocol", "mode")]


def mean_text(mean: Mean | None) -> str:
    """Mean ± standard error (count), or a dash."""
    return "-" if mean is None else str(mean)


Subject = tuple[str, str, str, str, str]  # method, model, data, protocol, mode


def _made_alone(rows: Iterable[Row]) -> dict[Subject, list[Row]]:
    """The rows of edits that were made alone, by all but their setting."""
    alone: dict[Subject, list[Row]] = {}
    for row in rows:
        if _is_single(row):
            alone.setdefault(_subject(row), []).append(row)
    return alone


def _is_single(row: Row) -> bool:
    return row.setting.split(",")[0] == "single"


def _subject(row: Row) -> Subject:
    return (_method_name(row), row.model, row.data, row.protocol, row.mode)


def _section(rows: list[Row], alone: Mapping[Subject, list[Row]], costs: bool = True) -> Section:
    by_method = _by_method(rows)
    last = {name: _at_the_end(of_method) for name, of_method in by_method.items()}
    columns, lines = _lines(last, {key: name for key, name in COLUMNS.items() if costs or key[0] != "cost"})
    errors = {f"{name}: {row.error}": None for name, of_method in by_method.items() for row in of_method if row.error}
    sequence = len(rows) > sum(map(len, last.values()))
    metric = edit_metric(rows[0].protocol)
    changes: dict[str, Mapping[str, Mean]] = {}
    for name, of_method in by_method.items():
        single = [] if _is_single(rows[0]) else alone.get(_subject(of_method[0]), [])
        changes[name] = derived(last[name], of_method if sequence else (), single, metric)
    title, course = _title(rows[0], rows[0].mode), _course(by_method) if sequence else {}
    return Section(title, columns, lines, course, metric, changes, tuple(errors), _lines(last, TO_GOLD))


def _lines(
    last: Mapping[str, Sequence[Row]], headings: Mapping[tuple[str, str], str]
) -> tuple[tuple[str, ...], tuple[tuple[str, Cells], ...]]:
    """The headings under which anything was measured, and a line of means for the unedited model and each method."""
    cells = {name: _cells(at_end, headings=headings) for name, at_end in last.items()}
    columns = tuple(column for column in headings.values() if any(means[column] for means in cells.values()))
    unedited = _cells((row for at_end in last.values() for row in at_end), "before", headings)
    named = [(UNEDITED, unedited), *cells.items()]
    return columns, tuple((name, tuple(means[column] for column in columns)) for name, means in named)


def _published_section(rows: list[Row]) -> PublishedSection | None:
    """None where the protocol prints no numbers of its own, or none of them was measured."""
    by_method = _by_method(rows)
    last = {name: _at_the_end(of_method) for name, of_method in by_method.items()}
    sequence = len(rows) > sum(map(len, last.values()))
    before = {number.name: number.before for number in published(row for at_end in last.values() for row in at_end)}
    if not before:
        return None
    lines: list[tuple[str, int | None, dict[str, Mean | None]]] = [(UNEDITED, None, before)]
    for name, of_method in by_method.items():
        for n in _checkpoints(of_method) if sequence else (None,):
            numbers = published(row for row in of_method if n in (None, row.after_edits))
            lines.append((name, n, {number.name: number.after for number in numbers}))
    return PublishedSection(
        _title(rows[0], "published numbers"),
        PROTOCOLS[rows[0].protocol].source,
        tuple(before),
        tuple((name, n, tuple(means.get(column) for column in before)) for name, n, means in lines),
    )


def _title(row: Row, end: str) -> str:
    protocol = "" if row.protocol == "errata" else row.protocol
    return " · ".join(filter(None, (row.setting, row.model, row.data, protocol, end)))


def _grouped(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    """The rows in groups that agree in these fields."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return list(groups.values())


def _method_name(row: Row) -> str:
    return " ".join(filter(None, (row.method, row.settings)))


def _by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Method and settings -> rows."""
    return {_method_name(group[0]): group for group in _grouped(rows, "method", "settings")}


def _checkpoints(rows: Iterable[Row]) -> list[int]:
    return sorted({row.after_edits for row in rows if row.kind != "cost"})


def _course(by_method: Mapping[str, Sequence[Row]]) -> dict[tuple[str, int], Cells]:
    course: dict[tuple[str, int], Cells] = {}
    for name, rows in by_method.items():
        points = _checkpoints(rows)
        for n in points:
            means = _cells(row for row in rows if row.after_edits == n)
            course[name, n] = tuple(means[column] for column in COURSE)
        if any(row.kind in ("drift", "text") for row in rows):
            before = _cells((row for row in rows if row.after_edits == points[-1]), "before")  # the same at each
            course[name, 0] = tuple(None if column in EDIT_CURVES else before[column] for column in COURSE)
    return course


def _at_the_end(rows: list[Row]) -> list[Row]:
    """The rows after the last of a unit's edits: a sequence has costs at each checkpoint."""
    ends: dict[tuple[int, str], set[int]] = {}
    for row in rows:
        if row.kind == "cost":
            ends.setdefault((row.seed, row.case), set()).add(row.after_edits)
    last = {seed: max(points) for (seed, _), points in ends.items() if len(points) > 1}
    return [row for row in rows if row.after_edits == last.get(row.seed, row.after_edits)]


def _cells(
    rows: Iterable[Row], field: str = "after", headings: Mapping[tuple[str, str], str] = COLUMNS
) -> dict[str, Mean | None]:
    """Heading -> the mean of its rows."""
    values: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        if (value := getattr(row, field)) is not None:
            values.setdefault((kind_of(row), row.metric), []).append((case_key(row), value))
    return {column: mean_over_cases(values.get(measured, ())) for measured, column in headings.items()}


def _methods_table(caption: str, columns: Sequence[str], lines: Sequence[tuple[str, Cells]]) -> TextTable:
    body = tuple((name, *map(_column_text, columns, cells)) for name, cells in lines)
    return TextTable(caption, ("method", *columns), body)


def _column_text(column: str, mean: Mean | None) -> str:
    return f"{mean.mean:,.3g}" if mean is not None and column in PLAIN else mean_text(mean)
