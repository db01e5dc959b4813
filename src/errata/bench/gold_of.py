"""By which gold a unit's model is asked, and whether rows lack that."""

import logging
from collections.abc import Callable, Sequence

from errata.bench.units import Unit
from errata.errors import ErrataError
from errata.evaluation.gold import Gold
from errata.evaluation.golds import Golds, Named
from errata.model.hf import HFLM
from errata.types import Row

log = logging.getLogger(__name__)


class GoldOf:
    """By which gold units are asked."""

    def __init__(self, golds: Golds, load: Callable[[str], HFLM]) -> None:
        self.golds = golds
        self.load = load
        self.known: dict[tuple[str, Named], Gold | None] = {}

    def lacked(self, unit: Unit, rows: Sequence[Row]) -> bool:
        """Whether these rows of a unit were measured before its gold was there, or against another.

        The model is loaded only where the rows and the edits leave that open.
        """
        path = self.golds.reached(unit.gold, unit.reaches)
        gold = None if path is None else self.golds.whole(path, unit.gold)
        return gold is not None and unit.lacks(gold, rows) and self.of(unit) is not None

    def of(self, unit: Unit, lm: HFLM | None = None) -> Gold | None:
        """The gold of a unit; None where it never has those edits in force, and for another model.

        Where a gold that the plan names is of another model, that is logged once.
        """
        if self.golds.reached(unit.gold, unit.reaches) is None:
            return None
        key = (unit.labels["model"], unit.gold)
        if key not in self.known:
            try:
                self.known[key] = self.golds.of(lm or self.load(key[0]), lambda about: True, unit.gold)
            except ErrataError as error:
                log.warning("%s is not measured against a gold: %s", key[0], error)
                self.known[key] = None
        return self.known[key]
