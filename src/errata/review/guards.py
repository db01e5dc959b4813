"""Guards: limits that a review's numbers must keep for the patch to count.

    guards_of({"max_kl": 0.05})          # the defaults, with another limit for the divergence on canary text

How the defaults were chosen: ``docs/review.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any

from errata.errors import BadInput, unknown
from errata.evaluation.metrics import mean_over_cases
from errata.types import Row

Number = float | None


@dataclass(frozen=True)
class Rule:
    """What a guard measures: words for it, the limit that it has by default, and its number in a review's rows."""

    words: str
    limit: float
    number: Callable[[Sequence[Row]], Number]


@dataclass(frozen=True)
class Guard:
    """A limit and what was measured. ``value`` is None where that could not be measured.

    ``given`` says that the user named the limit: then a number that could not be measured refuses too.
    """

    name: str
    words: str
    limit: float
    value: Number
    given: bool = False

    @property
    def least(self) -> bool:
        """Whether the limit is a lower one."""
        return self.name.startswith("min_")

    @property
    def passed(self) -> bool | None:
        """Whether the limit is kept; None where that is not known and nobody asked for it by name."""
        if self.value is None:
            return False if self.given and self.on else None
        return self.value >= self.limit if self.least else self.value <= self.limit

    @property
    def on(self) -> bool:
        """Whether the limit can refuse anything."""
        return self.limit > 0 if self.least else isfinite(self.limit)

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.3g}"
        return f"{self.words} {found}, {'at least' if self.least else 'at most'} {self.limit:g} ({option(self.name)})"


def _share(kind: str, metric: str) -> Callable[[Sequence[Row]], Number]:
    """The mean over cases of a metric after the edit."""

    def number(rows: Sequence[Row]) -> Number:
        found = mean_over_cases((r.case, r.after) for r in rows if _is(r, kind, metric) and r.after is not None)
        return None if found is None else found.mean

    return number


def _rise(kind: str, metric: str) -> Callable[[Sequence[Row]], Number]:
    """The mean rise."""

    def number(rows: Sequence[Row]) -> Number:
        both = [(r.before, r.after) for r in rows if _is(r, kind, metric) and r.before is not None]
        known = [after - before for before, after in both if after is not None]
        return sum(known) / len(known) if known else None

    return number


def _largest(kind: str, metric: str) -> Callable[[Sequence[Row]], Number]:
    def number(rows: Sequence[Row]) -> Number:
        return max((r.after for r in rows if _is(r, kind, metric) and r.after is not None), default=None)

    return number


def _is(row: Row, kind: str, metric: str) -> bool:
    return (row.kind, row.metric) == (kind, metric) and (row.mode == "generated" or kind in MEASURED)


MEASURED = ("text", "block", "drift")  # kinds of rows that are measured without an answer
RULES: Mapping[str, Rule] = {
    "min_reliability": Rule("edits answered with their target", 0.9, _share("edit", "accuracy")),
    "min_paraphrase": Rule("edits in other words answered with their target", 0.5, _share("paraphrase", "accuracy")),
    "min_neighborhood": Rule("answers nearby that stayed", 0.7, _share("neighborhood", "agreement")),
    "min_same_subject": Rule("other facts of the subject that stayed", 0.3, _share("same_subject", "agreement")),
    "min_unrelated": Rule("canary answers that stayed", 0.8, _share("unrelated", "agreement")),
    "max_kl": Rule("KL of the next token on canary text, nats", 0.1, _share("text", "kl")),
    "max_loss": Rule("rise of the loss on canary text, nats a token", 0.1, _rise("text", "loss")),
    "max_norm": Rule("largest ‖Δ‖ / ‖W‖ of a weight", 1.0, _largest("drift", "norm")),
    "max_block": Rule("largest relative change of a block's output", 0.3, _largest("block", "output_change")),
}


def limits(given: Mapping[str, Any] | None = None) -> dict[str, tuple[float, bool]]:
    """Guard -> its limit, and whether it was given. Raises :class:`BadInput` for what is no limit."""
    checked = {name: _limit(name, value) for name, value in (given or {}).items()}
    return {name: (checked.get(name, rule.limit), name in checked) for name, rule in RULES.items()}


def guards_of(rows: Sequence[Row], given: Mapping[str, Any] | None = None) -> tuple[Guard, ...]:
    """The guards of a review's rows; ``given`` limits take the place of the defaults, None switches one off."""
    return tuple(
        Guard(name, RULES[name].words, limit, RULES[name].number(rows), named)
        for name, (limit, named) in limits(given).items()
    )


def _limit(name: str, value: Any) -> float:
    if name not in RULES:
        raise unknown("guard", name, list(RULES))
    if value is None:
        return 0.0 if name.startswith("min_") else float("inf")
    if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value) or value < 0:
        raise BadInput(f"the limit of {option(name)} is a number from 0, found {value!r}")
    if name.startswith("min_") and value > 1:
        raise BadInput(f"{option(name)} is a share from 0 to 1, found {value:g}")
    return float(value)


def option(name: str) -> str:
    """How a guard is named on the command line."""
    return f"--{name.replace('_', '-')}"
