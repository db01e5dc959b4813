"""Workers: what is shared out among them is what one process gives, and those that die are replaced."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import TEXTS, tiny_lm, tiny_model, tokenizer
from pool import Actor, fake_pool
from test_bench import FTM, SEQUENCE, case, cases, plan, timeless
from test_chat import chat
from typer.testing import CliRunner

import errata
from errata.bench.parallel import UnitTasks
from errata.bench.run import run
from errata.bench.store import RowFile
from errata.bench.units import units_of
from errata.cli import app
from errata.cli.measure import eval_
from errata.distributed.asked import SharedOut
from errata.distributed.asked import asked as ask_one
from errata.distributed.attach import asking, workers
from errata.distributed.helpers import Helpers
from errata.distributed.pool import Pool
from errata.distributed.tasks import ATTEMPTS, Task, WorkerDied, WorkerFailed, of_model
from errata.distributed.worker import Held, Worker
from errata.errors import BadInput, Unsupported, WrongModel
from errata.evaluation.baseline import baseline
from errata.model import loading
from errata.model.hf import HFLM
from errata.model.loading import accelerators
from errata.model.second_moment import second_moments
from errata.report.markdown import markdown
from errata.report.rows import from_jsonl
from errata.types import Case, Row

MIXED = {"methods": [FTM, {"name": "ft-m", "steps": 3}], "settings": ["single", SEQUENCE]}
MADE: Any = {"method": errata.method, "cases": cases}


def load(name: str = "tiny") -> Any:
    return tiny_lm("gpt2")


@cache
def load_copy(dtype: torch.dtype = torch.float32) -> Any:
    """Another model of the same weights, as another process has; made before a patch is in force here."""
    return HFLM(deepcopy(tiny_model("gpt2", dtype)), tokenizer(), name="tiny gpt2")


@contextmanager
def with_workers(lm: Any, pool: Pool, make: Any = load_copy) -> Iterator[Any]:
    """The model, which has the workers of a pool."""
    make()
    pool.load(make)
    lm.workers = pool
    try:
        yield lm
    finally:
        lm.workers = None


# Tasks in workers --------------------------------------------------------------------------------


def test_a_worker_tells_what_was_raised_and_what_was_logged(tmp_path: Path) -> None:
    worker = Worker(str(tmp_path / "nowhere"), torch.get_num_threads())
    log = logging.getLogger("errata.test")

    def works(held: Held, a: int) -> int:
        log.warning("look at %d", a)
        return a + 1

    def refuses(held: Held) -> None:
        raise Unsupported("not this")

    def breaks(held: Held) -> None:
        raise KeyError("nothing there")

    assert not worker.do(works, 1).held  # no model yet
    worker.load(load)
    reply = worker.do(works, 2)
    assert (reply.value, reply.error, reply.crash) == (3, None, "")
    assert reply.warnings == ((logging.WARNING, "look at 2"),)
    assert isinstance(worker.do(refuses).error, Unsupported)
    crash = worker.do(breaks).crash
    assert crash.startswith("KeyError: 'nothing there' (test_distributed.py, line ") and crash.endswith("in breaks)")


def number_of(lm: Any, n: int) -> int:
    return 10 * n


def refuse(lm: Any, n: int) -> int:
    if n == 1:
        raise Unsupported(f"{n} cannot be done")
    return n


def crash(lm: Any, n: int) -> int:
    return 1 // n


def test_shards_come_back_in_order_and_errors_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ray = fake_pool(monkeypatch)
    with pool:
        pool.load(load)
        assert pool.map(number_of, [(n,) for n in range(5)]) == [0, 10, 20, 30, 40]
        with pytest.raises(Unsupported, match="1 cannot be done"):
            pool.map(refuse, [(n,) for n in range(3)])
        with pytest.raises(WorkerFailed, match=r"ZeroDivisionError: .* \(test_distributed.py, line \d+, in crash\)"):
            pool.map(crash, [(0,)])
        assert pool.map(number_of, [(7,)]) == [70]
        assert ray.running
    assert not ray.running and not any(actor.alive for actor in ray.actors)


def test_a_worker_that_dies_is_replaced_and_its_task_done_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deaths: list[tuple[Any, ...]] = []

    def kills(verb: str, args: tuple[Any, ...]) -> bool:
        if verb == "do" and args[-1] == 3 and len(deaths) < ATTEMPTS - 1:
            deaths.append(args)
            return True
        return False

    pool, ray = fake_pool(monkeypatch, kills=kills)
    with pool:
        pool.load(load)
        pool.every(mark, "seen")
        assert pool.map(marks_of, [(n,) for n in range(5)]) == [("seen", n) for n in range(5)]
    assert len(ray.actors) == 2 + len(deaths) and "a worker died and is replaced: The actor died." in caplog.text


def mark(held: Held, word: str) -> None:
    held.kept["mark"] = word
    held.lm.mark = word  # pyright: ignore[reportAttributeAccessIssue]


def marks_of(lm: Any, n: int) -> tuple[str, int]:
    return lm.mark, n


def test_a_task_at_which_every_worker_dies_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = fake_pool(monkeypatch, kills=lambda verb, args: verb == "do" and args[-1] == 3)
    with pool, pytest.raises(WorkerDied, match="3 workers died at it, one after the other: The actor died"):
        pool.load(load)
        pool.map(number_of, [(3,), (4,)])
    pool, _ = fake_pool(monkeypatch, kills=lambda verb, args: verb == "load")
    with pool, pytest.raises(WorkerDied, match="3 workers died while they loaded the model"):
        pool.load(load)
        pool.map(number_of, [(4,)])


def test_workers_have_room_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.distributed.pool.import_ray", lambda: None)
    for wrong in ({"count": 0}, {"count": 1, "threads": 0}):
        with pytest.raises(BadInput, match="are 1 or more"):
            Pool(**wrong)
    pool, ray = fake_pool(monkeypatch, count=3, cpus=2)
    with pool, pytest.raises(BadInput, match="3 workers need 3 CPUs, and Ray has 2 here"):
        pool.load(load)
    assert not ray.running
    with Pool(2, accelerators=1) as pool, pytest.raises(BadInput, match="2 workers need 2 GPUs, and Ray has 0 here"):
        pool.load(load)


def test_a_ray_that_does_not_come_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ray = fake_pool(monkeypatch)

    def init(*args: Any, **options: Any) -> None:
        ray.running = True
        raise Exception("The current node timed out.")

    monkeypatch.setattr(ray, "init", init)
    with pool, pytest.raises(BadInput, match=r"Ray cannot be started here: .*The current node timed out"):
        pool.load(load)
    assert not ray.running


def test_each_worker_has_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [accelerators(device) for device in ("cpu", "cpu:0", "cuda", torch.device("cuda"))] == [0, 0, 1, 1]
    for best, needed in (("cpu", 0), ("cuda", 1)):
        monkeypatch.setattr(loading, "_best_device", lambda best=best: best)
        assert accelerators(None) == accelerators("auto") == needed
    with pytest.raises(BadInput, match="names number 1; say cuda"):
        accelerators("cuda:1")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"pip install 'errata\[distributed\]'"):
        Pool(2)
    (tmp_path / "run.toml").write_text(
        'models = ["world"]\nmethods = ["rome"]\ndata = ["world"]\nsettings = ["single"]'
    )
    go = partial(CliRunner().invoke, app, catch_exceptions=False)
    for command in (
        ["bench", str(tmp_path / "run.toml"), "-o", str(tmp_path / "rows.jsonl")],
        ["eval", "world", "--limit", "2"],
        ["edit", "world", "--prompt", "Ann is", "--subject", "Ann", "--target", "old", "-o", str(tmp_path / "p")],
    ):
        told = go([*command, "--workers", "2"])
        assert told.exit_code == 2 and "errata[distributed]" in told.stderr
        told = go([*command, "--threads", "2"])
        assert told.exit_code == 2 and "say how many with --workers" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


# A model with workers ----------------------------------------------------------------------------


def test_the_verbs_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = fake_pool(monkeypatch, count=3)
    lm, prompts = load(), [one.edits[0].prompt for one in cases(limit=8)]
    targets = [one.edits[0].target_new for one in cases(limit=8)]
    patch = errata.method("ft-m", steps=2).edit(lm, case(0).edits)
    with pool:
        pool.load(load_copy)
        for put_on in (errata.EMPTY, patch):
            shared = SharedOut(pool, put_on)
            with patch.applied(lm) if put_on else errata.EMPTY.applied(lm) as edited:
                assert shared.generate(prompts, 5) == edited.generate(prompts, 5)
                how: Any = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
                assert shared.generate(prompts, 5, **how) == edited.generate(prompts, 5, **how)
                totals = [12] * len(prompts)
                assert shared.prolong(prompts, totals, top_k=5) == edited.prolong(prompts, totals, top_k=5)
                np.testing.assert_allclose(shared.next_logprobs(prompts), edited.next_logprobs(prompts), atol=1e-5)
                for ours, theirs in zip(shared.score(prompts, targets), edited.score(prompts, targets), strict=True):
                    assert (ours.tokens, ours.argmax) == (theirs.tokens, theirs.argmax)
                    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert shared.generate([]) == [] and shared.explain(prompts[:2]) == [[], []]
        with pytest.raises(BadInput, match="2 prompts, 1 beside them"):
            shared.score(prompts[:2], targets[:1])
        with pytest.raises(BadInput, match="found one text"):
            shared.generate("a text")


def test_key_statistics_are_sums_over_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ray = fake_pool(monkeypatch)
    lm = load()
    pieces, paths = [lm.tokens.prompt(text) for text in TEXTS], [lm.sites.mlp_out[1], lm.sites.mlp_out[2]]
    alone, seen = second_moments(lm, pieces, paths)
    with pool, with_workers(lm, pool):
        shared, seen_there = second_moments(lm, pieces, paths)
        assert len(ray.actors) == 2
    assert seen == seen_there and alone.keys() == shared.keys()
    for name, moment in alone.items():
        torch.testing.assert_close(shared[name], moment, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["memit", "pmet"])
def test_targets_are_searched_in_shares_also_upon_a_prior_patch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = fake_pool(monkeypatch)
    lm = tiny_lm("gpt2", torch.float64)
    method = errata.method(name, steps=4, layers=(1, 2))
    state = method.prepare(lm, TEXTS)
    edits = [one.edits[0] for one in cases(limit=7)]
    first = method.edit(lm, edits[:2], state)
    alone = method.edit(lm, edits[2:], state, first)
    asked: list[Any] = []
    real = pool.map
    monkeypatch.setattr(pool, "map", lambda function, shards: asked.append(shards) or real(function, shards))
    with pool, with_workers(lm, pool, partial(load_copy, torch.float64)):
        shared = method.edit(lm, edits[2:], state, first)
    assert [len(shards) for shards in asked] == [2]
    for mine, theirs in zip(alone.parts[0].tensors().values(), shared.parts[0].tensors().values(), strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("setting", ["single", "batch"])
def test_a_method_is_measured_alike_with_workers(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ray = fake_pool(monkeypatch)
    lm, how = tiny_lm("gpt2"), {"modes": ("generated", "forced"), "setting": setting}
    method, asked = errata.method("ft-m", steps=2), cases(limit=5)
    alone = eval_(lm, method, asked, **how)
    with pool, with_workers(lm, pool):
        shared = eval_(lm, method, asked, **how)
        edits = [edit for one in asked for edit in one.edits]
        patched = eval_(lm, method.edit(lm, edits), asked, modes=("forced",))
    assert len(ray.actors) == 2
    assert [about_of(row) for row in shared] == [about_of(row) for row in alone]
    assert [row.after for row in shared] == pytest.approx([row.after for row in alone], abs=1e-5)
    assert [row.before for row in shared] == pytest.approx([row.before for row in alone], abs=1e-5)
    by_patch = eval_(lm, method.edit(lm, edits), asked, modes=("forced",))
    assert [row.after for row in patched] == pytest.approx([row.after for row in by_patch], abs=1e-5)


def about_of(row: Row) -> Row:
    """All of a row but its numbers."""
    return replace(row, before=None, after=None)


def test_only_a_model_that_can_be_loaded_again_has_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_pool(monkeypatch)
    with pytest.raises(BadInput, match=r"tiny gpt2 was given in memory.*save_pretrained"), workers(load(), 2):
        pass
    lm = load()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    saved = errata.load(tmp_path)
    with workers(saved, 2), asking(saved) as unedited:
        before = baseline(unedited, cases(limit=3), modes=("generated", "forced"))
    assert saved.workers is None and before.replies.answers == baseline(saved, cases(limit=3)).replies.answers
    with torch.no_grad():
        saved.model.get_submodule(saved.sites.mlp_out[0]).weight.mul_(1.5)
    saved.forget_fingerprint()
    with pytest.raises(WrongModel, match="it was changed since it was loaded"), workers(saved, 2), asking(saved) as lm:
        lm.generate(["Ann"])
    assert saved.workers is None


# The bench ---------------------------------------------------------------------------------------


def load_plain(model: str) -> HFLM:
    return chat(chat=False)


def load_brief(model: str) -> HFLM:
    return chat(system="Be brief.")


def test_rows_of_workers_say_how_the_model_was_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where only the loaded model shows it; a resumed run that asks otherwise does not mix with them."""
    small: Any = plan(data=[{"name": "people", "limit": 1}], settings=["single"])
    output, counts, rows = tmp_path / "rows.jsonl", list[int](), list[Row]()
    for made in (load_plain, load_brief, load_plain):
        pool, _ = fake_pool(monkeypatch)
        with pool:
            rows = bench(output, pool, small, load=made)
        counts.append(len(rows))
    assert {row.chat for row in rows} == {"plain", load_brief("").asked_label}
    assert counts == [counts[0], 2 * counts[0], 2 * counts[0]]


