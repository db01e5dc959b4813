"""Guards: limits that a review's numbers must keep for the patch to count.

    guards_of({"max_kl": 0.05})          # the defaults, with another limit for the divergence on canary text

How the defaults were chosen: ``docs/review.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, ClassVar

from errata.errors import BadInput, unknown
from errata.evaluation.metrics import mean_over_cases
from errata.types import Row

Number = float | None
JSON: dict[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # how values are read from a file


@dataclass(frozen=True)
class Rule:
    """What a guard measures: words for it, the limit that it has by default, and its number in a review's rows."""

    words: str
    limit: float
    number: Callable[[Sequence[Row]], Number]


@dataclass(frozen=True)
class Guard:
    """A limit and what was measured; ``limit`` is None where it is switched off, ``value`` where it is not known.

    ``given`` says that the user named the limit: then a number that could not be measured refuses too.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = JSON

    name: str
    words: str
    limit: Number
    value: Number
    given: bool = False

    @property
    def least(self) -> bool:
        """Whether the limit is a lower one."""
        return self.name.startswith("min_")

    @property
    def passed(self) -> bool | None:
        """Whether the limit is kept; None where it is off, and where nothing was measured that was asked for."""
        if self.limit is None:
            return None
        if self.value is None:
            return False if self.given else None
        return self.value >= self.limit if self.least else self.value <= self.limit

    @property
    def bound(self) -> str:
        """The limit in a table."""
        return "off" if self.limit is None else f"{'≥' if self.least else '≤'} {self.limit:g}"

    def __str__(self) -> str:
        found = "could not be measured" if self.value is None else f"{self.value:.3g}"
        return f"{self.words}: {found}, expected {self.bound} ({option(self.name)})"


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


def _norm(rows: Sequence[Row]) -> Number:
    """The largest relative norm over the root of the number of edits, with which that of independent changes grows."""
    found = [r.after / max(1, r.after_edits) ** 0.5 for r in rows if _is(r, "drift", "norm") and r.after is not None]
    return max(found, default=None)


def _is(row: Row, kind: str, metric: str) -> bool:
    return (row.kind, row.metric, row.mode) == (kind, metric, "generated")


RULES: Mapping[str, Rule] = {
    "min_reliability": Rule("edits answered with their target", 0.9, _share("edit", "accuracy")),
    "min_paraphrase": Rule("edits in other words answered with their target", 0.5, _share("paraphrase", "accuracy")),
    "min_neighborhood": Rule("answers nearby that stayed", 0.7, _share("neighborhood", "agreement")),
    "min_same_subject": Rule("other facts of the subject that stayed", 0.25, _share("same_subject", "agreement")),
    "min_unrelated": Rule("canary answers that stayed", 0.8, _share("unrelated", "agreement")),
    "max_kl": Rule("KL of the next token on canary text, nats", 0.02, _share("text", "kl")),
    "max_loss": Rule("rise of the loss on canary text, nats a token", 0.02, _rise("text", "loss")),
    "max_norm": Rule("largest ‖Δ‖ / ‖W‖ of a weight, over √edits", 2.0, _norm),
    "max_block": Rule("largest relative change of a block's output", 0.1, _largest("block", "output_change")),
}


def limits(given: Mapping[str, Any] | None = None) -> dict[str, Number]:
    """Guard -> its limit; None where it is off. Raises :class:`BadInput` for what is no limit."""
    checked = {name: _limit(name, value) for name, value in (given or {}).items()}
    return {name: rule.limit for name, rule in RULES.items()} | checked


def guards_of(rows: Sequence[Row], given: Mapping[str, Any] | None = None) -> tuple[Guard, ...]:
    """The guards of a review's rows; ``given`` limits take the place of the defaults, and None switches one off.

    Raises :class:`BadInput` for what is no limit.
    """
    return tuple(
        Guard(name, RULES[name].words, limit, RULES[name].number(rows), name in (given or {}))
        for name, limit in limits(given).items()
    )


def _limit(name: str, value: Any) -> Number:
    if name not in RULES:
        raise unknown("guard", name, list(RULES))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value) or value < 0:
        raise BadInput(f"the limit of {option(name)} is a number from 0, found {value!r}")
    least = name.startswith("min_")
    if least and value > 1:
        raise BadInput(f"{option(name)} is a share from 0 to 1, found {value:g}")
    return None if (least and value == 0) or value == inf else float(value)


def option(name: str) -> str:
    """How a guard is named on the command line."""
    return f"--{name.replace('_', '-')}"
