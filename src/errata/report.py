"""Rows as lines of JSON, as summaries and as tables. Everything here is a fold over rows."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from errata.errors import BadInput
from errata.metrics import Mean, mean_over_cases
from errata.types import Row

if TYPE_CHECKING:
    from rich.table import Table

NAMES = {
    "edit": "reliability",
    "paraphrase": "paraphrases",
    "question": "questions",
    "alias": "alias",
    "inverse": "inverse",
    "one_hop": "one hop",
    "multi_hop": "two hops",
    "neighborhood": "neighbours",
    "same_subject": "same subject",
    "unrelated": "unrelated",
    "distractor": "distracted neighbours",
    "other_task": "other tasks",
}  # in the order in which they are shown
FIELDS = tuple(field.name for field in fields(Row))


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
        name = NAMES.get(self.kind, self.kind)
        kept = list(NAMES).index("neighborhood")
        return f"{name}: {self.metric}" if self.kind in list(NAMES)[kept:] else name


def summary(rows: Iterable[Row], by: Sequence[str] = ()) -> list[Summary]:
    """A summary for each kind, metric and mode, and each value of the row fields in ``by`` (as "method")."""
    if extra := [name for name in by if name not in FIELDS]:
        raise BadInput(f"a row has no field {', '.join(extra)}; its fields are {', '.join(FIELDS)}")
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


def table(rows: Iterable[Row], by: Sequence[str] = ()) -> "Table":
    """The summaries as a table, each with its mode: before and after ± standard error (cases)."""
    from rich.table import Table

    made = Table(title="before and after editing: mean ± standard error (cases)")
    for name in by:
        made.add_column(name)
    for name in ("measure", "mode"):
        made.add_column(name)
    for name in ("before", "after"):
        made.add_column(name, justify="right")
    for its in summary(rows, by):
        made.add_row(*its.of, its.name, its.mode, _shown(its.before), _shown(its.after))
    return made


def _shown(value: Mean | None) -> str:
    return "-" if value is None else str(value)


def to_jsonl(rows: Iterable[Row]) -> str:
    """A JSON object on a line of its own for each row."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


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