def bench(output: Path, pool: Pool | None = None, planned: Any = None, **how: Any) -> list[Row]:
    run(planned or plan(**MIXED), output, **{"load": load, **MADE, **how}, workers=pool)
    return from_jsonl(output.read_text())


def test_rows_of_workers_are_those_of_one_process_in_the_plans_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool, _ = fake_pool(monkeypatch)
    kept: list[Any] = []
    busy: list[int] = []
    real = RowFile.keep

    def keep(self: RowFile, unit: Any, rows: list[Row]) -> None:
        kept.append(unit.key)
        busy.append(sum(member.asked is not None for member in pool.members))
        real(self, unit, rows)

    monkeypatch.setattr(RowFile, "keep", keep)
    told: list[tuple[int, int, str]] = []
    with pool:
        shared = bench(tmp_path / "b.jsonl", pool, on_progress=lambda *about: told.append(about))
    assert not (tmp_path / "b.jsonl.parts").exists()
    assert sorted(n for n, _, _ in told) == [n for n, _, _ in told] and told[-1][:2] == (24, 24)
    assert busy[:5] == [2] * 5, "a worker has its next unit before the rows of the last are written"
    as_measured = list(kept)
    kept.clear()
    alone = bench(tmp_path / "a.jsonl")
    assert timeless(shared) == timeless(alone) and sorted(as_measured) == sorted(kept) and as_measured != kept
    assert markdown(timeless(shared)) == markdown(timeless(alone))


