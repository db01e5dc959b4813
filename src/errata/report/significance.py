"""Whether methods differ: paired by case, Wilcoxon's signed-rank test, corrected by Holm for the number of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

from errata.evaluation.metrics import Mean, mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.05
EXACT = 50  # differences at most of which p is exact, as in scipy; of more the normal approximation is near
Values = Mapping[str, Mapping[Any, float]]  # method -> case -> value


@dataclass(frozen=True)
class Comparison:
    """Methods by one measure: their means, the best first, and what tells each pair apart.

    ``p`` maps a pair of methods, in either order, to the probability of a difference as large or larger if there were
    none, corrected over all pairs.
    """

    values: Values
    order: tuple[str, ...]
    p: Mapping[tuple[str, str], float]
    less: bool = False  # is better

    @property
    def best(self) -> str:
        """The method with the best mean."""
        return self.order[0]

    def difference(self, one: str, other: str) -> Mean | None:
        """The mean over cases that both have of one's value less the other's; None without such a case."""
        of_one, of_other = self.values[one], self.values[other]
        return mean(value - of_other[case] for case, value in of_one.items() if case in of_other)

    def sign(self, one: str, other: str) -> str:
        """``+`` where one is better than the other, ``−`` where it is worse; "" where they cannot be told apart."""
        difference = self.difference(one, other)
        if difference is None or self.p[one, other] >= LEVEL:
            return ""
        return "+" if (difference.mean < 0) is self.less else "−"


def compare(values: Values, less: bool = False) -> Comparison | None:
    """The comparison of two methods or more that have values; None of fewer. ``less`` says that less is better."""
    known = {name: of for name, of in values.items() if of}
    if len(known) < 2:
        return None
    means = {name: sum(of.values()) / len(of) for name, of in known.items()}
    pairs = list(combinations(known, 2))
    p = holm(_signed_rank(known, pairs))
    both = {pair: value for (a, b), value in zip(pairs, p) for pair in ((a, b), (b, a))}
    return Comparison(known, tuple(sorted(known, key=means.__getitem__, reverse=not less)), both, less)


def holm(p: Sequence[float]) -> list[float]:
    """p-values that hold together: the i-th smallest of m times (m - i + 1), never below an earlier one, at most 1.

    S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    corrected, least = list(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, p[i] * (len(p) - place)))
        corrected[i] = least
    return corrected


def _signed_rank(values: Values, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """p of each pair: exact where few cases differ, else the normal approximation; 1 of equals."""
    import numpy as np
    from scipy.stats import wilcoxon

    cases = list(dict.fromkeys(case for of in values.values() for case in of))
    table = {name: np.array([of.get(case, np.nan) for case in cases]) for name, of in values.items()}
    p: Any = np.ones(len(pairs))
    together: dict[bytes, list[int]] = {}  # larger samples of the same cases are tested in one call
    for i, (a, b) in enumerate(pairs):
        both = ~np.isnan(differences := table[a] - table[b])
        differing = differences[both & (differences != 0)]
        if len(differing) > EXACT:
            together.setdefault(both.tobytes(), []).append(i)
        elif len(differing):
            p[i] = exact(differing)
    for mask, members in together.items():
        shared = np.frombuffer(mask, dtype=bool)
        differences = np.stack([(table[pairs[i][0]] - table[pairs[i][1]])[shared] for i in members], axis=1)
        tested: Any = wilcoxon(differences, axis=0, correction=True, method="asymptotic")
        p[members] = tested.pvalue
    return p.tolist()


def exact(differences: "NDArray[Any]") -> float:
    """p of the signed-rank test over all signs that differences other than 0 could have, of their ranks as they are.

    ``scipy.stats.wilcoxon`` is exact without ties alone, or of at most 13 differences; most measures have nothing but
    ties, and of those that are all as large this is the sign test.
    """
    from scipy.stats import rankdata

    ranks: Any = (2 * rankdata(abs(differences))).astype(int)  # ties share a rank, which may be a half
    below = int(min(ranks[differences > 0].sum(), ranks[differences < 0].sum()))
    return min(1.0, 2 * float(_rank_sums(tuple(sorted(ranks.tolist())))[: below + 1].sum()))


@lru_cache(maxsize=4096)
def _rank_sums(ranks: tuple[int, ...]) -> "NDArray[Any]":
    """The probability of each sum of those ranks whose signs are +, where each is as likely + as −."""
    import numpy as np

    chances = np.zeros(sum(ranks) + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    return chances
