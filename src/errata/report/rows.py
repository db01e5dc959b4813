"""Rows as lines of JSON, and folded: summaries, a protocol's own numbers, retention of a sequence."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from errata.errors import BadInput
from errata.evaluation import metrics
from errata.evaluation.metrics import Mean, backward_transfer, mean, mean_over_cases, retainability, score
from errata.evaluation.protocols import CHANGED, PROTOCOLS, STAYING, Line, Protocol
from errata.types import Row

if TYPE_CHECKING:
    pass


NAMES = {
    "edit": "reliability",
    "paraphrase": "paraphrases",
    "question": "questions",
    "alias": "alias",
    "inverse": "inverse",
    "logical": "logical",
    "one_hop": "one hop",
    "multi_hop": "two hops",
    "new_single_hop": "single hops",
    "single_hop": "old single hops",
    "neighborhood": "neighbours",
    "same_subject": "same subject",
    "preservation": "other objects",
    "attribute": "same new object",
    "unrelated": "unrelated",
    "distractor": "distracted neighbours",
    "other_task": "other tasks",
    "in_context": "facts in context",
    "generation": "texts",
}  # in the order in which they are shown


FIELDS = tuple(field.name for field in fields(Row))


DEFAULTS = {field.name: field.default for field in fields(Row)}


@dataclass(frozen=True)
class Summary:
    """One measure over all cases: mean over cases of the mean within a case, without and with the patch.

    ``of`` holds the values of the row fields that the summary was split by; ``after`` is None where the
    measure is unsupported, and ``errors`` counts the rows that say so.
    """

    of: tuple[str, ...]
    kind: str
    metric: str
    mode: str
    before: Mean | None
    after: Mean | None
    errors: int = 0

    @property
    def name(self) -> str:
        """Words for kind and metric; the metric is said where a kind is measured by more than one."""
        if self.kind == "cost":
            return self.metric.replace("_", " ")
        if self.kind not in NAMES:
            return f"{self.kind}: {self.metric}"
        name = NAMES[self.kind]
        kept = list(NAMES).index("neighborhood")
        several = self.kind in list(NAMES)[kept:] or self.metric != "accuracy"
        return f"{name}: {self.metric.replace('_', ' ')}" if several else name


def summary(rows: Iterable[Row], by: Sequence[str] = ()) -> list[Summary]:
    """A summary for each kind, metric and mode, and each value of the row fields in ``by`` (as "method").

    Rows of several protocols are never folded together: they are split by it where ``by`` does not say so.
    """
    if extra := [name for name in by if name not in FIELDS]:
        raise BadInput(f"a row has no field {', '.join(extra)}; its fields are {', '.join(FIELDS)}")
    rows = list(rows)
    if "protocol" not in by and len({row.protocol for row in rows}) > 1:
        by = (*by, "protocol")
    folded: dict[tuple[tuple[str, ...], str, str, str], list[Row]] = {}
    for row in rows:
        of = tuple(str(getattr(row, name)) for name in by)
        folded.setdefault((of, row.mode, row.kind, row.metric), []).append(row)
    order = {kind: place for place, kind in enumerate(NAMES)}
    groups = list(dict.fromkeys((of, mode) for of, mode, _, _ in folded))
    keys = sorted(folded, key=lambda k: (groups.index(k[:2]), order.get(k[2], len(order)), k[3]))
    return [_fold(of, kind, metric, mode, folded[of, mode, kind, metric]) for of, mode, kind, metric in keys]


def _fold(of: tuple[str, ...], kind: str, metric: str, mode: str, rows: list[Row]) -> Summary:
    values = [((row.data, row.seed, row.case), row.before, row.after) for row in rows]
    before = mean_over_cases((case, was) for case, was, _ in values if was is not None)
    after = mean_over_cases((case, now) for case, _, now in values if now is not None)
    return Summary(of, kind, metric, mode, before, after, sum(row.error is not None for row in rows))


@dataclass(frozen=True)
class Published:
    """A number by the name that a protocol's paper gives it, in its units, without and with the patch."""

    protocol: str
    name: str
    before: Mean | None
    after: Mean | None


