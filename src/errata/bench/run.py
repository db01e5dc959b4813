"""Runs methods on data in settings and writes rows; interrupted, the same call resumes where it stopped.

    plan = Plan.read("run.toml", every=list(errata.methods()))
    run(plan, "rows.jsonl", load=errata.load, method=errata.method, cases=errata.cases)

Everything measured is one fold, ``patch = method.edit(lm, batch, state, patch)``: a single edit and a batch are one
step of it. Rows of a unit (one fold) are appended together and end with its cost; what an interrupted run left
half-written is dropped and done again. Knows no method by name.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from errata.bench.parallel import UnitTasks
from errata.bench.plan import Plan
from errata.bench.store import RowFile, UnitCheckpoint, UnitProgress
from errata.bench.units import LAST_METRIC, SPEED, Editor, Unit, units_of
from errata.distributed.asked import SharedOut
from errata.distributed.pool import Pool
from errata.distributed.tasks import WorkerDied
from errata.distributed.worker import Held
from errata.errors import BadInput, ErrataError
from errata.evaluation.ability import Checkup, ability_of
from errata.evaluation.baseline import Baseline, baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.gold import Gold
from errata.evaluation.golds import Golds, Named
from errata.evaluation.nearness import Nearness
from errata.locate.found import warn_of_origin
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.peak import PeakMemory
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Row

log = logging.getLogger(__name__)


OnProgress = Callable[[int, int, str], None]  # cases done, cases in all, what is being done


def run(
    plan: Plan,
    output: str | Path,
    *,
    load: Callable[[str], HFLM],
    method: Callable[..., Any],
    cases: Callable[..., list[Case]],
    check: Callable[[str], Any] = lambda model: None,
    asked: Callable[[str], str] = lambda model: "",
    on_progress: OnProgress = lambda done, total, text: None,
    retry: bool = False,
    workers: Pool | None = None,
) -> int:
    """Measures what is not yet in ``output``, unit by unit; returns the number of these units.

    An error of Errata's own becomes a row with ``error``, and the run continues; ``retry`` does such units again.
    With ``workers`` units are measured there, and written here as they end. In the end they are in the plan's order.
    ``check`` raises :class:`BadInput` for a model that ``load`` would not find. ``asked`` says how one will be asked,
    as ``HFLM.asked_label`` does; where it is not given, that shows when a model is loaded. What was measured under
    another chat template stays in ``output`` and counts for nothing here. Raises :class:`BadInput` for a plan that
    cannot be carried out, and where another run writes ``output``, before anything is done.
    """
    golds = Golds()
    units, gold_of = units_of(plan, method, cases, golds), _GoldOf(golds, load)
    file = RowFile(Path(output))
    with file.locked():
        chats = {model: _chat_of(model, asked, check) for model in plan.models}
        units = [unit.asked(chats[unit.labels["model"]]) for unit in units]
        left = _left(units, file, retry, gold_of)
        for model in left:
            check(model)
        reporter = _Reporter(on_progress, sum(len(unit.cases) for of_model in left.values() for unit in of_model))
        done = 0
        for model, of_model in left.items():
            if workers is None:
                lm = load(model)
                label = lm.asked_label
            else:
                lm = None
                label = _label_in(workers, partial(load, model))
            if label != chats[model]:
                units = [unit.asked(label) if unit.labels["model"] == model else unit for unit in units]
                of_model = _left([unit.asked(label) for unit in of_model], file, retry, gold_of).get(model, [])
            done += len(of_model)
            if workers is not None:
                _share_out(workers, of_model, file, reporter)
                continue
            assert lm is not None
            measurer = _Measurer(lm, of_model, gold_of, file)
            for unit in of_model:
                file.keep(unit, measurer.rows(unit, reporter))
            del lm, measurer  # before the next is loaded
        if workers is not None or 0 < sum(map(len, left.values())) < len(units):
            file.sort(units)
    return done


def _chat_of(model: str, asked: Callable[[str], str], check: Callable[[str], Any]) -> str:
    """How a model is asked. One that is gone counts as one without a chat template: it may be done all the same."""
    try:
        return asked(model)
    except BadInput:
        try:
            check(model)
        except BadInput:
            return ""
        raise


def _left(units: Sequence[Unit], file: RowFile, retry: bool, gold_of: "_GoldOf") -> dict[str, list[Unit]]:
    """Model -> those of its units that the file does not hold."""
    finished = file.finished(units, retry, gold_of.lacked)
    left: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.key not in finished:
            left.setdefault(unit.labels["model"], []).append(unit)
    return left


class _Measurer:
    """Measures units of one model. What the unedited model answers is asked once for units that ask the same."""

    def __init__(self, lm: HFLM, units: Sequence[Unit], gold_of: "_GoldOf", file: RowFile) -> None:
        self.lm, self.units, self.gold_of, self.file = lm, units, gold_of, file
        self.baselines: dict[Any, Baseline] = {}
        self.checkups: dict[Any, Checkup] = {}
        self.nearnesses: dict[Any, Nearness] = {}
        self.prepared = _Prepared(lm)

    def rows(self, unit: Unit, reporter: "_Reporter") -> list[Row]:
        """All rows of a unit."""
        lm, gold, key = self.lm, self.gold_of.of(unit, self.lm), unit.questions_key
        if key not in self.baselines:
            reporter.report(f"asking {lm.name} before the edits")
            self.baselines[key] = _baseline(lm, unit, self.units)
        if unit.ability and (unit.ability, unit.modes) not in self.checkups:
            reporter.report(f"asking {lm.name} what it can do")
            texts = None if unit.ability is True else unit.ability
            self.checkups[unit.ability, unit.modes] = Checkup(lm, ability_of(lm, texts), unit.modes)
        if gold is not None and (gold, unit.modes) not in self.nearnesses:
            reporter.report(f"asking {lm.name} what the gold asks")
            self.nearnesses[gold, unit.modes] = Nearness.of(gold, lm, unit.modes)
        if unit.method is not self.prepared.method:
            self.prepared = _Prepared(lm, unit.method)  # one state is held at a time
            if unit.spec.settings_file is not None:
                warn_of_origin(Path(unit.spec.settings_file), unit.spec.name, lm.name, lm.fingerprint)
        checkup = self.checkups.get((unit.ability, unit.modes))
        asked = (self.baselines[key], checkup, None if gold is None else self.nearnesses[gold, unit.modes])
        return _Fold(unit, lm, self.prepared, *asked, self.file.checkpoint(unit), reporter).rows()


def _baseline(lm: LM, unit: Unit, units: Sequence[Unit]) -> Baseline:
    """What the unedited model replies to all that this unit asks, and others that share its questions."""
    same = [other for other in units if other.questions_key == unit.questions_key]
    asked = {id(case): case for other in same for case in (*other.ever_asked(), *other.untouched)}
    return baseline(lm, list(asked.values()), unit.modes, protocol=unit.protocol)


# With workers ------------------------------------------------------------------------------------


def _label_in(pool: Pool, load: Callable[[], HFLM]) -> str:
    """How a model is asked that the workers of a pool load and hold from here on."""
    pool.load(load)
    (label,) = pool.map(_label_of, [()])
    return label


def _label_of(lm: HFLM) -> str:
    return lm.asked_label


def _share_out(pool: Pool, units: Sequence[Unit], file: RowFile, reporter: "_Reporter") -> None:
    """Measures the units of the model that the workers of a pool hold."""
    before: dict[Any, Baseline] = {}
    for unit in units:
        if unit.questions_key not in before:
            reporter.report(f"asking {unit.labels['model']} before the edits, {pool.count} workers")
            before[unit.questions_key] = _baseline(SharedOut(pool), unit, units)
    pool.every(_set_up, list(units), before, file)
    done = reporter.done

    def progress(more: int, text: str) -> None:
        reporter.done = done + more
        reporter.report(text)

    pool.run(UnitTasks(units, _measured, file.keep, _gave_up, progress))


def _set_up(held: Held, units: list[Unit], before: dict[Any, Baseline], file: RowFile) -> None:
    """In a worker: it is ready to measure the units."""
    measurer = _Measurer(held.lm, units, _GoldOf(Golds(), lambda name: held.lm), file)
    measurer.baselines = before
    held.kept["measurer"] = measurer


def _measured(held: Held, number: int) -> list[Row]:
    """In a worker: the rows of a unit."""
    measurer: _Measurer = held.kept["measurer"]

    def on_progress(done: int, total: int, text: str) -> None:
        held.activity = (done, text)

    try:
        return measurer.rows(measurer.units[number], _Reporter(on_progress, 0))
    finally:
        held.activity = (0, "")


def _gave_up(unit: Unit, why: str) -> list[Row]:
    """The rows of a unit at which workers died."""
    error = f"{WorkerDied.__name__}: {why}"
    log.warning("%s %s: %s", unit.labels["method"], unit.name, error)
    figures = {"edits_endured": 0, LAST_METRIC: None} if unit.stops else {LAST_METRIC: None}
    rows = unit.rows(kind="edit", metric="accuracy", error=error, after_edits=0)
    return rows + unit.cost_rows(0, figures, error)


# Golds and states --------------------------------------------------------------------------------


class _GoldOf:
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


class _Prepared:
    """A method's state for a model, computed once; an error of that is raised each time."""

    def __init__(self, lm: HFLM, method: Editor | None = None) -> None:
        self.lm, self.method = lm, method
        self.state: Any = None
        self.error: ErrataError | None = None
        self.tried = False

    def state_of(self, method: Editor) -> Any:
        """What ``method.prepare`` returned."""
        if not self.tried:
            self.tried = True
            try:
                self.state = method.prepare(self.lm)
            except ErrataError as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return self.state


@dataclass
class _Fold:
    """Edits batch by batch, and asks at the checkpoints."""

    unit: Unit
    lm: HFLM
    prepared: _Prepared
    before: Baseline
    checkup: Checkup | None
    nearness: Nearness | None
    checkpoint: UnitCheckpoint
    reporter: "_Reporter"
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
        with patch.applied(self.lm) as edited:
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

    def _report(self, activity: str) -> None:
        labels = self.unit.labels
        words = (activity, labels["method"], labels["settings"], "·", labels["setting"])
        self.reporter.report(" ".join(filter(None, words)))


def _edits_in(batches: Iterable[Sequence[Case]]) -> int:
    return sum(len(case.edits) for batch in batches for case in batch)


@dataclass
class _Reporter:
    """Tells how many of the run's cases are done."""

    on_progress: OnProgress
    total: int
    done: int = 0

    def report(self, text: str) -> None:
        self.on_progress(self.done, self.total, text)
