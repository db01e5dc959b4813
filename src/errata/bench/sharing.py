"""The units of one model measured in worker processes."""

import logging
from collections.abc import Sequence
from typing import Any

from errata.bench.gold_of import GoldOf
from errata.bench.measurer import Measurer, baseline_of
from errata.bench.parallel import UnitTasks
from errata.bench.progress import Reporter
from errata.bench.store import RowFile
from errata.bench.units import LAST_METRIC, Unit
from errata.distributed.asked import SharedOut
from errata.distributed.helpers import Helpers
from errata.distributed.pool import Pool
from errata.distributed.tasks import WorkerDied
from errata.distributed.worker import Held
from errata.evaluation.baseline import Baseline
from errata.evaluation.golds import Golds
from errata.model.hf import HFLM
from errata.types import Row

log = logging.getLogger(__name__)


def asked_label_in(pool: Pool) -> str:
    """``HFLM.asked_label`` of the model that the workers hold, or load."""
    return pool.map(_asked_label, [()])[0]


def share_out(pool: Pool, units: Sequence[Unit], file: RowFile, reporter: Reporter) -> None:
    """Measures units of the model that the workers hold, or load."""
    before: dict[Any, Baseline] = {}
    for unit in units:
        if unit.questions_key not in before:
            reporter.report(f"asking {unit.labels['model']} before the edits, {pool.count} workers")
            before[unit.questions_key] = baseline_of(SharedOut(pool), unit, units)
    pool.every(_set_up, list(units), before, file)
    done = reporter.done

    def progress(more: int, text: str) -> None:
        reporter.done = done + more
        reporter.report(text)

    def helpers(worker: int) -> list[Any]:
        return pool.actors(slice(worker + len(units), None, len(units)))

    pool.run(UnitTasks(units, _measured, file.keep, _gave_up, progress, helpers))


def _asked_label(lm: HFLM) -> str:
    """In a worker: how the model is asked."""
    return lm.asked_label


def _set_up(held: Held, units: list[Unit], before: dict[Any, Baseline], file: RowFile) -> None:
    """In a worker: it is ready to measure the units."""
    measurer = Measurer(held.lm, units, GoldOf(Golds(), lambda name: held.lm), file)
    measurer.baselines = before
    held.kept["measurer"] = measurer


def _measured(held: Held, number: int, helpers: Sequence[Any]) -> list[Row]:
    """In a worker: the rows of a unit; ``helpers`` are idle workers."""
    measurer: Measurer = held.kept["measurer"]

    def on_progress(done: int, total: int, text: str) -> None:
        held.activity = (done, text)

    try:
        asking = Helpers(held.lm, helpers) if helpers else None
        return measurer.rows(measurer.units[number], Reporter(on_progress, 0), asking)
    finally:
        held.activity = (0, "")


def _gave_up(unit: Unit, why: str) -> list[Row]:
    """The rows of a unit at which workers died."""
    error = f"{WorkerDied.__name__}: {why}"
    log.warning("%s %s: %s", unit.labels["method"], unit.name, error)
    figures = {"edits_endured": 0, LAST_METRIC: None} if unit.stops else {LAST_METRIC: None}
    rows = unit.rows(kind="edit", metric="accuracy", error=error, after_edits=0)
    return rows + unit.cost_rows(0, figures, error)
