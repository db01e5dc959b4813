"""Accuracies compared: before and after the edits, along a sequence, and of edits made alone and together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from errata.evaluation import metrics
from errata.evaluation.metrics import Mean, mean_over_cases
from errata.evaluation.protocols import CHANGED, STAYING, goodness
from errata.report.folds import CaseKey, case_key, mean_of
from errata.types import Row

DERIVED = (  # names of :func:`derived`, in the order in which they are shown
    "drawdown",
    "deterioration",
    "wrong made right",
    "right made wrong",
    "scalability",
    "backward transfer",
    "retainability",
)
ProbeKey = tuple[CaseKey, str]


def derived(
    rows: Sequence[Row], sequence: Sequence[Row] = (), alone: Iterable[Row] = (), metric: str = "accuracy"
) -> dict[str, Mean]:
    """Numbers that compare accuracies of one method in one setting and mode, by their names in :data:`DERIVED`.

    ``rows`` are those after the last edit. Of what should stay: drawdown (MEND) and deterioration (KnowledgeEditor). Of
    what should change, the share of wrong answers made right (MEMIT_CSK's efficacy); of all answers that were right,
    the share made wrong (its relapse). Scalability (the survey) is against rows of the same edits made ``alone``, and
    :func:`retention`, by ``metric``, of the rows of a whole ``sequence``. What cannot be computed is left out.
    """
    accuracies = [row for row in rows if row.metric == "accuracy" and row.after is not None]
    both = [row for row in accuracies if row.before is not None]
    staying, changed = ([row for row in both if row.kind in kinds] for kinds in (STAYING, CHANGED))
    numbers: dict[str, Mean | None] = {
        "drawdown": mean_over_cases((case_key(row), metrics.drawdown(*_ends(row))) for row in staying),
        "wrong made right": metrics.efficacy(*_right(changed)),
        "right made wrong": metrics.relapse(*_right(both)),
        "scalability": _scalability(accuracies, alone),
    }
    before, after = (mean_of(staying, end) for end in ("before", "after"))
    if before and after:
        numbers["deterioration"] = Mean(metrics.deterioration(before.mean, after.mean), None, before.count)
    if sequence:
        over = retention(sequence, metric=metric)
        numbers["backward transfer"] = over.backward_transfer
        if over.retainability is not None:
            numbers["retainability"] = Mean(over.retainability, None, len(over.curve))
    return {name: value for name in DERIVED if (value := numbers.get(name)) is not None}


def _scalability(rows: Iterable[Row], alone: Iterable[Row]) -> Mean | None:
    """Of the edits that are in both; None without any."""
    together, single = _edits(rows), _edits(alone)
    shared = [key for key in together if key in single]
    if not shared:
        return None
    value = metrics.scalability([single[key] for key in shared], [together[key] for key in shared])
    return Mean(value, None, len(shared))


def _edits(rows: Iterable[Row]) -> dict[ProbeKey, float]:
    """The accuracy of each edit's own prompt after the edits, where it is known."""
    edits = (row for row in rows if (row.kind, row.metric) == ("edit", "accuracy"))
    return {(case_key(row), row.probe): row.after for row in edits if row.after is not None}


def _ends(row: Row) -> tuple[float, float]:
    return cast(float, row.before), cast(float, row.after)


def _right(rows: Iterable[Row]) -> tuple[list[bool], list[bool]]:
    """Whether each was right before, and is now."""
    ends = [_ends(row) for row in rows]
    return [before == 1.0 for before, _ in ends], [after == 1.0 for _, after in ends]


# Retention ---------------------------------------------------------------------------------------


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
    """Of the rows of one method in one mode, asked at several checkpoints (of ``old_first``: of 1 - its value).

    Each data set and seed is a sequence of its own, with its own end: the curve is over the cases of all,
    retainability the mean over sequences, backward transfer the mean over the edits of all.
    """
    sequences: dict[tuple[str, int], _Values] = {}
    for row in rows:
        if (row.kind, row.metric) == (kind, metric) and row.after is not None:
            values = sequences.setdefault((row.data, row.seed), {})
            values.setdefault(row.after_edits, {})[case_key(row), row.probe] = goodness(metric, row.after)
    joined: _Values = {}
    first, last = dict[ProbeKey, float](), dict[ProbeKey, float]()
    for values in sequences.values():
        points = sorted(values)
        for n in points:
            joined.setdefault(n, {}).update(values[n])
        for n in points[:-1]:
            first |= {key: value for key, value in values[n].items() if key not in first}
        last |= values[points[-1]]
    curves = [[mean.mean for mean in _curve(values).values()] for values in sequences.values()]
    slopes = [metrics.retainability(curve) for curve in curves if len(curve) > 1]
    return Retention(
        _curve(joined),
        sum(slopes) / len(slopes) if slopes else None,
        metrics.backward_transfer(first, last) if first else None,
    )


_Values = dict[int, dict[ProbeKey, float]]  # edits made -> the accuracy of each of those asked then


def _curve(values: Mapping[int, Mapping[ProbeKey, float]]) -> dict[int, Mean]:
    """Edits made -> the mean over cases."""
    means = {n: mean_over_cases((case, value) for (case, _), value in values[n].items()) for n in sorted(values)}
    return {n: mean for n, mean in means.items() if mean is not None}