def published(rows: Iterable[Row]) -> list[Published]:
    """What each protocol in the rows prints, folded as its paper folds; of one method, setting and data set."""
    by_protocol: dict[str, list[Row]] = {}
    for row in rows:
        by_protocol.setdefault(row.protocol, []).append(row)
    return [found for name, its in by_protocol.items() if name in PROTOCOLS for found in _printed(PROTOCOLS[name], its)]


def _printed(protocol: Protocol, rows: Sequence[Row]) -> list[Published]:
    after = rows
    if protocol.if_edited:
        edited = {
            case_key(row)
            for row in rows
            if row.kind == "edit" and row.metric in ("accuracy", "released") and row.after == 1.0
        }
        after = [row for row in rows if row.kind == "edit" or case_key(row) in edited]
    ends = {line.name: (_line(line, rows, "before"), _line(line, after, "after")) for line in protocol.lines}
    found = [
        Published(
            protocol.name, line.name, *(None if end is None else end.times(line.scale) for end in ends[line.name])
        )
        for line in protocol.lines
        if any(ends[line.name])
    ]
    parts = [ends[name] for name in protocol.score]
    if parts and all(end is not None for end, _ in parts):
        s = [None if None in its else Mean(score(*(end.mean for end in its if end)), None, 1) for its in zip(*parts)]
        found.append(Published(protocol.name, "S", s[0], s[1]))
    return found


def _line(line: Line, rows: Iterable[Row], end: str) -> Mean | None:
    found = [
        (row.kind, case_key(row), cast(float, getattr(row, end)))
        for row in rows
        if row.kind in line.kinds and row.metric == line.metric and line.label in ("", row.label)
        if getattr(row, end) is not None
    ]
    if line.fold == "kinds":
        means = [mean_over_cases(its[1:] for its in found if its[0] == kind) for kind in line.kinds]
        known = [its.mean for its in means if its is not None]
        return Mean(sum(known) / len(known), None, len(known)) if known else None
    if line.fold in ("instance_wise", "hop_wise"):
        by_case: dict[object, dict[str, bool]] = {}
        for kind, case, value in found:
            kinds = by_case.setdefault(case, {})
            kinds[kind] = kinds.get(kind, True) and bool(value)
        whole = [[kinds[kind] for kind in line.kinds] for kinds in by_case.values() if set(kinds) == set(line.kinds)]
        if line.fold == "hop_wise":
            return mean(metrics.hop_wise(hops, final) for *hops, final in whole)
        return mean(metrics.instance_wise(hops) for hops in whole)
    return mean_over_cases(its[1:] for its in found)


def case_key(row: Row) -> tuple[str, int, str]:
    return row.data, row.seed, row.case


@dataclass(frozen=True)
class Retention:
    """How edits last through a sequence.

    ``curve``: number of edits made -> mean accuracy of those asked then; ``retainability`` the survey's, over that
    curve; ``backward_transfer`` the mean over edits of accuracy at the end less that at the first checkpoint after it.
    """

    curve: dict[int, Mean]
    retainability: float | None
    backward_transfer: Mean | None


def retention(rows: Iterable[Row], kind: str = "edit", metric: str = "accuracy") -> Retention:
    """Of the rows of one sequence of one method in one mode, asked at several checkpoints."""
    found: dict[int, dict[tuple[object, str], float]] = {}
    for row in rows:
        if (row.kind, row.metric) == (kind, metric) and row.after is not None:
            found.setdefault(row.after_edits, {})[case_key(row), row.probe] = row.after
    points = sorted(found)
    curve = {n: its for n in points if (its := mean_over_cases((key[0], v) for key, v in found[n].items())) is not None}
    first: dict[tuple[object, str], float] = {}
    for n in points[:-1]:
        first |= {key: value for key, value in found[n].items() if key not in first}
    return Retention(
        curve,
        retainability([its.mean for its in curve.values()]) if len(curve) > 1 else None,
        backward_transfer(first, found[points[-1]]) if first else None,
    )


