"""Measures the units of one model, in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.bench.fold import Fold
from errata.bench.gold_of import GoldOf
from errata.bench.prepared import Prepared
from errata.bench.progress import Reporter
from errata.bench.store import RowFile
from errata.bench.units import Unit
from errata.evaluation.ability import Checkup, ability_of
from errata.evaluation.baseline import Baseline, baseline
from errata.evaluation.nearness import Nearness
from errata.locate.found import warn_of_origin
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.workers import Workers
from errata.types import Row


class Measurer:
    """Measures units of one model. What the unedited model answers is asked once for units that ask the same."""

    def __init__(self, lm: HFLM, units: Sequence[Unit], gold_of: GoldOf, file: RowFile) -> None:
        self.lm, self.units, self.gold_of, self.file = lm, units, gold_of, file
        self.baselines: dict[Any, Baseline] = {}
        self.checkups: dict[Any, Checkup] = {}
        self.nearnesses: dict[Any, Nearness] = {}
        self.prepared = Prepared(lm)

    def rows(self, unit: Unit, reporter: Reporter, helpers: Workers | None = None) -> list[Row]:
        """All rows of a unit; ``helpers`` hold the model too, and answer what it is asked after edits."""
        lm, gold, key = self.lm, self.gold_of.of(unit, self.lm), unit.questions_key
        if key not in self.baselines:
            reporter.report(f"asking {lm.name} before the edits")
            self.baselines[key] = baseline_of(lm, unit, self.units)
        if unit.ability and (unit.ability, unit.modes) not in self.checkups:
            reporter.report(f"asking {lm.name} what it can do")
            texts = None if unit.ability is True else unit.ability
            self.checkups[unit.ability, unit.modes] = Checkup(lm, ability_of(lm, texts), unit.modes)
        if gold is not None and (gold, unit.modes) not in self.nearnesses:
            reporter.report(f"asking {lm.name} what the gold asks")
            self.nearnesses[gold, unit.modes] = Nearness.of(gold, lm, unit.modes)
        if unit.method is not self.prepared.method or unit.train is not self.prepared.train:
            self.prepared = Prepared(lm, unit.method, unit.train)  # one state is held at a time
            if unit.spec.settings_file is not None:
                warn_of_origin(Path(unit.spec.settings_file), unit.spec.name, lm.name, lm.fingerprint)
        checkup = self.checkups.get((unit.ability, unit.modes))
        asked = (self.baselines[key], checkup, None if gold is None else self.nearnesses[gold, unit.modes])
        return Fold(unit, lm, self.prepared, *asked, self.file.checkpoint(unit), reporter, helpers).rows()


def baseline_of(lm: LM, unit: Unit, units: Sequence[Unit]) -> Baseline:
    """What the unedited model replies to all that this unit asks, and others that share its questions."""
    same = [other for other in units if other.questions_key == unit.questions_key]
    asked = {id(case): case for other in same for case in (*other.ever_asked(), *other.untouched)}
    return baseline(lm, list(asked.values()), unit.modes, protocol=unit.protocol)
