"""The fold of a unit: edited batch by batch, and asked at the checkpoints.

Everything that is measured is one, ``patch = method.edit(lm, batch, state, patch)``: a single edit and a batch are one
step of it.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from errata.bench.prepared import Prepared
from errata.bench.progress import Reporter
from errata.bench.store import UnitCheckpoint, UnitProgress
from errata.bench.units import LAST_METRIC, SPEED, Unit
from errata.distributed.asked import SharedOut
from errata.errors import ErrataError
from errata.evaluation.ability import Checkup
from errata.evaluation.baseline import Baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.nearness import Nearness
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.peak import PeakMemory
from errata.model.workers import Workers
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Row

log = logging.getLogger(__name__)


@dataclass
class Fold:
    """Edits batch by batch, and asks at the checkpoints."""

    unit: Unit
    lm: HFLM
    prepared: Prepared
    before: Baseline
    checkup: Checkup | None
    nearness: Nearness | None
    checkpoint: UnitCheckpoint
    reporter: Reporter
    helpers: Workers | None = None
    edits: int = 0  # in force, or being made

    def rows(self) -> list[Row]:
        """Those of the whole unit: measured, or up to the error that ended it; costs last."""
        unit, progress = self.unit, self.checkpoint.load(self.lm)
        if self.nearness is not None and unit.lacks(self.nearness.gold, progress.rows):
            progress = UnitProgress()  # it was kept before this gold was there
        self.reporter.done += sum(map(len, unit.batches[: progress.steps]))
        error = None
        try:
            self._continue(progress)
        except ErrataError as wrong:
            error = f"{type(wrong).__name__}: {wrong}"
            log.warning("%s %s: %s", unit.labels["method"], unit.name, error)
            progress.rows += unit.rows(kind="edit", metric="accuracy", error=error, after_edits=self.edits)
        n = _edits_in(unit.batches[: progress.steps])
        self.reporter.done += sum(map(len, unit.batches[progress.steps :]))
        if unit.stops:
            progress.rows += unit.cost_rows(n, {"edits_endured": progress.endured}, error)
        return progress.rows + unit.cost_rows(n, {LAST_METRIC: progress.peak}, error)

    def _continue(self, progress: UnitProgress) -> None:
        """Makes the steps that are left, and keeps what is reached at each checkpoint."""
        unit = self.unit
        self._report("preparing")
        state = self.prepared.state_of(unit.method)
        for batch in unit.batches[progress.steps :]:
            self._report("editing")
            self.edits = _edits_in(unit.batches[: progress.steps + 1])
            progress.patch = self._edit(batch, state, progress)
            progress.steps += 1
            self.reporter.done += len(batch)
            cases = sum(map(len, unit.batches[: progress.steps]))
            if cases not in unit.checkpoints:
                continue
            self._report("asking")
            measured = self._ask(progress, cases)
            progress.rows += measured
            if not unit.goes_on(cases, measured):
                break
            progress.endured = self.edits
            if progress.steps < len(unit.batches):
                self.checkpoint.save(progress)

    def _edit(self, batch: Sequence[Case], state: Any, progress: UnitProgress) -> Patch:
        """The patch after one more step, whose time and memory are noted."""
        memory, began = PeakMemory(self.lm), time.perf_counter()
        edits = [edit for case in batch for edit in case.edits]
        patch = self.unit.method.edit(self.lm, edits, state, progress.patch)
        patch = self._transform("step", patch, progress.patch)
        progress.seconds += time.perf_counter() - began
        progress.peak = max((mib for mib in (progress.peak, memory.mib()) if mib is not None), default=None)
        return patch

    def _transform(self, at: Literal["step", "end"], patch: Patch, prior: Patch) -> Patch:
        """The patch as the plan's transform leaves it, if it has one there."""
        spec = self.unit.spec.transform
        return patch if spec is None or spec.at != at else spec.make()(patch, self.lm, prior)

    def _ask(self, progress: UnitProgress, cases: int) -> list[Row]:
        """The rows of a checkpoint, after so many cases."""
        unit, n = self.unit, self.edits
        about: Any = {"after_edits": n, "protocol": unit.protocol.name, **unit.labels}
        patch = self._transform("end", progress.patch, EMPTY)
        with self._applied(patch) as edited:
            asked = [*unit.asked_after(cases), *unit.untouched]
            rows = evaluate(self.before, edited, asked, after_edits=n, **unit.labels)
            ability = [] if self.checkup is None else self.checkup.rows(edited, **about)
            if self.nearness is not None:
                in_force = [edit for case in unit.cases[:cases] for edit in case.edits]
                ability += self.nearness.rows(edited, in_force, **about)
        if self.checkup is not None:
            ability += self.checkup.drift(patch, **about)
        untouched = {case.id for case in unit.untouched}
        rows = [row for row in rows if row.kind != "edit" or row.case not in untouched]
        figures = {
            SPEED: round(progress.seconds / n, 4),
            "kilobytes_per_edit": round(patch.nbytes / 1000 / n, 3),
        }
        return rows + ability + unit.cost_rows(n, figures)

    @contextmanager
    def _applied(self, patch: Patch) -> Iterator[LM]:
        """Context manager that yields the edited model, of which helpers are asked a share."""
        if self.helpers is not None:
            yield SharedOut(self.helpers, patch)
            return
        with patch.applied(self.lm) as edited:
            yield edited

    def _report(self, activity: str) -> None:
        labels = self.unit.labels
        words = (activity, labels["method"], labels["settings"], "·", labels["setting"])
        self.reporter.report(" ".join(filter(None, words)))


def _edits_in(batches: Iterable[Sequence[Case]]) -> int:
    return sum(len(case.edits) for batch in batches for case in batch)
