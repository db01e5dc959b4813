"""What a report shows, as data: sections and their tables of text. Markdown and HTML only lay them out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from errata.evaluation.metrics import Mean
from errata.evaluation.protocols import DISTANCES, LESS_IS_BETTER, PROTOCOLS, STAYING, Protocol
from errata.report.changes import DERIVED, derived
from errata.report.folds import CaseKey, edit_metric, line_values, published, values_of
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
    kind_of,
)
from errata.report.rows import told_apart
from errata.report.significance import LEVEL, Comparison, compare
from errata.types import Row

EXPLANATION = "Mean over cases ± standard error (cases); a dash where nothing could be measured."
UNEDITED = "(unedited)"
GOLD = "distance to the gold, KL(retrained ‖ edited) in units of that between two retrainings, by what is asked"
BEHIND = (
    "how far each is behind the best: mean difference over the same cases ± standard error, and p of Wilcoxon's "
    "signed-rank test, corrected by Holm over all pairs of methods"
)
APART = f"column by column: + the row is better, − it is worse (p < {LEVEL}), nothing: they cannot be told apart"
COMPARED_NAMES = tuple(COLUMNS[key] for key in COMPARED)
SECONDS = {("cost", "seconds_per_edit"): COLUMNS["cost", "seconds_per_edit"]}
Values = Mapping[str, Mapping[str, Mapping[CaseKey, float]]]  # column -> method -> case -> value


@dataclass(frozen=True)
class TextTable:
    """A table of text: a caption ("" where it has none), headings, and lines as long as the headings.

    ``shares`` are the places of columns whose means lie between 0 and 1; ``aside`` marks one that is large and seldom
    wanted, which a page folds away.
    """

    caption: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    shares: tuple[int, ...] = ()
    aside: bool = False


@dataclass(frozen=True)
class Axes:
    """The columns by which a picture places a method: the edit itself, in other words, and what stays; "" for none."""

    edit: str = ""
    generality: str = ""
    locality: str = ""

    @property
    def names(self) -> list[str]:
        """Those that there are."""
        return [name for name in (self.edit, self.generality, self.locality) if name]


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
        made += _comparisons(self.comparisons, self.axes)
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
        return _compare(self.compared)

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


@dataclass(frozen=True)
class PublishedSection:
    """A protocol's own numbers after the edits, by the names and in the units of its paper.

    ``lines`` are (method, edits, a mean for each of ``columns``), the unedited model first; a sequence has a line for
    each checkpoint, elsewhere edits is None. ``seconds`` are those of an edit, by method; ``compared`` as in
    :class:`Section`.
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
        return [numbers, *_comparisons(self.comparisons, self.axes)]

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """As :attr:`Section.comparisons`."""
        return _compare(self.compared, self.falling)

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


def report_sections(rows: Iterable[Row]) -> list[Section | PublishedSection]:
    """All that a report shows: the sections of each setting, model, data set and protocol, and then its own numbers.

    Costs are shown once, with the first mode; one in which nothing of a table's columns was measured is left out where
    there is another.
    """
    groups = by_mode(told_apart(rows))
    alone = made_alone(groups)
    shown: list[Section | PublishedSection] = []
    for modes in groups:
        numbers = _published_section(every_mode(modes))
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


def mean_text(mean: Mean | None) -> str:
    """Mean ± standard error (count), or a dash."""
    return "-" if mean is None else str(mean)


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
        _title(first, first.mode),
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


def _published_section(by_method: ByMethod) -> PublishedSection | None:
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
        _title(first, "published numbers"),
        protocol.source,
        tuple(before),
        tuple((name, n, tuple(means.get(column) for column in before)) for name, n, means in lines),
        seconds={name: mean for name, mean in seconds.items() if mean is not None},
        axes=_axes(protocol, before),
        compared=_by_line({name: line_values(protocol.name, rows) for name, rows in last.items()}),
        falling=_falling(protocol),
    )


def _axes(protocol: Protocol, measured: Iterable[str]) -> Axes:
    """The first numbers of a protocol for edits, for paraphrases, and for what stays, of those that were measured."""
    known = set(measured)
    lines = [line for line in protocol.lines if line.name in known - _falling(protocol)]
    wanted = (("edit",), ("paraphrase",), STAYING)
    return Axes(*(next((line.name for line in lines if set(line.kinds) <= set(kinds)), "") for kinds in wanted))


def _falling(protocol: Protocol) -> frozenset[str]:
    """The numbers of a protocol in which less is better."""
    return frozenset(line.name for line in protocol.lines if line.metric in (*LESS_IS_BETTER, *DISTANCES))


def _by_line(values: Mapping[str, Mapping[str, Mapping[CaseKey, float]]]) -> Values:
    """By number and method what is given by method and number."""
    names = dict.fromkeys(name for of in values.values() for name in of)
    return {name: {method: of.get(name, {}) for method, of in values.items()} for name in names}


# Comparisons -------------------------------------------------------------------------------------


def _compare(compared: Values, falling: frozenset[str] = frozenset()) -> dict[str, Comparison]:
    made = {column: compare(of_method, column in falling) for column, of_method in compared.items()}
    return {column: comparison for column, comparison in made.items() if comparison is not None}


def _comparisons(comparisons: Mapping[str, Comparison], axes: Axes) -> list[TextTable]:
    """How far each method is behind the best of each column, and by the axes' columns which can be told apart."""
    if not comparisons:
        return []
    methods = dict.fromkeys(name for comparison in comparisons.values() for name in comparison.values)
    lines = tuple((name, *(_behind(comparison, name) for comparison in comparisons.values())) for name in methods)
    return [TextTable(BEHIND, ("method", *comparisons), lines), *_signs(comparisons, axes)]


def _behind(comparison: Comparison, name: str) -> str:
    if name not in comparison.values:
        return "-"
    if name == comparison.best:
        return "best"
    difference = comparison.difference(name, comparison.best)
    if difference is None:
        return "-"
    words = str(difference)
    words = words[1:] if words.startswith("-0.00") else words  # it rounds to nothing
    return f"{words}, p {_p_text(comparison.p[name, comparison.best])}"


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 1 else "= 1"


def _signs(comparisons: Mapping[str, Comparison], axes: Axes) -> list[TextTable]:
    made: list[TextTable] = []
    for column in axes.names:
        if (comparison := comparisons.get(column)) and len(comparison.order) > 2:
            lines = tuple(
                (f"{i} {name}", *("·" if name == other else comparison.sign(name, other) for other in comparison.order))
                for i, name in enumerate(comparison.order, start=1)
            )
            numbers = map(str, range(1, len(lines) + 1))
            made.append(TextTable(f"{column}, {APART}", ("method", *numbers), lines, aside=True))
    return made


# Lines -------------------------------------------------------------------------------------------


def _title(row: Row, end: str) -> str:
    protocol = "" if row.protocol == "errata" else row.protocol
    return " · ".join(filter(None, (row.setting, row.model, row.data, protocol, end)))


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
