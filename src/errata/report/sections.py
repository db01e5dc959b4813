"""What a report shows, as data: sections and their tables of text. Markdown and HTML only lay them out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from errata.evaluation.metrics import Mean
from errata.report.changes import DERIVED, derived
from errata.report.comparisons import Axes, Values, compared, comparison_tables
from errata.report.folds import CaseKey, edit_metric, values_of
from errata.report.grouping import (
    ByMethod,
    Cells,
    Measured,
    Subject,
    at_the_end,
    by_mode,
    cells,
    checkpoints,
    every_mode,
    first_of,
    grouped,
    is_single,
    made_alone,
    measured,
    subject,
)
from errata.report.headings import (
    COLUMNS,
    COMPARED,
    COURSE,
    EDIT_CURVES,
    GENERALITY,
    LOCALITY,
    PLAIN,
    SHARES,
    TO_GOLD,
    UNEDITED,
    kind_of,
    titled,
)
from errata.report.published import PublishedSection, published_section
from errata.report.rows import told_apart
from errata.report.significance import Comparison
from errata.report.text_table import TextTable, mean_text
from errata.types import Row

EXPLANATION = "Mean over cases ± standard error (cases); a dash where nothing could be measured."
GOLD = "distance to the gold, KL(retrained ‖ edited) in units of that between two retrainings, by what is asked"
COMPARED_NAMES = tuple(COLUMNS[key] for key in COMPARED)


@dataclass(frozen=True)
class Section:
    """Methods measured in one setting, on one model and data, by one protocol in one mode.

    ``lines`` begin with the unedited model and have a cell for each of ``columns``; a sequence is shown at its end.
    ``course`` holds a sequence at each checkpoint: (method, edits) -> a mean for each of ``COURSE``, what was asked of
    the model itself also at 0 edits. ``changes`` has the numbers of :func:`errata.report.changes.derived`, by method;
    retention is that of the metric ``edited``. ``to_gold`` are headings and lines as those of the methods: how far each
    kind of probe is from the gold, where it was measured. ``compared`` are values case by case, for pairs of methods.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, Cells], ...]
    course: Mapping[tuple[str, int], Cells]
    edited: str
    changes: Mapping[str, Mapping[str, Mean]]
    errors: tuple[str, ...]
    to_gold: tuple[tuple[str, ...], tuple[tuple[str, Cells], ...]] = ((), ())
    compared: Values = field(default_factory=dict[str, dict[str, dict[CaseKey, float]]])

    def tables(self) -> list[TextTable]:
        """The methods, how far they are from the gold, how they compare, their changes, and each of ``COURSE``."""
        made = [_methods_table("", self.columns, self.lines)]
        if self.to_gold[0]:
            made.append(_methods_table(GOLD, *self.to_gold))
        made += comparison_tables(self.comparisons, self.axes)
        names = [name for name in DERIVED if any(name in numbers for numbers in self.changes.values())]
        if names:
            lines = tuple((method, *(mean_text(of.get(name)) for name in names)) for method, of in self.changes.items())
            measure = (
                "" if self.edited == "accuracy" else f" (over a sequence: {self.edited.replace('_', ' ')} of edits)"
            )
            made.append(TextTable(f"changes of accuracy{measure}", ("method", *names), lines))
        return made + [self._course_table(column) for column in COURSE if self.course_of(column)]

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Methods compared by each column that holds values of two or more."""
        return compared(self.compared)

    @property
    def axes(self) -> Axes:
        """Where pictures place methods."""
        edit = (COLUMNS["edit", "accuracy"],)
        return Axes(*(next((name for name in of if name in self.columns), "") for of in (edit, GENERALITY, LOCALITY)))

    def ends(self, column: str) -> dict[str, Mean]:
        """Method -> the mean of a column after the last edit, where it was measured."""
        if column not in self.columns:
            return {}
        place = self.columns.index(column)
        return {name: mean for name, means in self.lines[1:] if (mean := means[place]) is not None}

    def course_of(self, column: str) -> dict[tuple[str, int], Mean]:
        """(method, edits) -> the mean of one of ``COURSE``, where it was measured."""
        place = COURSE.index(column)
        return {key: mean for key, means in self.course.items() if (mean := means[place]) is not None}

    def _course_table(self, column: str) -> TextTable:
        means = self.course_of(column)
        points = sorted({n for _, n in means})
        names = dict.fromkeys(name for name, _ in self.course)
        body = tuple((name, *(_column_text(column, means.get((name, n))) for n in points)) for name in names)
        shares = tuple(range(1, len(points) + 1)) if column in SHARES else ()
        return TextTable(f"{column} after so many edits", ("method", *map(str, points)), body, shares)


def report_sections(rows: Iterable[Row]) -> list[Section | PublishedSection]:
    """All that a report shows: the sections of each setting, model, data set and protocol, and then its own numbers.

    Costs are shown once, with the first mode; one in which nothing of a table's columns was measured is left out where
    there is another.
    """
    groups = by_mode(told_apart(rows))
    alone = made_alone(groups)
    shown: list[Section | PublishedSection] = []
    for modes in groups:
        numbers = published_section(every_mode(modes))
        measured = [by_method for by_method in modes.values() if _is_shown(by_method)] or list(modes.values())[:1]
        shown += [_section(by_method, alone, costs=i == 0) for i, by_method in enumerate(measured)]
        shown += [numbers] if numbers else []
    return shown


def _is_shown(by_method: ByMethod) -> bool:
    """Whether any row is of a measure of the model that a section's tables show."""
    metrics = ("accuracy", edit_metric(first_of(by_method).protocol))
    return any(
        row.kind != "cost" and (row.metric in metrics or (kind_of(row), row.metric) in COLUMNS)
        for rows in by_method.values()
        for row in rows
    )