DERIVED = (  # names of :func:`derived`, in the order in which they are shown
    "drawdown",
    "deterioration",
    "wrong made right",
    "right made wrong",
    "scalability",
    "backward transfer",
    "retainability",
)


def derived(rows: Sequence[Row], sequence: Sequence[Row] = (), alone: Iterable[Row] = ()) -> dict[str, Mean]:
    """Numbers that compare accuracies of one method in one setting and mode, by their names in :data:`DERIVED`.

    ``rows`` are those after the last edit. Of what should stay: drawdown (MEND) and deterioration (KnowledgeEditor). Of
    what should change, the share of wrong answers made right (MEMIT_CSK's efficacy); of all answers that were right,
    the share made wrong (its relapse). Scalability (the survey) is against rows of the same edits made ``alone``, and
    :func:`retention` of the rows of a whole ``sequence``. What cannot be computed is left out.
    """
    accuracies = [row for row in rows if row.metric == "accuracy" and row.after is not None]
    both = [row for row in accuracies if row.before is not None]
    staying, changed = ([row for row in both if row.kind in kinds] for kinds in (STAYING, CHANGED))
    found: dict[str, Mean | None] = {
        "drawdown": mean_over_cases((case_key(row), metrics.drawdown(*_ends(row))) for row in staying),
        "wrong made right": metrics.efficacy(*_right(changed)),
        "right made wrong": metrics.relapse(*_right(both)),
    }
    if staying:
        before, after = (_mean_of(staying, end) for end in ("before", "after"))
        found["deterioration"] = Mean(metrics.deterioration(before.mean, after.mean), None, before.count)
    together = {(case_key(row), row.probe): _ends(row)[1] for row in accuracies if row.kind == "edit"}
    single = {(case_key(row), row.probe): row.after for row in alone if _is_edit(row)}
    if shared := [key for key in together if single.get(key) is not None]:
        values = metrics.scalability([cast(float, single[key]) for key in shared], [together[key] for key in shared])
        found["scalability"] = Mean(values, None, len(shared))
    if sequence:
        over = retention(sequence)
        found["backward transfer"] = over.backward_transfer
        if over.retainability is not None:
            found["retainability"] = Mean(over.retainability, None, len(over.curve))
    return {name: value for name in DERIVED if (value := found.get(name)) is not None}


def _is_edit(row: Row) -> bool:
    return (row.kind, row.metric) == ("edit", "accuracy")


def _ends(row: Row) -> tuple[float, float]:
    return cast(float, row.before), cast(float, row.after)


def _mean_of(rows: Iterable[Row], end: str) -> Mean:
    return cast(Mean, mean_over_cases((case_key(row), getattr(row, end)) for row in rows))


def _right(rows: Iterable[Row]) -> tuple[list[bool], list[bool]]:
    """Whether each was right before, and is now."""
    ends = [_ends(row) for row in rows]
    return [before == 1.0 for before, _ in ends], [after == 1.0 for _, after in ends]


def to_jsonl(rows: Iterable[Row], compact: bool = False) -> str:
    """A JSON object on a line of its own for each row; ``compact`` leaves out what stands at its default."""
    records = (asdict(row) for row in rows)
    if compact:
        records = ({k: v for k, v in its.items() if v != DEFAULTS[k]} for its in records)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def from_jsonl(text: str) -> list[Row]:
    """The rows of :func:`to_jsonl`. Raises :class:`BadInput`, which names a broken line by its number."""
    return [_row(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _row(line: str, number: int) -> Row:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"line {number}: not JSON ({error}); a line that was cut off can be removed") from error
    found = cast("dict[str, Any]", record if isinstance(record, dict) else {"": record})
    if not set(found) <= set(FIELDS):
        raise BadInput(f"line {number}: not a row; its fields are {', '.join(FIELDS)}")
    return Row(**found)
