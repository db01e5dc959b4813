"""Rows in groups: by setting and mode, by method, by what is measured; and those at the end of a sequence."""

from collections.abc import Iterable, Mapping
from operator import attrgetter

from errata.evaluation.metrics import Mean
from errata.report.folds import mean_of
from errata.report.headings import COLUMNS, kind_of
from errata.types import Row

Cells = tuple[Mean | None, ...]
ByMethod = dict[str, list[Row]]  # method and settings -> rows
Measured = dict[tuple[str, str], list[Row]]  # kind and metric -> rows
Subject = tuple[str, str, str, str, str]  # method, model, data, protocol, mode


def by_mode(rows: Iterable[Row]) -> list[dict[str, ByMethod]]:
    """For each setting, model, data set and protocol: mode -> method -> rows, each in the order of the rows."""
    groups: dict[tuple[str, ...], dict[str, ByMethod]] = {}
    for group in grouped(rows, "setting", "model", "data", "protocol", "mode", "method", "settings"):
        first = group[0]
        modes = groups.setdefault((first.setting, first.model, first.data, first.protocol), {})
        modes.setdefault(first.mode, {}).setdefault(method_name(first), []).extend(group)
    return list(groups.values())


def grouped(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    """The rows in groups that agree in these fields."""
    of, groups = attrgetter(*names), dict[object, list[Row]]()
    for row in rows:
        groups.setdefault(of(row), []).append(row)
    return list(groups.values())


def method_name(row: Row) -> str:
    """Method and settings in one line."""
    return " ".join(filter(None, (row.method, row.settings)))


def every_mode(modes: Mapping[str, ByMethod]) -> ByMethod:
    """The rows of each method in all modes."""
    joined: ByMethod = {}
    for by_method in modes.values():
        for name, rows in by_method.items():
            joined.setdefault(name, []).extend(rows)
    return joined


def first_of(by_method: ByMethod) -> Row:
    """A row that stands for its group in the fields that it agrees in."""
    return next(rows[0] for rows in by_method.values())


def made_alone(groups: Iterable[Mapping[str, ByMethod]]) -> dict[Subject, list[Row]]:
    """The rows of edits that were made alone, by all but their setting."""
    alone: dict[Subject, list[Row]] = {}
    for by_method in (by_method for modes in groups for by_method in modes.values()):
        if is_single(first_of(by_method)):
            for rows in by_method.values():
                alone.setdefault(subject(rows[0]), []).extend(rows)
    return alone


def is_single(row: Row) -> bool:
    """Whether its edit was made alone."""
    return row.setting.split(",")[0] == "single"


def subject(row: Row) -> Subject:
    """All that tells a row's group from others, but its setting."""
    return (method_name(row), row.model, row.data, row.protocol, row.mode)


def checkpoints(rows: Iterable[Row]) -> list[int]:
    """The numbers of edits after which the model was asked."""
    return sorted({row.after_edits for row in rows if row.kind != "cost"})


def at_the_end(rows: list[Row]) -> list[Row]:
    """The rows after the last of a unit's edits: a sequence has costs at each checkpoint."""
    ends: dict[tuple[int, str], set[int]] = {}
    for row in rows:
        if row.kind == "cost":
            ends.setdefault((row.seed, row.case), set()).add(row.after_edits)
    last = {seed: max(points) for (seed, _), points in ends.items() if len(points) > 1}
    return [row for row in rows if row.after_edits == last.get(row.seed, row.after_edits)] if last else rows


def measured(*parts: Iterable[Row]) -> Measured:
    """The rows by what they measure."""
    found: Measured = {}
    for group in grouped((row for rows in parts for row in rows), "kind", "metric", "label"):
        found.setdefault((kind_of(group[0]), group[0].metric), []).extend(group)
    return found


def cells(
    of: Measured, field: str = "after", headings: Mapping[tuple[str, str], str] = COLUMNS
) -> dict[str, Mean | None]:
    """Heading -> the mean of its rows."""
    return {column: mean_of(of.get(key, ()), field) for key, column in headings.items()}