@pytest.mark.parametrize("again", [True, False], ids=["with workers", "without"])
def test_interrupted_the_same_command_goes_on(again: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "b.jsonl"
    counted: list[int] = []

    def on_progress(done: int, total: int, text: str) -> None:
        counted.append(done)
        if done > 8:
            raise KeyboardInterrupt

    pool, _ = fake_pool(monkeypatch)
    with pool, pytest.raises(KeyboardInterrupt):
        bench(output, pool, on_progress=on_progress)
    assert from_jsonl(output.read_text())
    pool, _ = fake_pool(monkeypatch)
    with pool:
        resumed = bench(output, pool if again else None)
    assert timeless(resumed) == timeless(bench(tmp_path / "a.jsonl"))


def test_a_unit_that_kills_its_workers_becomes_an_error_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned = plan(**MIXED)
    units = units_of(planned, errata.method, cases)
    deadly = next(i for i, unit in enumerate(units) if unit.name == "case 2")
    pool, ray = fake_pool(monkeypatch, kills=lambda verb, args: verb == "do" and args[1:2] == (deadly,))
    with pool:
        rows = bench(tmp_path / "b.jsonl", pool)
    failed = [row for row in rows if row.error]
    assert len(ray.actors) == 2 + ATTEMPTS
    assert [(row.kind, row.metric, row.case) for row in failed] == [
        ("edit", "accuracy", "case 2"),
        ("cost", "peak_mib", "case 2"),
    ]
    assert all(row.error and row.error.startswith("WorkerDied: 3 workers died") for row in failed)
    alone = bench(tmp_path / "a.jsonl")
    of_unit = {(row.method, row.settings, row.setting, row.case) for row in failed}
    others = [row for row in alone if (row.method, row.settings, row.setting, row.case) not in of_unit]
    assert timeless([row for row in rows if not row.error]) == timeless(others)
    pool, _ = fake_pool(monkeypatch)
    with pool:
        assert timeless(bench(tmp_path / "b.jsonl", pool, retry=True)) == timeless(alone)


def test_a_worker_stays_with_a_method_and_helps_out_where_most_is_left() -> None:
    units = units_of(plan(**MIXED), errata.method, cases)
    tasks = UnitTasks(units, len, lambda unit, rows: None, lambda unit, why: [], lambda n, text: None)
    steps = [unit.labels["settings"] for unit in units]

    def taken(worker: int) -> str:
        task = tasks.take(worker)
        assert isinstance(task, Task)
        return steps[task.number]

    assert [taken(0), taken(1), taken(0), taken(1)] == ["steps=2", "steps=3", "steps=2", "steps=3"]
    assert [taken(2) for _ in range(5)] == ["steps=2"] * 5  # a third finds both begun, and one as long as the other
    assert [taken(0) for _ in range(5)] == ["steps=3"] * 5
    assert tasks.take(0) is None and tasks.take(1) is None


def test_the_largest_come_first_and_the_method_with_the_most_seconds_left() -> None:
    one, five = {"kind": "batch", "size": 1, "cases": 1}, {"kind": "sequential", "batch": 5, "checkpoints": [5, 10]}
    units = units_of(
        plan(methods=[FTM, {"name": "ft-m", "steps": 3}], settings=[one, five, "single"]), errata.method, long
    )
    now = [0.0]
    tasks = UnitTasks(units, len, *(lambda *about: None, lambda *about: [], lambda *about: None), clock=lambda: now[0])

    def taken(worker: int) -> Task:
        task = tasks.take(worker)
        assert isinstance(task, Task)
        return task

    def of(task: Task) -> tuple[str, str]:
        return units[task.number].labels["settings"], units[task.number].setting.kind

    first, second = taken(0), taken(1)
    assert [of(first), of(second)] == [("steps=2", "sequential"), ("steps=3", "sequential")]
    assert [of(taken(0)) for _ in range(2)] == [("steps=2", "batch"), ("steps=2", "single")]
    assert {of(taken(1))[0] for _ in range(5)} == {"steps=3"}
    now[0] = 1.0
    tasks.done(first, [])
    now[0] = 100.0
    tasks.done(second, [])
    assert of(taken(2))[0] == "steps=3", "less is left of it, and it takes longer"
    last = taken(2)
    tasks.give_back(last)
    assert taken(2) is last
    assert [of(taken(0))[0] for _ in range(13)] == ["steps=2"] * 9 + ["steps=3"] * 4
    assert not tasks.is_left() and tasks.take(0) is None


@pytest.mark.parametrize("dies", [False, True], ids=["answering", "dying"])
def test_workers_without_a_unit_help_the_others_to_ask(
    dies: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    helped: list[int] = []

    def kills(verb: str, args: tuple[Any, ...]) -> bool:
        if verb == "do" and args[:2] == (of_model, ask_one) and args[2]:  # with a patch
            helped.append(len(args[4][0]))
            return dies
        return False

    planned = plan(settings=[SEQUENCE], modes=["generated", "forced"])
    pool, ray = fake_pool(monkeypatch, count=3, kills=kills)
    with pool:
        shared = bench(tmp_path / "b.jsonl", pool, planned)
    alone = bench(tmp_path / "a.jsonl", planned=planned)
    assert [about_of(row) for row in timeless(shared)] == [about_of(row) for row in timeless(alone)]
    assert [row.after for row in timeless(shared)] == pytest.approx([row.after for row in timeless(alone)], abs=1e-5)
    assert len(ray.actors) == 3 and not any(row.error for row in shared)
    assert ("a worker could not help" in caplog.text) == dies
    assert len(helped) == 2 if dies else len(helped) >= 2 * 2 * len(SEQUENCE["checkpoints"])


def test_the_share_of_a_helper_that_is_still_being_set_up_is_done_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_pool(monkeypatch)
    helper = Worker(os.getcwd(), torch.get_num_threads())  # as one that took a dead one's place
    helpers = Helpers(load(), [Actor(helper, lambda verb, args: False)])
    assert helpers.map(number_of, [(n,) for n in range(3)]) == [0, 10, 20] and not caplog.text
    helper.load(load)
    monkeypatch.setattr(helpers, "lm", None)
    assert helpers.map(number_of, [(n,) for n in range(3)]) == [0, 10, 20]


def long(name: str = "", limit: int | None = None, **options: Any) -> list[Case]:
    return cases(limit=10)


def test_in_a_new_file_workers_load_at_once_and_say_how_the_model_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    def asked(model: str) -> str:
        told.append(f"asked {model}")
        return "plain"

    def check(model: str) -> None:
        told.append(f"check {model}")

    monkeypatch.setattr(HFLM, "asked_label", "plain")
    pool, ray = fake_pool(monkeypatch)
    made: list[str] = []
    units = units_of

    def noted(*about: Any) -> Any:
        made.append(f"{ray.running or pool.starting is not None}, {len(ray.actors)}")
        return units(*about)

    monkeypatch.setattr("errata.bench.run.units_of", noted)
    with pool:
        rows = bench(tmp_path / "b.jsonl", pool, plan(settings=["single"]), asked=asked, check=check)
    assert not told and made == ["True, 0"] and len(ray.actors) == 2 and {row.chat for row in rows} == {"plain"}
    pool, ray = fake_pool(monkeypatch)
    with pool:
        again = bench(tmp_path / "b.jsonl", pool, plan(settings=["single"]), asked=asked, check=check)
    assert told == ["asked tiny"] and not ray.actors and again == rows
    with fake_pool(monkeypatch)[0] as pool:
        bench(tmp_path / "c.jsonl", pool, plan(settings=["single"], models=["tiny", "other"]), asked=asked, check=check)
    assert told[1:] == ["asked tiny", "asked other", "check tiny", "check other"]


def no_model(name: str) -> Any:
    raise BadInput(f"there is no model {name!r}")


def test_a_model_that_workers_cannot_load_is_said_and_nothing_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fake_pool(monkeypatch)[0] as pool, pytest.raises(BadInput, match="there is no model 'tiny'"):
        bench(tmp_path / "b.jsonl", pool, load=no_model)
    assert not list(tmp_path.iterdir())


# Ray itself --------------------------------------------------------------------------------------


def test_ray_measures_and_replaces_what_was_killed_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # this file's functions run in the workers
    me, killed = psutil.Process(), list[int]()

    def on_progress(done: int, total: int, text: str) -> None:
        if done >= 3 and not killed:
            victim = next(one for one in me.children(recursive=True) if one.name().startswith("ray::Worker"))
            killed.append(victim.pid)
            victim.kill()

    before = {one.pid for one in me.children(recursive=True)}
    with Pool(2) as pool:
        shared = bench(tmp_path / "b.jsonl", pool, on_progress=on_progress)
        helped = bench(tmp_path / "c.jsonl", pool, plan(settings=[SEQUENCE]))
    assert timeless(helped) == timeless(bench(tmp_path / "d.jsonl", planned=plan(settings=[SEQUENCE])))
    assert "could not help" not in caplog.text
    assert killed and timeless(shared) == timeless(bench(tmp_path / "a.jsonl"))
    left = [one for one in me.children(recursive=True) if one.pid not in before]
    assert [one.name() for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
    assert "RAY_worker_niceness" not in os.environ


def started(folder: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own, which Ctrl-C reaches also where it does not reach the tests."""

    def hear() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", "errata", "bench", "run.toml", "-o", str(output), *more]
    how: Any = {"start_new_session": True, "preexec_fn": hear}
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, **how)


def record_of(one: Case) -> dict[str, Any]:
    """A case as it stands in a file."""
    probes = [{"kind": probe.kind, "prompt": probe.prompt, "answers": list(probe.answers)} for probe in one.probes]
    return {"id": one.id, "edits": [edit.to_json() for edit in one.edits], "probes": probes}


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def workers_of(process: "subprocess.Popen[bytes]") -> list[Any]:
    """The worker processes of a command that runs."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [one for one in children if one.name().startswith("ray::Worker")]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_is_killed_and_whenever_the_rows_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    """Five times a worker or the driver (kill -9), or Ctrl-C for all; the same command goes on each time."""
    lm, rng = load(), random.Random(0)
    lm.model.save_pretrained(tmp_path / "tiny")
    lm.tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "people.jsonl").write_text("\n".join(map(json.dumps, map(record_of, cases()))))
    (tmp_path / "run.toml").write_text(
        'models = ["tiny"]\n'
        'methods = [{ name = "ft-m", steps = 2 }, { name = "ft-m", steps = 40 }]\n'
        'data = ["people.jsonl"]\nseeds = [0, 1, 2, 3]\nmodes = ["generated", "forced"]\n'
        'settings = ["single", { kind = "sequential", batch = 2, checkpoints = [2, 4, 6, 8, 10, 12] }]\n'
    )
    alone = started(tmp_path, tmp_path / "a.jsonl")
    assert alone.wait() == 0
    seen, output = set[int](), tmp_path / "b.jsonl"
    some = (tmp_path / "a.jsonl").stat().st_size // 16

    def grown(process: "subprocess.Popen[bytes]") -> None:
        """Waits until a few more units are measured, or one at least."""
        more = size_of(output) + rng.randrange(some)
        while process.poll() is None and size_of(output) <= more:
            time.sleep(0.05)
        assert process.poll() is None, "it was through before it could be disturbed"

    for what in ("worker", "driver", "worker", "Ctrl-C", "driver"):
        process = started(tmp_path, output, "--workers", "2")
        grown(process)
        time.sleep(rng.random() / 10)
        seen |= {one.pid for one in workers_of(process)}
        if what == "worker":
            rng.choice(workers_of(process)).kill()
            grown(process)
        if what == "driver":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == (-signal.SIGKILL if what == "driver" else 130)
    assert started(tmp_path, output, "--workers", "2").wait() == 0
    rows = [from_jsonl((tmp_path / name).read_text()) for name in ("a.jsonl", "b.jsonl")]
    assert timeless(rows[0]) == timeless(rows[1]) and seen
    time.sleep(5)
    assert not [pid for pid in seen if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "b.jsonl.parts").exists()
