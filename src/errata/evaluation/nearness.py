"""Rows of how near an edited model is to the gold, beside the unedited one.

nearness = Nearness.of(gold, lm, ("generated",))       # the unedited model, once
with patch.applied(lm) as edited:
    rows = nearness.rows(edited, patch.edits, after_edits=len(patch.edits))
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from errata.evaluation.gold import Divergences, Gold
from errata.evaluation.metrics import Mean
from errata.types import Edit, Mode, Row

if TYPE_CHECKING:
    from errata.model.lm import LM

KIND = "gold"  # of the row over all kinds of probe
METRIC = "to_gold"


def match_of(gold: Gold) -> str:
    """The ``match`` of rows of a gold, which tells them from those of another."""
    return f"retrained {gold.digest}"


@dataclass(frozen=True)
class Nearness:
    """A gold, and how far the unedited model is from it: rows that compare an edited model with that."""

    gold: Gold
    before: Divergences
    modes: tuple[Mode, ...]

    @classmethod
    def of(cls, gold: Gold, lm: "LM", modes: Sequence[Mode]) -> Self:
        """Asks the unedited model."""
        return cls(gold, gold.divergences(lm), tuple(modes))

    def rows(self, edited: "LM", edits: Iterable[Edit], *, after_edits: int, **labels: Any) -> list[Row]:
        """A row ``to_gold`` for each probe, and one of kind ``gold``: the mean over kinds of their means.

        No row where ``edits``, which are in force, are not those of the gold. The model is fed what it is asked; the
        rows stand in each mode, so that each mode's table has them.
        """
        if not self.gold.is_of(edits):
            return []
        gold, after = self.gold, self.gold.divergences(edited)
        error = self.before.error or after.error
        shared: Any = {"metric": METRIC, "match": match_of(gold), "after_edits": after_edits, "error": error, **labels}
        was, now = (self._of_probes(of) for of in (self.before, after))
        rows: list[Row] = []
        for mode in self.modes:
            for (case, kind, label, number), before, value in zip(gold.asked, was, now, strict=True):
                about: Any = {"case": case, "kind": kind, "label": label, "probe": gold.prompts[number]}
                rows.append(Row(mode=mode, before=before, after=value, **about, **shared))
            ends: Any = {
                "before": _mean_of_kinds(gold.folded(self.before)),
                "after": _mean_of_kinds(gold.folded(after)),
            }
            rows.append(Row(mode=mode, case="all kinds", kind=KIND, **ends, **shared))
        return rows

    def _of_probes(self, of: Divergences) -> list[float | None]:
        """The distance of each probe that is asked."""
        between = self.gold.between
        return [of.values[n] / between[kind].mean if of.values else None for _, kind, _, n in self.gold.asked]


def _mean_of_kinds(means: Mapping[str, Mean]) -> float | None:
    return sum(mean.mean for mean in means.values()) / len(means) if means else None
