"""Means with their spread, and the harmonic mean that CounterFact's score is."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

Case = TypeVar("Case", bound=Hashable)


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error (None where there is one value) and the number of values."""

    mean: float
    error: float | None
    count: int

    def times(self, scale: float) -> "Mean":
        """The mean in other units."""
        return Mean(self.mean * scale, None if self.error is None else self.error * scale, self.count)

    def __str__(self) -> str:
        spread = "" if self.error is None else f" ± {self.error:.2f}"
        return f"{self.mean:.2f}{spread} ({self.count})"


def mean(values: Iterable[float]) -> Mean | None:
    """m = Σx/n and its standard error √(Σ(x - m)² / (n - 1) / n); None of nothing."""
    x = list(values)
    n = len(x)
    if not n:
        return None
    m = sum(x) / n
    return Mean(m, sqrt(sum((value - m) ** 2 for value in x) / (n - 1) / n) if n > 1 else None, n)


def mean_over_cases(pairs: Iterable[tuple[Hashable, float]]) -> Mean | None:
    """The mean of the cases' own means; ``pairs`` are a case and a value.

    ROME's order (https://arxiv.org/abs/2202.05262, experiments/summarize.py): a case with ten neighbours
    weighs as much as one with two. The error is over cases: values within a case depend on each other.
    """
    return mean(case_means(pairs).values())


def case_means(pairs: Iterable[tuple[Case, float]]) -> dict[Case, float]:
    """Case -> the mean of its values; ``pairs`` are a case and a value."""
    of_case: dict[Case, list[float]] = {}
    for case, value in pairs:
        of_case.setdefault(case, []).append(value)
    return {case: sum(values) / len(values) for case, values in of_case.items()}


def harmonic_mean(values: Iterable[float]) -> float:
    """n / Σ(1/x); 0 where any value is 0."""
    x = list(values)
    return 0.0 if min(x, default=0.0) <= 0 else len(x) / sum(1 / value for value in x)


def score(efficacy: float, paraphrase: float, neighborhood: float) -> float:
    """S: the harmonic mean of ES, PS and NS as percentages rounded to two decimals, each a mean over cases.

    MEMIT's (https://arxiv.org/abs/2210.07229, experiments/summarize.py): folded over the means, not case by case.
    """
    return harmonic_mean(round(100 * share, 2) for share in (efficacy, paraphrase, neighborhood))
