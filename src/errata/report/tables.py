"""Tables of rows: before and after, a protocol's numbers, a table for each setting; in Markdown too."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.evaluation.metrics import Mean, mean_over_cases
from errata.types import Row

if TYPE_CHECKING:
    from rich.table import Table
from errata.report.rows import DERIVED, derived, published, summary

COLUMNS = (  # of a table of methods: heading, kind, metric
    ("reliability", "edit", "accuracy"),
    ("paraphrases", "paraphrase", "accuracy"),
    ("questions", "question", "accuracy"),
    ("neighbours: agreement", "neighborhood", "agreement"),
    ("neighbours: accuracy", "neighborhood", "accuracy"),
    ("same subject", "same_subject", "accuracy"),
    ("unrelated: agreement", "unrelated", "agreement"),
    ("unrelated: accuracy", "unrelated", "accuracy"),
    ("alias", "alias", "accuracy"),
    ("inverse", "inverse", "accuracy"),
    ("one hop", "one_hop", "accuracy"),
    ("two hops", "multi_hop", "accuracy"),
    ("facts in context", "in_context", "accuracy"),
    ("loss on text", "text", "loss"),
    ("perplexity on text", "text", "perplexity"),
    ("‖Δ‖ / ‖W‖", "drift", "norm"),
    ("change of outputs", "drift", "relative_output_change"),
    ("low-variance share", "drift", "low"),
    ("effective rank", "drift", "effective"),
    ("edits endured", "cost", "edits_endured"),
    ("seconds per edit", "cost", "seconds_per_edit"),
    ("KB per edit", "cost", "kilobytes_per_edit"),
    ("peak MiB", "cost", "peak_mib"),
)


CURVES = ("reliability", "paraphrases", "neighbours: agreement", "unrelated: agreement")  # drawn over a sequence


WHY = (
    "‖Δ‖ / ‖W‖",
    "change of outputs",
    "loss on text",
    "facts in context",
)  # drawn first, where a run asks for the model's ability


COURSE = (*CURVES, *WHY, "low-variance share", "effective rank")  # told at each checkpoint


PLAIN = ("cost", "drift", "text")  # kinds whose values are no shares: three digits instead of two decimals


def table(rows: Iterable[Row], by: Sequence[str] = ()) -> "Table":
    """The summaries as a table, each with its mode: before and after ± standard error (cases)."""
    from rich.table import Table

    rows = list(rows)
    if "protocol" not in by and {row.protocol for row in rows} - {"errata"}:
        by = (*by, "protocol")
    made = Table(title="before and after editing: mean ± standard error (cases)")
    for name in by:
        made.add_column(name)
    for name in ("measure", "mode"):
        made.add_column(name)
    for name in ("before", "after"):
        made.add_column(name, justify="right")
    for its in summary(rows, by):
        made.add_row(*its.of, its.name, its.mode, shown(its.before), shown(its.after))
    return made


def shown(value: Mean | None) -> str:
    return "-" if value is None else str(value)


def published_table(rows: Iterable[Row]) -> "Table":
    """What the protocols print: before and after ± standard error (count), in the papers' units."""
    from rich.table import Table

    made = Table(title="by the papers' names, in their units")
    for name in ("protocol", "number"):
        made.add_column(name)
    for name in ("before", "after"):
        made.add_column(name, justify="right")
    for its in published(rows):
        made.add_row(its.protocol, its.name, shown(its.before), shown(its.after))
    return made


