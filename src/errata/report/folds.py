"""Rows folded into numbers: summaries, and a protocol's own numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from errata.errors import BadInput
from errata.evaluation.metrics import Mean, case_means, hop_wise, instance_wise, mean, mean_over_cases, score
from errata.evaluation.protocols import PROTOCOLS, Line, Protocol
from errata.report.headings import NAMES, heading, kind_of
from errata.report.rows import FIELDS
from errata.types import Row

CaseKey = tuple[str, int, str]


def case_key(row: Row) -> CaseKey:
    """What tells a case from others among all rows: (data, seed, case)."""
    return row.data, row.seed, row.case


# Summaries ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One measure over all cases: mean over cases of the mean within a case, without and with the patch.

    ``of`` holds the values of the row fields that the summary was split by; ``after`` is None where the
    measure is unsupported, and ``errors`` counts the rows with an error. ``hops`` says how many a multi-hop question
    has ("3 hops"), where that is known.
    """

    of: tuple[str, ...]
    kind: str
    metric: str
    mode: str
    before: Mean | None
    after: Mean | None
    errors: int = 0
    hops: str = ""

    @property
    def name(self) -> str:
        """Words for kind and metric."""
        return heading(f"{self.kind} {self.hops}".strip(), self.metric)


def summary(rows: Iterable[Row], by: Sequence[str] = ()) -> list[Summary]:
    """A summary for each kind, metric and mode, and each value of the row fields in ``by`` (as "method").

    Rows of several protocols are never folded together: they are split by it where ``by`` does not name it.
    """
    if extra := [name for name in by if name not in FIELDS]:
        raise BadInput(f"a row has no field {', '.join(extra)}; its fields are {', '.join(FIELDS)}")
    rows = list(rows)
    if "protocol" not in by and len({row.protocol for row in rows}) > 1:
        by = (*by, "protocol")
    groups: dict[tuple[tuple[str, ...], str, str, str], list[Row]] = {}
    for row in rows:
        of = tuple(str(getattr(row, name)) for name in by)
        groups.setdefault((of, row.mode, kind_of(row), row.metric), []).append(row)
    order = {kind: place for place, kind in enumerate(NAMES)}
    splits = list(dict.fromkeys((of, mode) for of, mode, _, _ in groups))
    keys = sorted(groups, key=lambda k: (splits.index(k[:2]), order.get(k[2], len(order)), k[3]))
    return [_summary(of, kind, metric, mode, groups[of, mode, kind, metric]) for of, mode, kind, metric in keys]


def _summary(of: tuple[str, ...], kind: str, metric: str, mode: str, rows: list[Row]) -> Summary:
    before, after = mean_of(rows, "before"), mean_of(rows, "after")
    kind, _, hops = kind.partition(" ")
    return Summary(of, kind, metric, mode, before, after, sum(row.error is not None for row in rows), hops)


def mean_of(rows: Iterable[Row], field: str) -> Mean | None:
    """The mean over cases of a field of rows (``before`` or ``after``), where it is known."""
    return mean(values_of(rows, field).values())


def values_of(rows: Iterable[Row], field: str = "after") -> dict[CaseKey, float]:
    """Case -> the mean of a field of its rows, where it is known."""
    return case_means((case_key(row), value) for row in rows if (value := getattr(row, field)) is not None)


# A protocol's numbers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A number by the name that a protocol's paper gives it, in its units, without and with the patch."""

    protocol: str
    name: str
    before: Mean | None
    after: Mean | None


def published(rows: Iterable[Row]) -> list[Published]:
    """The numbers of each protocol in the rows, folded as its paper folds; of one method, setting and data set."""
    by_protocol: dict[str, list[Row]] = {}
    for row in rows:
        by_protocol.setdefault(row.protocol, []).append(row)
    known = [(PROTOCOLS[name], of_it) for name, of_it in by_protocol.items() if name in PROTOCOLS]
    return [number for protocol, of_it in known for number in _published(protocol, of_it)]


def _published(protocol: Protocol, rows: Sequence[Row]) -> list[Published]:
    after = _of_answered_edits(rows) if protocol.if_edited else rows
    ends = {line.name: (_line(line, rows, "before"), _line(line, after, "after")) for line in protocol.lines}
    numbers: list[Published] = []
    for line in protocol.lines:
        if any(ends[line.name]) or any(row.error for row in rows if _counts(line, row)):
            scaled = (None if end is None else end.times(line.scale) for end in ends[line.name])
            numbers.append(Published(protocol.name, line.name, *scaled))
    parts = [ends[name] for name in protocol.score]
    if parts and all(before is not None for before, _ in parts):
        before, after_score = (_score(side) for side in zip(*parts, strict=True))
        numbers.append(Published(protocol.name, "S", before, after_score))
    return numbers


def line_values(name: str, rows: Sequence[Row]) -> dict[str, dict[CaseKey, float]]:
    """The values of each case after the edits, of those numbers of a protocol that are means over cases."""
    chosen = PROTOCOLS[name]
    after = _of_answered_edits(rows) if chosen.if_edited else rows
    return {
        line.name: {
            case: value * line.scale for case, value in values_of(row for row in after if _counts(line, row)).items()
        }
        for line in chosen.lines
        if line.fold == "mean"
    }


def _of_answered_edits(rows: Sequence[Row]) -> list[Row]:
    """The rows of edits, and of the cases whose edit is answered."""
    answered = {
        case_key(row)
        for row in rows
        if row.kind == "edit" and row.metric in ("accuracy", "released") and row.after == 1.0
    }
    return [row for row in rows if row.kind == "edit" or case_key(row) in answered]


def _score(parts: Sequence[Mean | None]) -> Mean | None:
    if any(part is None for part in parts):
        return None
    return Mean(score(*(part.mean for part in parts if part)), None, 1)


def _counts(line: Line, row: Row) -> bool:
    return row.kind in line.kinds and row.metric == line.metric and line.label in ("", row.label)


def _line(line: Line, rows: Iterable[Row], end: str) -> Mean | None:
    values = [
        (row.kind, case_key(row), cast(float, getattr(row, end)))
        for row in rows
        if _counts(line, row) and getattr(row, end) is not None
    ]
    if line.fold == "kinds":
        means = [mean_over_cases(value[1:] for value in values if value[0] == kind) for kind in line.kinds]
        known = [of_kind.mean for of_kind in means if of_kind is not None]
        return Mean(sum(known) / len(known), None, len(known)) if known else None
    if line.fold in ("instance_wise", "hop_wise"):
        right: dict[CaseKey, dict[str, bool]] = {}
        for kind, case, value in values:
            kinds = right.setdefault(case, {})
            kinds[kind] = kinds.get(kind, True) and bool(value)
        whole = [[kinds[kind] for kind in line.kinds] for kinds in right.values() if set(kinds) == set(line.kinds)]
        if line.fold == "hop_wise":
            return mean(hop_wise(hops, final) for *hops, final in whole)
        return mean(instance_wise(hops) for hops in whole)
    return mean_over_cases(value[1:] for value in values)


def edit_metric(protocol: str) -> str:
    """The metric of the protocol's own number for the edits themselves; ``accuracy`` where it prints none."""
    lines = PROTOCOLS[protocol].lines if protocol in PROTOCOLS else ()
    return next((line.metric for line in lines if line.kinds == ("edit",)), "accuracy")
