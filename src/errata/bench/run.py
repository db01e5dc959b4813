"""Runs methods on data in settings and writes rows; interrupted, the same call resumes where it stopped.

    plan = Plan.read("run.toml", every=list(errata.methods()))
    run(plan, "rows.jsonl", load=errata.load, method=errata.method, cases=errata.cases)

Everything measured is one fold, ``patch = method.edit(lm, batch, state, patch)``: a single edit and a batch are one
step of it. Rows of a unit (one fold) are appended together and end with its cost; what an interrupted run left
half-written is dropped and done again. Knows no method by name.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from errata.bench.gold_of import GoldOf
from errata.bench.measurer import Measurer
from errata.bench.plan import Plan
from errata.bench.progress import OnProgress, Reporter
from errata.bench.sharing import asked_label_in, share_out
from errata.bench.store import RowFile
from errata.bench.units import Unit, units_of
from errata.distributed.pool import Pool
from errata.errors import BadInput
from errata.evaluation.golds import Golds
from errata.model.hf import HFLM
from errata.types import Case


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
    file, golds = RowFile(Path(output)), Golds()
    new = not file.path.exists()  # else it may hold everything already, and nothing needs to be loaded
    if workers is not None and new:
        workers.begin()
    units, gold_of = units_of(plan, method, cases, golds), GoldOf(golds, load)
    with file.locked():
        if workers is not None and new:
            workers.load(partial(load, plan.models[0]))
        told = workers is not None and new and len(plan.models) == 1  # when it is loaded
        chats = {model: "" if told else _chat_of(model, asked, check) for model in plan.models}
        units = [unit.asked(chats[unit.labels["model"]]) for unit in units]
        left = _left(units, file, retry, gold_of)
        for model in () if told else left:
            check(model)
        reporter = Reporter(on_progress, sum(len(unit.cases) for of_model in left.values() for unit in of_model))
        done = 0
        for model, of_model in left.items():
            held = new and model == plan.models[0]
            make = partial(load, model)
            chat, measure = _here(make, gold_of) if workers is None else _there(workers, make, held)
            if chat != chats[model]:
                units = [unit.asked(chat) if unit.labels["model"] == model else unit for unit in units]
                of_model = _left([unit.asked(chat) for unit in of_model], file, retry, gold_of).get(model, [])
            measure(of_model, file, reporter)
            done += len(of_model)
            del measure  # and the model, before the next is loaded
        if workers is not None or 0 < sum(map(len, left.values())) < len(units):
            file.sort(units)
    return done


Measure = Callable[[Sequence[Unit], RowFile, Reporter], None]


def _here(load: Callable[[], HFLM], gold_of: GoldOf) -> tuple[str, Measure]:
    """How a model is asked, and what measures its units here."""
    lm = load()
    return lm.asked_label, partial(_measure, lm, gold_of)


def _there(workers: Pool, load: Callable[[], HFLM], held: bool) -> tuple[str, Measure]:
    """The same in workers, which may hold the model already."""
    if not held:
        workers.load(load)
    return asked_label_in(workers), partial(share_out, workers)


def _measure(lm: HFLM, gold_of: GoldOf, units: Sequence[Unit], file: RowFile, reporter: Reporter) -> None:
    """Measures the units of one model here."""
    measurer = Measurer(lm, units, gold_of, file)
    for unit in units:
        file.keep(unit, measurer.rows(unit, reporter))


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


def _left(units: Sequence[Unit], file: RowFile, retry: bool, gold_of: GoldOf) -> dict[str, list[Unit]]:
    """Model -> those of its units that the file does not hold."""
    finished = file.finished(units, retry, gold_of.lacked)
    left: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.key not in finished:
            left.setdefault(unit.labels["model"], []).append(unit)
    return left
