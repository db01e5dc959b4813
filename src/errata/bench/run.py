"""Runs methods on data in settings and writes rows; interrupted, the same call goes on where it stopped.

    plan = Plan.read("run.toml", every=list(errata.methods()))
    run(plan, "rows.jsonl", load=errata.load, method=errata.method, cases=errata.cases)

Everything measured is one fold, ``patch = method.edit(lm, batch, state, patch)``: a single edit and a batch are one
step of it. Rows of a unit (one fold) are appended together and end with its cost; what a broken-off run left
half-written is dropped and done again. Knows no method by name.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from errata.bench.cost import Peak
from errata.bench.plan import Plan
from errata.bench.store import Progress, ProgressFolder, RowFile
from errata.bench.units import END, Editor, Unit, units_of
from errata.errors import ErrataError
from errata.evaluation.ability import Checkup, ability_of
from errata.evaluation.baseline import Baseline, baseline
from errata.evaluation.evaluate import evaluate
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Row

log = logging.getLogger(__name__)


Watch = Callable[[int, int, str], None]  # cases done, cases in all, what is being done


def run(
    plan: Plan,
    output: str | Path,
    *,
    load: Callable[[str], HFLM],
    method: Callable[..., Any],
    cases: Callable[..., list[Case]],
    watch: Watch = lambda done, total, text: None,
    retry: bool = False,
) -> int:
    """Measures what is not yet in ``output``, unit by unit, and says how many units that were.

    An error of Errata's own becomes a row with ``error``, and the run goes on; ``retry`` does such units again.
    Raises :class:`BadInput` for a plan that cannot be carried out, before anything is done.
    """
    output = Path(output)
    units = units_of(plan, method, cases)
    done = RowFile(output).tidied(units, retry)
    left = [unit for unit in units if unit.key not in done]
    bar = _Bar(watch, sum(len(unit.cases) for unit in left))
    for model in plan.models:
        its = [unit for unit in left if unit.labels["model"] == model]
        if its:
            _run_model(load(model), its, RowFile(output), bar)
    return len(left)


def _run_model(lm: HFLM, units: Sequence[Unit], rows: RowFile, bar: "_Bar") -> None:
    before: dict[Any, Baseline] = {}
    checks: dict[Any, Checkup] = {}
    made, prepared = None, _Prepared(lm)
    for unit in units:
        of = (unit.labels["data"], unit.labels["seed"])
        if of not in before:
            bar.say(f"asking {lm.name} before the edits")
            same = [its for its in units if (its.labels["data"], its.labels["seed"]) == of]
            asked = {id(case): case for its in same for case in (*its.ever_asked(), *its.untouched)}
            before[of] = baseline(lm, list(asked.values()), unit.modes)
        if (ability := unit.setting.ability) and ability not in checks:
            bar.say(f"asking {lm.name} what it can do")
            texts = None if ability is True else ability
            checks[ability] = Checkup(lm, ability_of(lm, texts), unit.modes)
        if unit.method is not made:
            made, prepared = unit.method, _Prepared(lm)  # one state is held at a time
        saved = rows.progress(unit)
        measured = _Fold(unit, lm, prepared, before[of], checks.get(ability), saved, bar).rows()
        rows.append(measured)
        saved.forget()


class _Prepared:
    """A method's state for a model, computed once; what went wrong is raised each time."""

    def __init__(self, lm: HFLM) -> None:
        self.lm, self.state, self.error, self.asked = lm, cast(Any, None), cast(ErrataError | None, None), False

    def of(self, method: Editor) -> Any:
        if not self.asked:
            self.asked = True
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
    check: Checkup | None
    saved: ProgressFolder
    bar: "_Bar"
    trying: int = 0  # edits in force, or being made

    def rows(self) -> list[Row]:
        """Those of the whole unit: measured, or up to the error that ended it; costs last."""
        unit, at = self.unit, self.saved.load(self.lm)
        self.bar.done += sum(map(len, unit.batches[: at.steps]))
        went_wrong = None
        try:
            self._go_on(at)
        except ErrataError as error:
            went_wrong = f"{type(error).__name__}: {error}"
            log.warning("%s %s: %s", unit.labels["method"], unit.name, went_wrong)
            its: Any = {**unit.labels, "case": unit.name, "kind": "edit", "metric": "accuracy", "error": went_wrong}
            at.rows += [Row(**its, mode=mode, after_edits=self.trying) for mode in unit.modes]
        n = _edits_in(unit.batches[: at.steps])
        self.bar.done += sum(map(len, unit.batches[at.steps :]))
        if unit.setting.stop:
            at.rows += unit.cost(n, {"edits_endured": at.endured}, went_wrong)
        return at.rows + unit.cost(n, {END: at.peak}, went_wrong)

    def _go_on(self, at: Progress) -> None:
        unit = self.unit
        self._say("preparing")
        state = self.prepared.of(unit.method)
        for batch in unit.batches[at.steps :]:
            self._say("editing")
            self.trying = _edits_in(unit.batches[: at.steps + 1])
            at.patch = self._edited(batch, state, at)
            at.steps += 1
            self.bar.done += len(batch)
            cases = sum(map(len, unit.batches[: at.steps]))
            if cases not in unit.checkpoints:
                continue
            self._say("asking")
            found = self._asked(at, cases)
            at.rows += found
            if not unit.holds(cases, found):
                break
            at.endured = self.trying
            if at.steps < len(unit.batches):
                self.saved.save(at)

    def _edited(self, batch: Sequence[Case], state: Any, at: Progress) -> Patch:
        """One step, with what it cost."""
        unit, then = self.unit, self.unit.spec.step()
        memory, began = Peak(self.lm), time.perf_counter()
        patch = unit.method.edit(self.lm, [edit for case in batch for edit in case.edits], state, at.patch)
        if then and unit.spec.at == "step":
            patch = then(patch, self.lm, at.patch)
        at.seconds += time.perf_counter() - began
        at.peak = max((its for its in (at.peak, memory.mib()) if its is not None), default=None)
        return patch

    def _asked(self, at: Progress, cases: int) -> list[Row]:
        unit, patch, then = self.unit, at.patch, self.unit.spec.step()
        if then and unit.spec.at == "end":
            patch = then(patch, self.lm, EMPTY)
        n = self.trying
        with patch.applied(self.lm) as edited:
            asked = [*unit.asked(cases), *unit.untouched]
            rows = evaluate(self.before, edited, asked, after_edits=n, **unit.labels)
            able = [] if self.check is None else self.check.rows(edited, after_edits=n, **unit.labels)
        if self.check is not None:
            able += self.check.drift(patch, after_edits=n, **unit.labels)
        untouched = {case.id for case in unit.untouched}
        rows = [row for row in rows if row.kind != "edit" or row.case not in untouched]
        figures = {
            "seconds_per_edit": round(at.seconds / n, 4),
            "kilobytes_per_edit": round(patch.nbytes / 1000 / n, 3),
        }
        return rows + able + unit.cost(n, figures)

    def _say(self, doing: str) -> None:
        its = self.unit.labels
        self.bar.say(" ".join(filter(None, (doing, its["method"], its["settings"], "·", its["setting"]))))


def _edits_in(batches: Iterable[Sequence[Case]]) -> int:
    return sum(len(case.edits) for batch in batches for case in batch)


@dataclass
class _Bar:
    watch: Watch
    total: int
    done: int = 0

    def say(self, text: str) -> None:
        self.watch(self.done, self.total, text)
