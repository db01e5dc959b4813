"""Which methods can be told apart, column by column, as tables of text."""

from collections.abc import Mapping
from dataclasses import dataclass

from errata.report.folds import CaseKey
from errata.report.significance import LEVEL, Comparison, compare
from errata.report.text_table import TextTable

BEHIND = (
    "how far each is behind the best: mean difference over the same cases ± standard error, and p of Wilcoxon's "
    "signed-rank test, corrected by Holm over all pairs of methods"
)
APART = f"column by column: + the row is better, − it is worse (p < {LEVEL}), nothing: they cannot be told apart"
Values = Mapping[str, Mapping[str, Mapping[CaseKey, float]]]  # column -> method -> case -> value


@dataclass(frozen=True)
class Axes:
    """The columns by which a picture places a method: the edit itself, in other words, and what stays; "" for none."""

    edit: str = ""
    generality: str = ""
    locality: str = ""

    @property
    def names(self) -> list[str]:
        """Those that there are."""
        return [name for name in (self.edit, self.generality, self.locality) if name]


def compared(values: Values, falling: frozenset[str] = frozenset()) -> dict[str, Comparison]:
    """Methods compared by each column that holds values of two or more; in ``falling`` ones less is better."""
    made = {column: compare(of_method, column in falling) for column, of_method in values.items()}
    return {column: comparison for column, comparison in made.items() if comparison is not None}


def comparison_tables(comparisons: Mapping[str, Comparison], axes: Axes) -> list[TextTable]:
    """How far each method is behind the best of each column, and by the axes' columns which can be told apart."""
    if not comparisons:
        return []
    methods = dict.fromkeys(name for comparison in comparisons.values() for name in comparison.values)
    lines = tuple((name, *(_behind(comparison, name) for comparison in comparisons.values())) for name in methods)
    return [TextTable(BEHIND, ("method", *comparisons), lines), *_signs(comparisons, axes)]


def _behind(comparison: Comparison, name: str) -> str:
    if name not in comparison.values:
        return "-"
    if name == comparison.best:
        return "best"
    difference = comparison.difference(name, comparison.best)
    if difference is None:
        return "-"
    words = str(difference)
    words = words[1:] if words.startswith("-0.00") else words  # it rounds to nothing
    return f"{words}, p {_p_text(comparison.p[name, comparison.best])}"


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 1 else "= 1"


def _signs(comparisons: Mapping[str, Comparison], axes: Axes) -> list[TextTable]:
    made: list[TextTable] = []
    for column in axes.names:
        if (comparison := comparisons.get(column)) and len(comparison.order) > 2:
            lines = tuple(
                (f"{i} {name}", *("·" if name == other else comparison.sign(name, other) for other in comparison.order))
                for i, name in enumerate(comparison.order, start=1)
            )
            numbers = map(str, range(1, len(lines) + 1))
            made.append(TextTable(f"{column}, {APART}", ("method", *numbers), lines, aside=True))
    return made