def sections(rows: Iterable[Row]) -> list[Section]:
    """A section for each setting, model, data set, protocol and mode, in the order of the rows."""
    groups = by_mode(told_apart(rows))
    alone = made_alone(groups)
    return [_section(by_method, alone) for modes in groups for by_method in modes.values()]


def _section(by_method: ByMethod, alone: Mapping[Subject, list[Row]], costs: bool = True) -> Section:
    last = {name: at_the_end(rows) for name, rows in by_method.items()}
    ends = {name: measured(rows) for name, rows in last.items()}
    headings = {key: name for key, name in COLUMNS.items() if costs or key[0] != "cost"}
    errors = {f"{name}: {row.error}": None for name, rows in by_method.items() for row in rows if row.error}
    sequence = sum(map(len, by_method.values())) > sum(map(len, last.values()))
    first = first_of(by_method)
    metric = edit_metric(first.protocol)
    changes: dict[str, Mapping[str, Mean]] = {}
    for name, rows in by_method.items():
        single = [] if is_single(first) else alone.get(subject(rows[0]), [])
        changes[name] = derived(last[name], rows if sequence else (), single, metric)
    return Section(
        titled(first, first.mode),
        *_lines(ends, headings),
        course=_course(by_method) if sequence else {},
        edited=metric,
        changes=changes,
        errors=tuple(errors),
        to_gold=_lines(ends, TO_GOLD),
        compared={COLUMNS[key]: {name: values_of(of.get(key, ())) for name, of in ends.items()} for key in COMPARED},
    )


def _lines(
    ends: Mapping[str, Measured], headings: Mapping[tuple[str, str], str]
) -> tuple[tuple[str, ...], tuple[tuple[str, Cells], ...]]:
    """The headings under which anything was measured, and a line of means for the unedited model and each method."""
    means = {name: cells(of, headings=headings) for name, of in ends.items()}
    columns = tuple(column for column in headings.values() if any(of[column] for of in means.values()))
    together = {key: [row for of in ends.values() for row in of.get(key, ())] for key in headings}
    named = [(UNEDITED, cells(together, "before", headings)), *means.items()]
    return columns, tuple((name, tuple(of[column] for column in columns)) for name, of in named)


def _course(by_method: ByMethod) -> dict[tuple[str, int], Cells]:
    course: dict[tuple[str, int], Cells] = {}
    headings = {key: column for key, column in COLUMNS.items() if column in COURSE}
    for name, rows in by_method.items():
        of_point = {group[0].after_edits: measured(group) for group in grouped(rows, "after_edits")}
        points = checkpoints(rows)
        for n in points:
            means = cells(of_point[n], headings=headings)
            course[name, n] = tuple(means[column] for column in COURSE)
        if any(row.kind in ("drift", "text") for row in rows):
            before = cells(of_point[points[-1]], "before", headings)  # the same at each
            course[name, 0] = tuple(None if column in EDIT_CURVES else before[column] for column in COURSE)
    return course


def _methods_table(caption: str, columns: Sequence[str], lines: Sequence[tuple[str, Cells]]) -> TextTable:
    body = tuple((name, *map(_column_text, columns, cells)) for name, cells in lines)
    shares = () if caption == GOLD else tuple(i for i, name in enumerate(columns, start=1) if name in COMPARED_NAMES)
    return TextTable(caption, ("method", *columns), body, shares)


def _column_text(column: str, mean: Mean | None) -> str:
    return f"{mean.mean:,.3g}" if mean is not None and column in PLAIN else mean_text(mean)
