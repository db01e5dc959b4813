"""Numbers from what models said. Pure functions, each with its formula and source."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import sqrt

from errata.answers import answer_of, begins_with_answer, normalise
from errata.types import Score


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error (None where there is one value) and the number of values."""

    mean: float
    error: float | None
    count: int

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


def mean_over_cases(values: Iterable[tuple[Hashable, float]]) -> Mean | None:
    """The mean of the cases' own means; ``values`` are pairs of a case and a value.

    ROME's order (https://arxiv.org/abs/2202.05262, experiments/summarize.py): a case with ten neighbours
    weighs as much as one with two. The error is over cases: values within a case depend on each other.
    """
    of_case: dict[Hashable, list[float]] = {}
    for case, value in values:
        of_case.setdefault(case, []).append(value)
    return mean(sum(its) / len(its) for its in of_case.values())


def generated_accuracy(text: str, answers: Iterable[str]) -> float:
    """1{what was generated begins with an accepted answer}.

    Greedy decoding from the question alone: the protocol of "The Mirage of Model Editing"
    (https://arxiv.org/abs/2502.11177), with the match stated in ``errata.answers``.
    """
    return float(begins_with_answer(text, answers))


def generated_agreement(before: str, after: str) -> float:
    """1{f*(x) = f(x)} of the normalised answers: locality (Yao et al. 2023, https://arxiv.org/abs/2305.13172)."""
    return float(normalise(answer_of(before)) == normalise(answer_of(after)))


def forced_accuracy(scores: Iterable[Score]) -> float:
    """1{for an accepted answer y, argmax P(· | x, y_<t) = y_t at every t} (Yao et al. 2023: reliability)."""
    return float(any(score.correct for score in scores))


def forced_agreement(before: Score, after: Score) -> float:
    """1{argmax P*(· | x, y_<t) = argmax P(· | x, y_<t) at every t}: the draw-down of SERAC, as agreement."""
    return float(before.argmax == after.argmax)