@dataclass(frozen=True)
class Section:
    """One table: methods measured in one setting, on one model and data, in one mode.

    ``lines`` begin with the unedited model; a sequence is shown at its end, and ``course`` holds the table at each
    checkpoint: (method, edits) -> a mean for each of ``COURSE``, what was asked of the model itself also at 0 edits.
    ``derived`` holds the numbers of :func:`errata.report.rows.derived` of each method.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Mean | None, ...]], ...]
    course: dict[tuple[str, int], tuple[Mean | None, ...]]
    derived: dict[str, dict[str, Mean]]
    errors: tuple[str, ...]


def sections(rows: Iterable[Row]) -> list[Section]:
    """A table for each setting, model, data set, protocol and mode, in the order of the rows."""
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        protocol = "" if row.protocol == "errata" else row.protocol
        grouped.setdefault((row.setting, row.model, row.data, protocol, row.mode), []).append(row)
    made: list[Section] = []
    for of, its in grouped.items():
        alone = [
            row for (setting, *key), found in grouped.items() for row in found
            if setting.split(",")[0] == "single" != of[0].split(",")[0] and key == [*of[1:]]
        ]  # fmt: skip
        made.append(_section(" · ".join(filter(None, of)), its, alone))
    return made


def _section(title: str, rows: list[Row], alone: list[Row]) -> Section:
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(_method_of(row), []).append(row)
    last = {name: _at_the_end(its) for name, its in by_method.items()}
    cells = {name: _cells(its) for name, its in last.items()}
    told = [column for column, _, _ in COLUMNS if any(its[column] for its in cells.values())]
    unedited = _cells((row for its in last.values() for row in its), "before")
    lines = [("(unedited)", unedited), *cells.items()]
    errors = {f"{name}: {row.error}": None for name, its in by_method.items() for row in its if row.error}
    course: dict[tuple[str, int], tuple[Mean | None, ...]] = {}
    sequence = len(rows) > sum(map(len, last.values()))
    for name, its in by_method.items() if sequence else ():
        n = 0
        for n in sorted({row.after_edits for row in its if row.kind != "cost"}):
            found = _cells(row for row in its if row.after_edits == n)
            course[name, n] = tuple(found[column] for column in COURSE)
        if any(row.kind in ("drift", "text") for row in its):
            start = _cells((row for row in its if row.after_edits == n), "before")  # the same at every checkpoint
            course[name, 0] = tuple(None if column in CURVES else start[column] for column in COURSE)
    shown = tuple((name, tuple(its[column] for column in told)) for name, its in lines)
    numbers = {
        name: derived(last[name], its if sequence else (), [row for row in alone if _method_of(row) == name])
        for name, its in by_method.items()
    }
    return Section(title, tuple(told), shown, course, numbers, tuple(errors))


def _method_of(row: Row) -> str:
    return " ".join(filter(None, (row.method, row.settings)))


def _at_the_end(rows: list[Row]) -> list[Row]:
    """The rows after the last of a unit's edits: a sequence tells its cost at each checkpoint."""
    ends: dict[tuple[int, str], set[int]] = {}
    for row in rows:
        if row.kind == "cost":
            ends.setdefault((row.seed, row.case), set()).add(row.after_edits)
    last = {seed: max(points) for (seed, _), points in ends.items() if len(points) > 1}
    return [row for row in rows if row.after_edits == last.get(row.seed, row.after_edits)]


def _cells(rows: Iterable[Row], field: str = "after") -> dict[str, Mean | None]:
    values: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        if (value := getattr(row, field)) is not None:
            values.setdefault((row.kind, row.metric), []).append(((row.data, row.seed, row.case), value))
    return {column: mean_over_cases(values.get((kind, metric), ())) for column, kind, metric in COLUMNS}


def _cell(column: str, value: Mean | None) -> str:
    if value is None:
        return "-"
    plain = {name for name, kind, _ in COLUMNS if kind in PLAIN}
    return f"{value.mean:,.3g}" if column in plain else str(value)


def tables_of(section: Section) -> list[tuple[str, list[list[str]]]]:
    """A section's tables as (caption, rows of text): the heads first."""
    body = [[name, *map(_cell, section.columns, its)] for name, its in section.lines]
    made = [("", [["method", *section.columns], *body])]
    names = [name for name in DERIVED if any(name in numbers for numbers in section.derived.values())]
    if names:
        body = [[method, *(shown(numbers.get(name)) for name in names)] for method, numbers in section.derived.items()]
        made.append(("changes of accuracy", [["method", *names], *body]))
    for place, column in enumerate(COURSE):
        its = {key: found[place] for key, found in section.course.items() if found[place]}
        if its:
            points = sorted({n for _, n in its})
            names = dict.fromkeys(name for name, _ in section.course)
            body = [[name, *(_cell(column, its.get((name, n))) for n in points)] for name in names]
            made.append((f"{column} after so many edits", [["method", *map(str, points)], *body]))
    return made


HOW = "Mean over cases ± standard error (cases); a dash where nothing could be measured."


def markdown(rows: Iterable[Row], title: str = "Methods, before and after", note: str = "", picture: str = "") -> str:
    """A page with a section for each setting, model, data set and mode; ``picture`` is the path of one beside it."""
    lines = [f"# {title}", "", HOW, *(("", note) if note else ()), *(("", f"![curves]({picture})") if picture else ())]
    for section in sections(rows):
        lines += ["", f"## {section.title}"]
        for caption, (head, *body) in tables_of(section):
            lines += ["", *((f"{caption}:", "") if caption else ())]
            cells = [[cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *body)]
            lines += [f"| {' | '.join(line)} |" for line in cells]
        lines += ["", *(f"- {error}" for error in section.errors)] if section.errors else []
    return "\n".join(lines) + "\n"
