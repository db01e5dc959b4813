"""Many runs from one file: what is measured, that it resumes, what it says of errors, and the report of it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TEXTS, tiny_lm, tiny_model, tokenizer
from test_evaluate import Table
from typer.testing import CliRunner

import errata
from errata.bench import measurer
from errata.bench.plan import Plan
from errata.bench.run import run
from errata.bench.settings import Setting
from errata.bench.specs import MethodSpec
from errata.bench.units import Unit, units_of
from errata.cli import app
from errata.cli import bench as command
from errata.errors import BadInput, UnknownName, Unsupported
from errata.evaluation.baseline import baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.metrics import Mean
from errata.evaluation.protocols import PROTOCOLS
from errata.methods import registry
from errata.model.peak import PeakMemory
from errata.patch.patch import EMPTY
from errata.report.changes import retention
from errata.report.html import page
from errata.report.markdown import markdown
from errata.report.pictures import curves, svg
from errata.report.rows import from_jsonl, to_jsonl
from errata.report.sections import report_sections, sections
from errata.types import Case, Edit, Probe, Row
from errata.world.cases import cases as world_cases
from errata.world.facts import world as make_world

TIMES = ("seconds_per_edit", "peak_mib")
FTM = {"name": "ft-m", "steps": 2}
SEQUENCE = {"kind": "sequential", "batch": 2, "checkpoints": [2, 4, 6]}


def case(number: int) -> Case:
    who = ("Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn")[number % 4]
    what, new = (("was born in", "Oslo"), ("lives in", "New York"), ("is the mayor of", "Lima"))[number // 4]
    probes = (Probe("paraphrase", f"Yes, {who} {what}", (new,)), Probe("neighborhood", f"A baker {what}", ("Rome",)))
    return Case(f"case {number}", (Edit(f"{who} {what}", who, new, "Rome"),), probes)


def cases(name: str = "", limit: int | None = None, seed: int = 0, format: str | None = None) -> list[Case]:
    """Twelve at most; another seed begins elsewhere."""
    order = [(seed + number) % 12 for number in range(12)]
    return [case(number) for number in order[:limit]]


def plan(**changes: Any) -> Plan:
    usual = {"models": ["tiny"], "methods": [FTM], "data": [{"name": "people", "limit": 6}], "settings": [SEQUENCE]}
    return Plan.of({**usual, **changes})


def go(planned: Plan, output: Path, **how: Any) -> list[Row]:
    """The rows in the file after a run on the tiny model."""
    run(planned, output, **{"load": lambda name: tiny_lm("gpt2"), "method": errata.method, "cases": cases, **how})
    return from_jsonl(output.read_text())


def timeless(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, after=None) if row.metric in TIMES else row for row in rows]


def counting(failing: Callable[[int, Sequence[Edit]], None] = lambda calls, edits: None) -> Any:
    """``errata.method`` whose methods note each call of ``edit``, and then call ``failing``."""
    calls: list[tuple[int, Any]] = []
    real = errata.method

    class Watched:
        def __init__(self, name: str, settings: Any) -> None:
            self.inner, self.name = real(name, **settings), name

        def prepare(self, lm: Any, data: Any = None) -> Any:
            return self.inner.prepare(lm, data)

        def edit(self, lm: Any, edits: Any, state: Any = None, prior: Any = EMPTY) -> Any:
            calls.append((len(edits), prior))
            failing(len(calls), edits)
            return self.inner.edit(lm, edits, state, prior)

    def method(name: str, **settings: Any) -> Any:
        return Watched(name, settings)

    method.calls = calls  # pyright: ignore[reportFunctionMemberAccess]
    return method


# What is measured --------------------------------------------------------------------------------


def test_a_sequence_is_the_fold_and_asks_all_earlier_cases(tmp_path: Path) -> None:
    rows = go(plan(), tmp_path / "rows.jsonl")
    lm, made, patch, expected = tiny_lm("gpt2"), errata.method("ft-m", steps=2), EMPTY, list[Row]()
    before, six = baseline(lm, cases(limit=6)), cases(limit=6)
    for n in (2, 4, 6):
        patch = made.edit(lm, [c.edits[0] for c in six[n - 2 : n]], prior=patch)
        with patch.applied(lm) as edited:
            expected += evaluate(before, edited, six[:n], after_edits=n)
    labels = {
        "model": "tiny", "method": "ft-m", "settings": "steps=2", "data": "people limit=6",
        "setting": "sequential by 2, asked at 2 4 6",
    }  # fmt: skip
    assert [row for row in rows if row.kind != "cost"] == [replace(row, **labels) for row in expected]
    costs = [(row.metric, row.after_edits) for row in rows if row.kind == "cost"]
    each = [(metric, n) for n in (2, 4, 6) for metric in ("seconds_per_edit", "kilobytes_per_edit")]
    assert costs == [*each, ("peak_mib", 6)] and rows[-1].metric == "peak_mib"
    kilobytes = [row.after for row in rows if row.metric == "kilobytes_per_edit"]
    size = 32 * 64 * 4 + len('{"low_rank": [], "dense": ["transformer.h.3.mlp.c_proj.weight"]}')
    assert kilobytes == pytest.approx([size / 1000 / n for n in (2, 4, 6)], abs=1e-3)
    assert {name: getattr(row, name) for row in rows for name in labels} == labels


def test_before_the_edits_only_what_will_be_asked_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    real = measurer.baseline

    def watched(lm: Any, asked: Sequence[Case], *more: Any, **options: Any) -> Any:
        seen.extend(case.id for case in asked)
        return real(lm, asked, *more, **options)

    monkeypatch.setattr(measurer, "baseline", watched)
    setting = {"kind": "sequential", "batch": 1, "checkpoints": [6], "recheck": 2}
    rows = go(plan(settings=[setting]), tmp_path / "rows.jsonl")
    assert seen == list(dict.fromkeys(row.case for row in rows if row.kind == "edit")) and len(seen) == 2


def test_single_and_batch_begin_anew(tmp_path: Path) -> None:
    method = counting()
    planned = plan(settings=["single", {"kind": "batch", "size": 2, "cases": 5}], modes=["generated", "forced"])
    rows = go(planned, tmp_path / "rows.jsonl", method=method)
    assert method.calls == [(1, EMPTY)] * 6 + [(2, EMPTY)] * 2  # the fifth case fills no batch
    edits = {(row.setting, row.mode, row.case, row.after_edits) for row in rows if row.kind == "edit"}
    batch = {("batch of 2", mode, f"case {i}", 2) for i in range(4) for mode in ("generated", "forced")}
    assert edits == batch | {("single", m, f"case {i}", 1) for i in range(6) for m in ("generated", "forced")}
    costs = [row for row in rows if row.metric == "seconds_per_edit" and row.mode == "forced"]
    assert [row.case for row in costs] == [*(f"case {i}" for i in range(6)), "batch 1", "batch 2"]


def test_seeds_draw_cases_and_make_methods(tmp_path: Path) -> None:
    seen: list[Any] = []

    def method(name: str, **settings: Any) -> Any:
        seen.append(settings["seed"])
        return errata.method(name, **settings)

    data = [{"name": "people", "limit": 2}, {"name": "people", "limit": 2, "seed": 7}]
    rows = go(plan(data=data, seeds=[0, 3], settings=["single"]), tmp_path / "rows.jsonl", method=method)
    assert seen == [0, 3]
    drawn = {(row.data, row.seed, row.case) for row in rows if row.kind == "edit"}
    free = {("people limit=2", seed, f"case {seed + i}") for seed in (0, 3) for i in range(2)}
    assert drawn == free | {("people limit=2 seed=7", seed, f"case {7 + i}") for seed in (0, 3) for i in range(2)}


def test_transforms_at_each_step_or_at_the_end(tmp_path: Path) -> None:
    lm, six, made = tiny_lm("gpt2"), cases(limit=6), errata.method("ft-m", steps=2)
    before = baseline(lm, six)
    for at in ("step", "end"):
        then, method = {"name": "rect", "keep": 0.1, "at": at}, counting()
        rows = go(plan(methods=[{**FTM, "transform": then}]), tmp_path / f"{at}.jsonl", method=method)
        patch = EMPTY
        for n in (2, 4, 6):
            new = made.edit(lm, [c.edits[0] for c in six[n - 2 : n]], prior=patch)
            patch = errata.patch.transforms.rect(new, lm, 0.1, patch) if at == "step" else new
            assert n == 6 or method.calls[n // 2][1] == patch
        measured = patch if at == "step" else errata.patch.transforms.rect(patch, lm, 0.1)
        with measured.applied(lm) as edited:
            expected = evaluate(before, edited, six, after_edits=6)
        last = [(row.case, row.after) for row in rows if row.after_edits == 6 and row.kind != "cost"]
        assert last == [(row.case, row.after) for row in expected]
        assert {row.settings for row in rows} == {"steps=2 + rect keep=0.1" + (" at the end" if at == "end" else "")}


# Hand-worked, on models that are tables of answers -----------------------------------------------


@dataclass
class Known(Table):
    """A table of answers in the place of a model."""

    name: str = "table"
    device: Any = field(default_factory=lambda: SimpleNamespace(type="cpu"))
    asked_label: str = ""


@dataclass(frozen=True)
class Changed:
    """A patch of a table."""

    says: dict[str, str] = field(default_factory=dict[str, str])
    nbytes: int = 6000

    @contextmanager
    def applied(self, lm: Known) -> Iterator[Table]:
        yield Table({**lm.says, **self.says})

    def save(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        return path


class Forgetful:
    """Answers as its last ``span`` edits want, and elsewhere as the table does."""

    name = "forgetful"

    def __init__(self, span: int = 100, **settings: Any) -> None:
        self.span, self.edits = span, list[Edit]()

    def prepare(self, lm: Any, data: Any = None) -> Any:
        return None

    def edit(self, lm: Any, edits: Any, state: Any = None, prior: Any = EMPTY) -> Any:
        self.edits = [*self.edits, *edits] if prior else list(edits)
        return Changed({e.prompt: e.target_new for e in self.edits[-self.span :]})


def table() -> Known:
    prompts = [p for c in cases() for p in (c.edits[0].prompt, *(probe.prompt for probe in c.probes))]
    return Known(dict.fromkeys(prompts, "Rome"))


def forgetful(planned: Plan, output: Path, **how: Any) -> list[Row]:
    made = {"load": lambda name: table(), "method": lambda name, **settings: Forgetful(**settings)}
    return go(planned, output, **{**made, **how})


def test_a_sequence_stops_where_its_first_cases_are_forgotten(tmp_path: Path) -> None:
    """With a span of 5 two of the first four are forgotten after 7 edits, and one after 6."""
    method = {"name": "forgetful", "span": 5}
    data = [{"name": "people", "limit": 12}]
    setting = {"kind": "sequential", "batch": 1, "checkpoints": list(range(1, 13))}
    for below, end in ((0.8, 6), (0.6, 7), (0.5, 8), (0.0, 12)):
        stop = {"kind": "edit", "first": 4, "below": below}
        planned = plan(methods=[method], data=data, settings=[{**setting, "stop": stop}])
        rows = forgetful(planned, tmp_path / f"{below}.jsonl")
        assert max(row.after_edits for row in rows if row.kind == "edit") == end
        endured = [row.after for row in rows if row.metric == "edits_endured"]
        assert endured == [end if below == 0.0 else end - 1]
        assert not (tmp_path / f"{below}.jsonl.parts").exists()


def test_untouched_facts_are_further_cases_and_keep_their_answers(tmp_path: Path) -> None:
    setting = {"kind": "sequential", "batch": 2, "untouched": 3}
    rows = forgetful(plan(settings=[setting], methods=["forgetful"], data=[{"name": "x", "limit": 4}]), tmp_path / "r")
    untouched = [(r.case, r.probe, r.metric, r.before, r.after) for r in rows if r.kind == "unrelated"]
    expected = [case(number) for number in (4, 5, 6)]
    assert untouched == [
        (f"untouched {c.id}", c.edits[0].prompt, metric, 1.0, 1.0)
        for c in expected
        for metric in ("accuracy", "agreement")
    ]
    assert {r.case for r in rows if r.kind == "edit"} == {f"case {i}" for i in range(4)}
    assert [r.after for r in rows if r.metric == "kilobytes_per_edit"] == [1.5]  # 6000 bytes, four edits


def test_a_sample_of_the_earlier_cases_grows_and_keeps_whom_it_had() -> None:
    setting = {"kind": "sequential", "batch": 1, "checkpoints": [4, 8, 12], "recheck": 6}
    made = {"method": lambda name, **settings: Forgetful(), "cases": cases}
    units = [
        units_of(plan(settings=[setting], data=[{"name": "x", "limit": 12, "seed": 0}], seeds=[seed]), **made)[0]
        for seed in range(6)
    ]
    unit = units[0]
    names = [[c.id for c in unit.asked_after(n)] for n in (4, 6, 8, 12)]
    assert names[:2] == [[f"case {i}" for i in range(n)] for n in (4, 6)]
    assert [len(sample) for sample in names] == [4, 6, 6, 6]
    for n, sample in zip((8, 12), names[2:]):
        assert sample[:3] == ["case 0", "case 1", "case 2"]
        assert sample == [c.id for c in unit.cases[:n] if c.id in sample]
    assert set(names[3]) & {f"case {i}" for i in range(8)} <= set(names[2])
    assert len({tuple(c.id for c in other.asked_after(12)) for other in units}) > 1


def test_the_unedited_model_is_asked_once_for_all_methods(tmp_path: Path) -> None:
    models: list[Known] = []

    def load(name: str) -> Known:
        models.append(table())
        return models[-1]

    planned = plan(methods=["a", {"name": "b"}], settings=["single", SEQUENCE], seeds=[0, 1])
    forgetful(planned, tmp_path / "rows.jsonl", load=load, method=lambda name, **settings: Forgetful())
    assert [len(lm.calls) for lm in models] == [2]  # one for each seed's cases: patches answer from tables of their own


def test_the_world_of_a_model_that_was_trained_on_one_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"persons": 60, "world_seed": 3}')
    data = [{"name": "world", "limit": 2}]
    planned = plan(models=["world", str(tmp_path)], methods=["a"], data=data, settings=[{"kind": "batch", "size": 2}])
    units = units_of(planned, lambda name, **settings: Forgetful(), errata.cases)
    drawn = {unit.labels["model"]: unit.cases for unit in units}
    assert drawn == {"world": errata.cases("world", 2), str(tmp_path): world_cases(make_world(60, 3), 2)}


# By whose rules ----------------------------------------------------------------------------------


def test_each_data_set_is_asked_by_its_protocol(tmp_path: Path) -> None:
    data = [{"name": "x", "limit": 4}, {"name": "x", "limit": 4, "protocol": "zsre"}, {"name": "x", "protocol": "rome"}]
    planned = plan(methods=["forgetful"], data=data, settings=[{"kind": "batch", "size": 4}], protocol="wild")
    units = units_of(planned, lambda name, **settings: Forgetful(), cases)
    assert [(unit.protocol.name, unit.modes) for unit in units] == [
        ("wild", ("generated",)),
        ("zsre", ("forced",)),
        *[("rome", ("forced", "generated"))] * 3,
    ]
    assert len({unit.key for unit in units}) == len(units)
    loads: list[Known] = []

    def load(name: str) -> Known:
        loads.append(table())
        return loads[-1]

    usual = {"methods": ["forgetful"], "data": data[:2], "settings": [{"kind": "batch", "size": 4}]}
    rows = forgetful(plan(**usual, protocol="wild"), tmp_path / "r", load=load)
    assert [call[0] for lm in loads for call in lm.calls] == ["generate", "score"]  # a baseline for each protocol
    edits = [(row.protocol, row.mode, row.metric, row.before, row.after) for row in rows if row.kind == "edit"]
    wild, zsre = ("wild", "generated", "accuracy", 0.0, 1.0), ("zsre", "forced", "token_accuracy", 0.0, 1.0)
    assert edits == [wild] * 4 + [zsre] * 4
    assert {(row.protocol, row.mode) for row in rows if row.kind == "cost"} == {
        ("wild", "generated"),
        ("zsre", "forced"),
    }
    resumed = forgetful(plan(**usual, protocol="wild"), tmp_path / "r", load=load)
    assert resumed == rows and len(loads) == 1
    ours = forgetful(plan(**usual), tmp_path / "r")
    more = [row for row in ours if row not in rows]
    assert len(ours) == len(rows) + len(more) and {row.protocol for row in more} == {"errata"}


def test_a_sequence_stops_by_the_metric_of_its_protocol(tmp_path: Path) -> None:
    """With a span of 5 two of the first four are forgotten after 7 edits, and one after 6."""
    stop = {"metric": "token_accuracy", "first": 4, "below": 0.8}
    setting = {"kind": "sequential", "batch": 1, "checkpoints": list(range(1, 13)), "stop": stop}
    data, method = [{"name": "people", "limit": 12}], {"name": "forgetful", "span": 5}
    rows = forgetful(plan(methods=[method], data=data, settings=[setting], protocol="zsre"), tmp_path / "r")
    assert [row.after for row in rows if row.metric == "edits_endured"] == [5]
    assert {row.after_edits for row in rows if row.kind == "edit"} == set(range(1, 7))


def test_a_wrong_setting_of_a_method_is_told_with_its_place() -> None:
    with pytest.raises(UnknownName, match=r"^methods\[1\]: unknown setting of ft-m 'foo'"):
        units_of(plan(methods=["ft-m", {"name": "ft-m", "foo": 1}]), errata.method, lambda *_, **__: [case(0)] * 9)


def test_a_sequence_stops_where_the_old_answer_comes_back() -> None:
    setting = Setting.of({**SEQUENCE, "stop": {"metric": "old_first", "first": 2, "below": 0.8}})
    assert setting.label.endswith("until edit (old_first) of the first 2 is above 0.2")
    method: Any = None
    belief = PROTOCOLS["belief"]
    unit = Unit({}, "x", [[case(0), case(1)]], [], setting, MethodSpec.of("x"), method, belief, ("forced",))
    for values, goes_on in (((0.0, 0.0), True), ((0.0, 0.3), True), ((0.0, 1.0), False)):
        measured: Any = {"kind": "edit", "metric": "old_first", "mode": "forced"}
        assert unit.goes_on(2, [Row(**measured, case=case(i).id, after=v) for i, v in enumerate(values)]) is goes_on


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "wild", "modes": ["forced"]}, "asks nothing forced"),
        ({"protocol": "rome", "settings": [{"kind": "single", "untouched": 2}]}, "leave untouched out"),
        ({"protocol": "zsre", "settings": [{**SEQUENCE, "stop": {}}]}, "give it metric as token_accuracy"),
        ({"protocol": "convsent", "settings": [{**SEQUENCE, "stop": {}}]}, "choose another kind of probe"),
        ({"settings": ["single", {**SEQUENCE, "stop": {"metric": "x"}}]}, r"settings\[1\]: stop looks at x of edit"),
        ({"data": [{"name": "x", "protocol": "convsent"}]}, r"^data\[0\]: the protocol convsent finds nothing to ask"),
        ({"settings": ["single", {"kind": "batch", "size": 999}]}, r"data\[0\], settings\[1\]: .* needs 999 cases"),
    ],
)
def test_what_a_protocol_does_not_ask_is_refused_before_the_work(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        forgetful(plan(**changes), tmp_path / "r")
    assert not list(tmp_path.iterdir())


# Going on ----------------------------------------------------------------------------------------

ALL = ["single", {"kind": "batch", "size": 3}, SEQUENCE]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Row]]:
    """The file of an uninterrupted run, and its rows."""
    file = tmp_path_factory.mktemp("whole") / "rows.jsonl"
    rows = go(plan(settings=ALL), file)
    return file.read_text(), rows


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.03, 0.2, 0.41, 0.5, 0.66, 0.8, 0.95, 0.9999, 1.0])
def test_a_file_that_was_cut_anywhere_is_completed(share: float, whole: tuple[str, list[Row]], tmp_path: Path) -> None:
    text, rows = whole
    file = tmp_path / "rows.jsonl"
    file.write_text(text[: int(share * len(text))])
    assert timeless(go(plan(settings=ALL), file)) == timeless(rows)


@pytest.mark.parametrize("killed_at", range(1, 12))
def test_a_run_that_was_killed_goes_on(killed_at: int, whole: tuple[str, list[Row]], tmp_path: Path) -> None:
    """Six single edits, two batches, three steps of a sequence: killed in each, nothing finished is done again."""

    def kill(calls: int, edits: Any) -> None:
        if calls == killed_at:
            raise KeyboardInterrupt

    file = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(plan(settings=ALL), file, method=counting(kill))
    method = counting()
    assert timeless(go(plan(settings=ALL), file, method=method)) == timeless(whole[1])
    assert len(method.calls) == 11 - (killed_at - 1)  # a sequence resumes at its last checkpoint
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_was_kept_of_a_sequence_survives_being_spoilt(whole: tuple[str, list[Row]], tmp_path: Path) -> None:
    def kill(calls: int, edits: Any) -> None:
        if calls == 3:
            raise KeyboardInterrupt

    for name, spoil in (("patch", "*/*.safetensors"), ("record", "*/progress.json")):
        file = tmp_path / name
        with pytest.raises(KeyboardInterrupt):
            go(plan(), file, method=counting(kill))
        (kept,) = Path(f"{file}.parts").glob(spoil)
        kept.write_bytes(kept.read_bytes()[:50])
        method = counting()
        expected = [row for row in whole[1] if row.setting.startswith("sequential")]
        assert timeless(go(plan(), file, method=method)) == timeless(expected)
        assert len(method.calls) == 3


@pytest.mark.parametrize(
    "lie",
    [
        {"steps": "1"},
        {"steps": 0},
        {"steps": 3},
        {"seconds": None},
        {"peak": []},
        {"endured": -1},
        {"rows": [{"before": "x"}]},
        {"rows": [{"color": "blue"}]},
        {"rows": 3},
        {"patch": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_of_a_sequence_that_lies_is_not_resumed(
    lie: dict[str, Any], whole: tuple[str, list[Row]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def kill(calls: int, edits: Any) -> None:
        if calls == 3:
            raise KeyboardInterrupt

    file = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(plan(), file, method=counting(kill))
    (kept,) = Path(f"{file}.parts").glob("*/progress.json")
    kept.write_text(json.dumps(json.loads(kept.read_text()) | lie))
    expected = [row for row in whole[1] if row.setting.startswith("sequential")]
    assert timeless(go(plan(), file, method=counting())) == timeless(expected)
    assert "its sequence begins anew" in caplog.text


def test_what_is_done_is_left_alone(whole: tuple[str, list[Row]], tmp_path: Path) -> None:
    def load(name: str) -> Any:
        raise AssertionError("nothing is left to do")

    file = tmp_path / "rows.jsonl"
    file.write_text(whole[0])
    go(plan(settings=ALL), file, load=load)
    assert file.read_text() == whole[0]


def test_a_changed_plan_adds_what_is_new(whole: tuple[str, list[Row]], tmp_path: Path) -> None:
    file, method = tmp_path / "rows.jsonl", counting()
    file.write_text(whole[0])
    rows = go(plan(settings=ALL, methods=[FTM, {**FTM, "steps": 1}]), file, method=method)
    assert file.read_text().startswith(whole[0]) and len(method.calls) == 11
    assert {row.settings for row in rows[len(whole[1]) :]} == {"steps=1"}
    again = go(plan(settings=ALL, modes=["generated", "forced"]), file)  # another mode: measured anew, not twice
    assert len([r for r in again if r.settings == "steps=2" and r.mode == "generated"]) == len(whole[1])
    assert len([r for r in again if r.settings == "steps=1"]) == len(rows) - len(whole[1])


def test_a_file_of_something_else_is_left_as_it_is(whole: tuple[str, list[Row]], tmp_path: Path) -> None:
    file = tmp_path / "notes"
    for text, message in (
        ("my notes", "something else"),
        ("my notes\n", "line 1: not JSON"),
        (whole[0] + '{"colour": 1}\n', "not a row"),
        (to_jsonl([Row(model="world", method="x", case="1", kind="edit", metric="accuracy")]), "of another command"),
    ):
        file.write_text(text)
        with pytest.raises(BadInput, match=message):
            go(plan(), file)
        assert file.read_text() == text


def test_a_row_that_was_torn_inside_of_a_character_is_made_again(tmp_path: Path) -> None:
    planned, file = plan(settings=["single"], data=[{"name": "pè", "limit": 2}]), tmp_path / "rows.jsonl"
    whole = go(planned, file)
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex("è".encode()) + 1])
    assert timeless(go(planned, file)) == timeless(whole)


BROKEN = [  # a line in the place of the second, and what is said of it
    (b'{"model": "tiny", "meth', "line 2: not JSON"),
    (b"not json", "line 2: not JSON"),
    (b"[" * 100_000, "line 2: not JSON"),
    (b"5", "line 2: not a row; an object is expected"),
    (b'["model"]', "line 2: not a row; an object is expected"),
    (b'{"colour": 1}', "line 2: not a row; no field 'colour' is known"),
    (b"{}", "line 2: not a row; kind is missing"),
    (b'{"model": "m", "kind": "edit"}', "line 2: not a row; metric is missing"),
    (b'{"kind": "edit", "metric": "accuracy", "before": "abc"}', "line 2: before is a number, found 'abc'"),
    (b'{"kind": "edit", "metric": "accuracy", "after": [1]}', "line 2: after is a number, found \\[1\\]"),
    (b'{"kind": "edit", "metric": "accuracy", "after": NaN}', "line 2: after is a finite number, found nan"),
    (b'{"kind": "edit", "metric": "accuracy", "after": 1e999}', "line 2: after is a finite number, found inf"),
    (b'{"kind": "edit", "metric": "accuracy", "seed": "0"}', "line 2: seed is a whole number, found '0'"),
    (b'{"kind": "edit", "metric": "accuracy", "after_edits": 1.5}', "line 2: after_edits is a whole number, found 1.5"),
    (b'{"kind": "edit", "metric": "accuracy", "model": null}', "line 2: model is text, found None"),
    (b'{"kind": "edit", "metric": "accuracy", "mode": "asked"}', "line 2: mode is forced or generated, found 'asked'"),
    (b'{"kind": "\xff"}', "line 2: not UTF-8 text"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_line_is_named_with_its_file(
    line: bytes, message: str, whole: tuple[str, list[Row]], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    first, _, *others = whole[0].encode().split(b"\n")
    content = b"\n".join([first, line, *others])
    file.write_bytes(content)
    for read in (lambda: go(plan(settings=ALL), file), lambda: command.report(file)):
        with pytest.raises(BadInput, match=f"rows.jsonl[:,] {message}"):
            read()
    assert file.read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_is_no_finite_number_is_a_row_that_can_be_read() -> None:
    rows = [row(after=float("nan")), row(before=float("inf"), after=1.0), row(after=float("nan"), error="mine")]
    read = from_jsonl(to_jsonl(rows, compact=True))
    errors = ["after is no finite number: nan", "before is no finite number: inf", "mine"]
    assert [(r.before, r.after, r.error) for r in read] == [
        (0.0, None, errors[0]),
        (None, 1.0, errors[1]),
        (0.0, None, "mine"),
    ]


SPOILT: list[Callable[[dict[str, Any]], Any]] = [
    lambda record: [],
    lambda record: "text",
    lambda record: {**record, "more": 1},
    lambda record: {**record, "seconds": None},
    lambda record: {**record, "patch": 5},
    lambda record: {**record, "patch": "../../elsewhere.safetensors"},
    lambda record: {**record, "rows": {}},
    lambda record: {key: value for key, value in record.items() if key != "endured"},
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_checkpoint_that_was_changed_is_begun_anew(
    spoil: Callable[[dict[str, Any]], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "rows"
    with pytest.raises(KeyboardInterrupt):
        go(plan(), file, method=counting(killed_at(3)))
    (kept,) = Path(f"{file}.parts").glob("*/progress.json")
    record = json.loads(kept.read_text())
    kept.write_text(json.dumps(spoil(record)))
    method = counting()
    go(plan(), file, method=method)
    assert len(method.calls) == 3 and "cannot be resumed (" in caplog.text and "begins anew" in caplog.text


def killed_at(call: int) -> Callable[[int, Any], None]:
    def kill(calls: int, edits: Any) -> None:
        if calls == call:
            raise KeyboardInterrupt

    return kill


# Where it is written -----------------------------------------------------------------------------


def test_one_run_at_a_time_writes_a_file(tmp_path: Path) -> None:
    file, seen = tmp_path / "rows.jsonl", list[str]()

    def again(calls: int, edits: Any) -> None:
        if calls == 1:
            with pytest.raises(BadInput, match=f"rows.jsonl is being written by process {os.getpid()} on ") as error:
                go(plan(settings=["single"]), file)
            seen.append(str(error.value))

    rows = go(plan(settings=["single"]), file, method=counting(again))
    assert seen and timeless(rows) == timeless(go(plan(settings=["single"]), tmp_path / "alone"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "rows.jsonl"]


def test_the_lock_of_a_run_that_died_is_no_hindrance(whole: tuple[str, list[Row]], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    (tmp_path / "rows.jsonl.parts").mkdir()
    (tmp_path / "rows.jsonl.parts" / "lock").write_text("process 1 on elsewhere")
    assert timeless(go(plan(settings=ALL), file)) == timeless(whole[1])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_rows_go_to_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("rows.jsonl")
    for place, message in (
        (tmp_path, "a folder"),
        (tmp_path / "link", "a symbolic link"),
        (Path("/dev/null"), "a device"),
    ):
        with pytest.raises(BadInput, match=message):
            run(plan(), place, load=no_load, method=errata.method, cases=cases)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def no_load(name: str) -> Any:
    raise AssertionError("too early")


def test_a_full_disk_keeps_what_was_written_and_is_no_error_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any, **more: Any) -> Any:
        raise OSError(28, "No space left on device")

    file = tmp_path / "rows.jsonl"
    go(plan(settings=["single"]), file)
    content = file.read_text()
    with monkeypatch.context() as patched:
        patched.setattr("errata.files._flush", full)
        go(plan(), file)  # its checkpoints are not kept
        assert "No space left on device" in caplog.text and file.read_text().startswith(content)
        assert not [r for r in from_jsonl(file.read_text()) if r.error]
    content = file.read_text()
    with monkeypatch.context() as patched:
        patched.setattr("errata.bench.store.os.fsync", full)
        patched.setattr("errata.files._flush", lambda path: None)
        with pytest.raises(BadInput, match="No space left on device; what it holds so far is kept"):
            go(plan(methods=["ft"]), file)
    assert file.read_text().startswith(content)


# Errors ------------------------------------------------------------------------------------------


def test_a_method_that_fails_is_a_row_and_the_run_goes_on(tmp_path: Path) -> None:
    def fail(calls: int, edits: Sequence[Edit]) -> None:
        if any(edit.subject == "Cy Moor" for edit in edits):
            raise Unsupported("not this one")

    method = counting(fail)
    rows = go(plan(settings=["single", SEQUENCE], methods=[FTM, "ft"]), tmp_path / "r", method=method)
    failed = [(r.method, r.setting[:6], r.case, r.kind, r.metric, r.after, r.after_edits) for r in rows if r.error]
    assert failed == [
        line
        for name in ("ft-m", "ft")
        for line in (
            (name, "single", "case 2", "edit", "accuracy", None, 1),
            (name, "single", "case 2", "cost", "peak_mib", None, 0),
            (name, "sequen", "sequential 1", "edit", "accuracy", None, 4),
            (name, "sequen", "sequential 1", "cost", "peak_mib", failed_peak(rows, name), 2),
        )
    ]
    assert {r.error for r in rows if r.error} == {"Unsupported: not this one"}
    assert {r.case for r in rows if r.setting == "single" and r.kind == "paraphrase"} == {
        f"case {i}" for i in (0, 1, 3, 4, 5)
    }
    assert {r.after_edits for r in rows if r.setting != "single" and r.kind == "paraphrase"} == {2}
    count = len(method.calls)
    assert go(plan(settings=["single", SEQUENCE], methods=[FTM, "ft"]), tmp_path / "r", method=method) == rows
    assert len(method.calls) == count  # what failed is done too
    healed = go(plan(settings=["single", SEQUENCE], methods=[FTM, "ft"]), tmp_path / "r", retry=True)
    assert not [r for r in healed if r.error] and len({(r.method, r.case) for r in healed if r.kind == "edit"}) == 12
    assert not (tmp_path / "r.parts").exists()


def failed_peak(rows: Sequence[Row], name: str) -> float | None:
    return next(r.after for r in rows if r.error and r.method == name and r.after_edits == 2)


def test_a_method_that_cannot_prepare_is_a_row_for_each_unit(tmp_path: Path) -> None:
    class Helpless(Forgetful):
        calls = 0

        def prepare(self, lm: Any, data: Any = None) -> Any:
            self.calls += 1
            raise BadInput("no texts")

    made = Helpless()
    rows = forgetful(plan(settings=["single"]), tmp_path / "r", method=lambda name, **settings: made)
    assert [r.error for r in rows if r.kind == "edit"] == ["BadInput: no texts"] * 6 and made.calls == 1


def test_what_is_no_error_of_ours_stops_the_run_and_keeps_what_was_done(tmp_path: Path) -> None:
    def fail(calls: int, edits: Any) -> None:
        if calls == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go(plan(settings=["single"]), tmp_path / "r", method=counting(fail))
    rows = from_jsonl((tmp_path / "r").read_text())
    assert {row.case for row in rows} == {"case 0", "case 1"}


def test_everything_is_made_and_read_before_the_work(tmp_path: Path) -> None:
    def load(name: str) -> Any:
        raise AssertionError("too early")

    for changes, message in (
        ({"methods": [FTM, "ft-n"]}, "did you mean ft-m"),
        ({"methods": [{"name": "ft-m", "stepz": 1}]}, "did you mean steps"),
        ({"methods": [{**FTM, "transform": "rekt"}]}, "did you mean rect"),
        ({"methods": [FTM, {**FTM}]}, "measured twice"),
        ({"settings": [{"kind": "batch", "size": 7}]}, "needs 7 cases"),
        ({"settings": [{"kind": "sequential", "batch": 1, "checkpoints": [9]}]}, "needs 9 cases"),
        ({"settings": [{"kind": "sequential", "batch": 4, "checkpoints": [2, 4]}]}, "multiples of the batch of 4"),
        ({"settings": [{"kind": "single", "cases": 7}]}, "7 cases were asked for"),
        ({"data": [{"name": "x"}], "settings": [{"kind": "single", "untouched": 12}]}, "shall stay untouched"),
    ):
        with pytest.raises(BadInput, match=message):
            go(plan(**changes), tmp_path / "rows.jsonl", load=load)
    assert not list(tmp_path.iterdir())


# The file of a plan ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ["x"]}, "unknown key of a bench file 'model'; did you mean models"),
        ({"models": "world"}, "models is a list, found 'world'"),
        ({"models": []}, "models is a list with at least one entry, found []"),
        ({"models": ["a", 1]}, "models[1] is a text, found 1"),
        ({"models": [""]}, "models[0] is a text, found ''"),
        ({"seeds": [-1]}, "seeds[0] is a whole number from 0, found -1"),
        ({"seeds": [True]}, "seeds[0] is a whole number from 0, found True"),
        ({"modes": ["force"]}, "modes[0]: unknown mode 'force'; did you mean forced"),
        ({"protocol": "roma"}, "protocol: unknown protocol 'roma'; did you mean rome"),
        ({"data": ["x", {"limit": 3}]}, "data[1]: data needs name; found limit"),
        ({"data": [{"name": "x", "limit": 0}]}, "data[0].limit is a whole number from 1, found 0"),
        ({"data": [{"name": "x", "limit": "3"}]}, "data[0].limit is a whole number from 1, found '3'"),
        ({"data": [{"name": "x", "limt": 3}]}, "data[0]: unknown key of data 'limt'; did you mean limit"),
        ({"data": [{"name": "x", "settings": {}}]}, "unknown key of data 'settings'"),
        ({"data": [{"name": "x", "read": {"a": 3}}]}, "data[0].read is a table of texts, true and false, found"),
        ({"data": [{"name": "x", "protocol": "wilde"}]}, "data[0].protocol: unknown protocol 'wilde'; did you"),
        ({"settings": ["singl"]}, "settings[0]: unknown kind of setting 'singl'; did you mean single"),
        ({"settings": [{}]}, "settings[0]: a setting needs kind; found nothing"),
        ({"settings": [3]}, "settings[0] is a kind of setting or a table of TOML, found 3"),
        ({"settings": ["single", "batch"]}, "settings[1]: a batch setting needs size; found kind"),
        ({"settings": [{"kind": "single", "size": 3}]}, "unknown key of a single setting 'size'; known: cases, kind"),
        ({"settings": [{"kind": "batch", "size": 3, "ability": 1}]}, "true, false, or a file with a text on each line"),
        ({"settings": [{**SEQUENCE, "checkpoints": [4, 2]}]}, "settings[0]: checkpoints rise; found 2 behind 4"),
        ({"settings": [{**SEQUENCE, "checkpoints": 4}]}, "settings[0].checkpoints is a list, found 4"),
        ({"settings": [{**SEQUENCE, "stop": {"kind": "edits"}}]}, "stop.kind: unknown kind of probe 'edits'; did"),
        ({"settings": [{**SEQUENCE, "stop": {"below": "x"}}]}, "settings[0].stop.below is a number, found 'x'"),
        ({"settings": [{**SEQUENCE, "recheck": 10, "stop": {}}]}, "raise it"),
        ({"methods": [3]}, "methods[0] is a table of TOML, found 3"),
        ({"methods": [{"steps": 3}]}, "methods[0]: a method needs name; found steps"),
        (
            {"methods": [{**FTM, "transform": {"name": "prune", "at": "start"}}]},
            "methods[0].transform.at is 'step' or 'end', found 'start'",
        ),
    ],
)
def test_what_is_wrong_with_a_plan_is_named(changes: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        plan(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, UnknownName) == ("unknown" in message)


def test_a_plan_needs_its_four_lists() -> None:
    with pytest.raises(BadInput, match="a bench file needs models and methods and data and settings; found nothing"):
        Plan.of({})
    usual = {"models": ["x"], "data": ["y"], "settings": ["single"], "methods": ["z"]}
    assert [spec.name for spec in Plan.of({**usual, "methods": "all"}, every=["a", "b"]).methods] == ["a", "b"]
    mixed = Plan.of({**usual, "methods": ["all", {"name": "a", "x": 1}]}, every=["a", "b"]).methods
    assert [(spec.name, spec.label) for spec in mixed] == [("a", ""), ("b", ""), ("a", "x=1")]


def test_a_plan_cannot_be_changed() -> None:
    made = plan()
    with pytest.raises(ValueError, match="frozen"):
        made.models = ("other",)  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(made.data[0]) == hash(plan().data[0])


def test_settings_have_labels_of_their_own() -> None:
    known = [Setting.of(one) for one in ("single", {"kind": "single", "untouched": 2}, {"kind": "batch", "size": 2})]
    stop = {"first": 5, "below": 0.9}
    more = ({}, {"recheck": 9}, {"stop": stop}, {"untouched": 3}, {"stop": {**stop, "metric": "success"}})
    known += [Setting.of({**SEQUENCE, **changes}) for changes in more]
    known += [Setting.of({**SEQUENCE, "checkpoints": [10, 20, 30, 40]})]
    assert len({setting.label for setting in known}) == len(known)
    assert known[-1].label == "sequential by 2, asked at 10 20 … 40"
    assert known[5].label.endswith("until edit of the first 5 is below 0.9")


# The command line --------------------------------------------------------------------------------


@pytest.fixture()
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, cases and a plan."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_model("gpt2", torch.float32).save_pretrained("model")
    tokenizer().save_pretrained("model")
    lines = [
        {
            "id": c.id,
            "edits": [c.edits[0].to_json()],
            "probes": [{"kind": p.kind, "prompt": p.prompt, "answers": list(p.answers)} for p in c.probes],
        }
        for c in cases()
    ]
    Path("people.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("run.toml").write_text(
        'models = ["model"]\nmethods = [{ name = "ft-m", steps = 2 }]\ndata = [{ name = "people.jsonl", limit = 4 }]\n'
        'settings = ["single", { kind = "sequential", batch = 2, checkpoints = [2, 4] }]\n'
    )
    return tmp_path


def words(*typed: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, typed)
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception}"
    return result


def test_bench_and_report(here: Path) -> None:
    assert "5 units more" in words("bench", "run.toml", "-o", "out/rows.jsonl").stderr
    rows = (here / "out/rows.jsonl").read_text()
    assert "holds all of it already" in words("bench", "run.toml", "-o", "out/rows.jsonl").stderr
    assert (here / "out/rows.jsonl").read_text() == rows
    shown = words("report", "out/rows.jsonl").stdout
    assert "## single · model · people.jsonl limit=4 · generated" in shown and "| ft-m steps=2 |" in shown
    for name, begin in (("r.md", b"# Methods"), ("r.html", b"<!doctype html>"), ("c.png", b"\x89PNG")):
        words("report", "out/rows.jsonl", "-o", name)
        assert (here / name).read_bytes().startswith(begin)
    assert (here / "r.md").read_text().replace("\n\n![curves](r.svg)", "", 1) == shown
    assert (here / "r.svg").read_text().startswith("<svg") and "<svg" in (here / "r.html").read_text()
    message = words("report", "out/rows.jsonl", "-o", "r.md", code=2).stderr
    assert "add --force" in message


def test_a_page_begins_with_a_text_of_ones_own(here: Path) -> None:
    Path("one.jsonl").write_text(to_jsonl([Row(model="m", case="1", kind="edit", metric="accuracy", after=1.0)]))
    Path("intro.md").write_text("# Mine\n\nOf *one* machine, [by rules](rules.md).\n\n")
    for _ in range(2):  # and again, over the page that there is
        words("report", "one.jsonl", "-o", "page.md", "--intro", "intro.md", "--force")
        head, table = Path("page.md").read_text().split("## ", 1)
        assert head == "# Mine\n\nOf *one* machine, [by rules](rules.md).\n\n"
    assert words("report", "one.jsonl", "--intro", "intro.md").stdout == head + "## " + table
    assert words("report", "one.jsonl").stdout.endswith("## " + table)
    for name in ("page.html", "page.png"):
        assert "--intro goes with" in words("report", "one.jsonl", "-o", name, "--intro", "intro.md", code=2).stderr
    assert "no file none.md" in words("report", "one.jsonl", "-o", "new.md", "--intro", "none.md", code=2).stderr
    assert not Path("new.md").exists()


@pytest.mark.parametrize("name", ["methods", "architectures"])
def test_the_pages_of_tables_begin_with_their_own_words(name: str) -> None:
    docs = Path(__file__).parents[1] / "docs"
    intro = (docs / f"{name}.intro.md").read_text().strip()
    assert (docs / f"{name}.md").read_text().startswith(intro), f"edit docs/{name}.intro.md, and the page alike"
    assert f"-o docs/{name}.md --intro docs/{name}.intro.md" in (docs.parent / "Makefile").read_text()


def test_an_interrupted_bench_ends_with_130_and_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(calls: int, edits: Any) -> None:
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(registry, "method", counting(kill))
    assert words("bench", "run.toml", code=130).stderr.endswith("errata: interrupted\n")
    rows = from_jsonl(Path("rows.jsonl").read_text())
    assert {row.case for row in rows} == {"case 0", "case 1"}
    monkeypatch.undo()
    monkeypatch.chdir(here)
    words("bench", "run.toml", "-q")
    assert from_jsonl(Path("rows.jsonl").read_text())[: len(rows)] == rows


@pytest.mark.parametrize("missing", ["folder", "config", "tokenizer", "weights", "texts"])
def test_what_a_later_unit_needs_is_looked_for_before_the_first(
    missing: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errata, "load", no_load, raising=False)
    if missing != "folder":
        shutil.copytree("model", "second")
    files = {"config": "config.json", "tokenizer": "tokenizer.json", "weights": "model.safetensors"}
    if missing in files:
        Path("second", files[missing]).unlink()
    text = Path("run.toml").read_text().replace('["model"]', '["model", "./second"]')
    if missing == "texts":
        Path("texts.txt").write_text("\n")
        text = text.replace("{ kind", '{ kind = "batch", size = 2, ability = "texts.txt" }, { kind', 1)
    Path("run.toml").write_text(text)
    expected = {
        "folder": "there is no model './second'",
        "config": "holds no config.json",
        "tokenizer": "second has no tokenizer",
        "weights": "holds no weights",
        "texts": "settings[1]: texts.txt holds no text",
    }
    assert expected[missing] in words("bench", "run.toml", code=2).stderr
    assert not Path("rows.jsonl").exists() and not Path("rows.jsonl.parts").exists()


def test_a_model_that_is_done_may_be_gone(here: Path) -> None:
    words("bench", "run.toml", "-q")
    shutil.rmtree("model")
    assert "holds all of it already" in words("bench", "run.toml").stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file run.toml"),
        ("models = [", "run.toml is not TOML"),
        ("", "run.toml: a bench file needs models"),
        ('models = ["m"]\nmethods = ["memot"]\ndata = ["people.jsonl"]\nsettings = ["single"]', "did you mean memit"),
        ('models = ["m"]\nmethods = ["ft"]\ndata = ["none.json"]\nsettings = ["single"]', "none.json"),
        ('models = ["m"]\nmethods = ["ft"]\ndata = ["people.jsonl"]\nsettings = ["single"]\nx = 1', "key of a bench"),
    ],
)
def test_a_bad_plan_is_answered_with_one_message(here: Path, text: str | None, message: str) -> None:
    Path("run.toml").unlink() if text is None else Path("run.toml").write_text(text)
    result = words("bench", "run.toml", code=2)
    assert message in result.stderr and len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert not Path("rows.jsonl").exists()


def test_what_cannot_be_reported_is_said(here: Path) -> None:
    assert "there is no file none.jsonl" in words("report", "none.jsonl", code=2).stderr
    Path("empty.jsonl").write_text("")
    assert "holds no rows" in words("report", "empty.jsonl", code=2).stderr
    Path("one.jsonl").write_text(to_jsonl([Row(model="m", case="1", kind="edit", metric="accuracy", after=1.0)]))
    assert "no curve to draw" in words("report", "one.jsonl", "-o", "c.png", code=2).stderr
    assert "end its name in .md" in words("report", "one.jsonl", "-o", "c.gif", code=2).stderr
    assert "TOML" in words("bench", "run.toml", "-o", "run.toml", code=2).stderr


def test_the_commands_have_functions_of_their_names(here: Path) -> None:
    assert command.bench("run.toml", "r.jsonl") == 5 and command.bench("run.toml", "r.jsonl") == 0
    assert command.report("r.jsonl").startswith("# Methods")


def test_the_plans_that_come_with_the_project_are_plans() -> None:
    docs = Path(__file__).parents[1] / "docs"
    for name in ("table.toml", "architectures.toml", "endurance.toml", "why.toml"):
        planned = Plan.read(docs / name, every=list(errata.methods()))
        assert units_of(planned, errata.method, errata.cases)


# The report, worked by hand ----------------------------------------------------------------------


def row(**fields: Any) -> Row:
    return Row(**{"model": "m", "data": "d", "kind": "edit", "metric": "accuracy", "before": 0.0, **fields})


def test_a_section_is_shown_at_the_end_of_its_sequences() -> None:
    rows: list[Row] = []
    for seed, points in ((0, (2, 4)), (1, (2,))):
        for n in points:
            labels: Any = {"method": "a", "setting": "sequence", "seed": seed, "after_edits": n}
            rows += [row(**labels, case=str(i), after=float(n == 2 or i > 0)) for i in range(n)]
            rows += [row(**labels, case="all", kind="cost", metric="seconds_per_edit", before=None, after=n / 2)]
    rows += [row(method="b", setting="sequence", case="all", after_edits=2, after=None, error="Unsupported: no | no")]
    rows += [row(method="a", setting="other", case="1", after=1.0, mode="forced")]
    first, second = sections(rows)
    assert (first.title, second.title) == ("sequence · m · d · generated", "other · m · d · forced")
    assert first.columns == ("reliability", "seconds per edit")
    lines = dict(first.lines)
    # seed 0 after four edits: 0 1 1 1; seed 1 after two: 1 1; b is dashed
    mean = lines["a"][0]
    assert mean is not None and (mean.mean, mean.error, mean.count) == (*map(pytest.approx, (5 / 6, 1 / 6)), 6)
    assert lines["a"][1] == Mean(1.5, 0.5, 2) and lines["b"] == (None, None)
    assert lines["(unedited)"] == (Mean(0.0, 0.0, 7), None)
    assert {key: cells[0] and cells[0].mean for key, cells in first.course.items()} == {
        ("a", 2): 1.0,
        ("a", 4): 0.75,
        ("b", 2): None,
    }
    text = markdown(rows, title="T", note="N")
    assert "| a | 0.83 ± 0.17 (6) | 1.5 |" in text and "| b | - | - |" in text
    assert "- b: Unsupported: no | no" in text and text.startswith("# T\n") and "\nN\n" in text
    assert "reliability after so many edits:" in text and "| a | 1.00 ± 0.00 (4) | 0.75 ± 0.25 (4) |" in text
    assert "<td>0.83 <small>± 0.17 (6)</small></td>" in page(rows) and "Unsupported: no | no" in page(rows)


def asked_by_rome() -> list[Row]:
    """A sequence of two edits: the first is won at once and lost at the end, the second won; two texts are written."""
    rows: list[Row] = []
    labels: dict[str, Any] = {"method": "a", "setting": "sequence", "protocol": "rome", "mode": "forced"}
    for n, wins in ((1, (1.0,)), (2, (0.0, 1.0))):
        at: Any = {**labels, "after_edits": n}
        for i, after in enumerate(wins):
            rows += [row(**at, case=str(i), metric="success", after=after)]
            rows += [row(**at, case=str(i), kind="paraphrase", metric="success", after=1.0)]
            rows += [row(**at, case=str(i), kind="neighborhood", metric="success", before=1.0, after=0.5)]
            text = {**at, "mode": "generated", "kind": "generation", "metric": "entropy"}
            rows += [row(**text, case=str(i), before=5.0, after=4.0)]
        costs: Any = {**at, "case": "all", "kind": "cost", "metric": "seconds_per_edit", "before": None, "after": 1.0}
        rows += [row(**{**costs, "mode": mode}) for mode in ("forced", "generated")]
    return rows


def test_a_protocol_has_its_own_numbers_in_the_report() -> None:
    found = report_sections(asked_by_rome())
    ends = ["forced", "published numbers"]  # generated: nothing but costs, and texts that have no column
    assert [section.title for section in found] == [f"sequence · m · d · rome · {end}" for end in ends]
    assert svg(asked_by_rome()) == ""
    with pytest.raises(BadInput, match=r"no curve to draw: none of reliability, paraphrases, .* was asked"):
        curves(asked_by_rome(), "never.png")
    (table,) = found[-1].tables()
    assert "kmeng01/rome" in table.caption and table.head == ("method", "edits", "ES", "PS", "NS", "GE", "S")
    before, one, two = table.body
    assert before[:5] == ("(unedited)", "0", "0.00 ± 0.00 (2)", "0.00 ± 0.00 (2)", "100.00 ± 0.00 (2)")
    assert one == ("a", "1", "100.00 (1)", "100.00 (1)", "50.00 (1)", "400.00 (1)", "75.00 (1)")
    # S = 3 / (1/50 + 1/100 + 1/50)
    assert two[2:5] == ("50.00 ± 50.00 (2)", "100.00 ± 0.00 (2)", "50.00 ± 0.00 (2)") and two[-1] == "60.00 (1)"
    for text in (markdown(asked_by_rome()), page(asked_by_rome())):
        assert "published numbers" in text and "ES" in text
    alone = [replace(r, setting="single", after_edits=1) for r in asked_by_rome() if r.after_edits == 1]
    (table,) = report_sections(alone)[-1].tables()
    assert table.head[:2] == ("method", "ES") and len(table.body) == 2


def test_costs_are_shown_once_and_a_mode_without_a_measure_is_not() -> None:
    rows: list[Row] = []
    for mode in ("forced", "generated"):
        both: Any = {"method": "a", "setting": "batch", "case": "1", "mode": mode}
        rows += [row(**both, after=1.0), row(**both, kind="cost", metric="peak_mib", before=None, after=2.0)]
    assert [of.columns for of in report_sections(rows)] == [("reliability", "peak MiB"), ("reliability",)]
    shares = [r if r.kind == "cost" else replace(r, metric="token_accuracy") for r in rows]
    texts = [r if r.kind == "cost" else replace(r, metric="entropy") for r in rows]
    easyedit = [replace(r, protocol="easyedit") for r in (*shares[:2], *texts[2:])]
    titles = [of.title for of in report_sections(easyedit)]
    assert titles == [f"batch · m · d · easyedit · {end}" for end in ("forced", "published numbers")]


def test_belief_is_lost_where_the_old_answer_comes_back() -> None:
    rows = [
        row(
            method="a",
            setting="s",
            protocol="belief",
            metric="old_first",
            case=str(i),
            probe=str(i),
            after_edits=n,
            after=v,
        )
        for n, values in ((1, (0.0,)), (2, (1.0, 0.0)))
        for i, v in enumerate(values)
    ]
    found = retention(rows, metric="old_first")
    assert [mean.mean for mean in found.curve.values()] == [1.0, 0.5]
    assert (found.retainability, found.backward_transfer) == (-0.5, Mean(-1.0, None, 1))


def test_the_retention_of_a_sequence_is_in_the_report() -> None:
    rows = [
        row(method="a", setting="s", seed=seed, case=str(i), probe=str(i), after_edits=n, after=after)
        for seed, last in ((0, (0.0, 1.0)), (1, (1.0, 1.0)))
        for n, values in ((1, (1.0,)), (2, last))
        for i, after in enumerate(values)
    ]
    rows += [
        row(method="a", setting="s", seed=seed, case="all", kind="cost", metric="peak_mib", after_edits=n, after=1.0)
        for seed in (0, 1)
        for n in (1, 2)
    ]
    (section,) = sections(rows)
    table = section.tables()[1]
    # seed 0: (1/2 - 1) / 1, and its first edit fell from 1 to 0; seed 1 kept all
    assert table.caption == "changes of accuracy"
    numbers = dict(zip(table.head, table.body[0], strict=True))
    assert (numbers["retainability"], numbers["backward transfer"]) == ("-0.25 (2)", "-0.50 ± 0.50 (2)")
    (forced,) = sections([r for r in asked_by_rome() if r.mode == "forced"])
    table = forced.tables()[1]
    assert table.caption == "changes of accuracy (over a sequence: success of edits)"
    assert table.head == ("method", "backward transfer", "retainability")
    assert table.body == (("a", "-1.00 (1)", "-0.50 (2)"),)
    assert "retainability" not in sections(rows[:1])[0].changes["a"]


def test_curves_are_drawn_as_pictures(tmp_path: Path) -> None:
    rows = [
        r
        for n in (2, 4)
        for labels in [{"method": "a", "setting": "s", "after_edits": n}]
        for r in (row(**labels, case="1", after=0.5), row(**labels, kind="cost", metric="peak_mib", after=1.0))
    ]
    curves(rows, tmp_path / "c.svg")
    assert "<svg" in (tmp_path / "c.svg").read_text()
    with pytest.raises(BadInput, match="cannot draw"):
        curves(rows, tmp_path / "none" / "c.svg")


def test_compact_lines_are_the_same_rows() -> None:
    rows = [row(case="é", after=0.0), row(case="2", after=None, error="x", seed=3), row(after=True)]
    short = to_jsonl(rows, compact=True)
    assert from_jsonl(short) == rows and len(short) < len(to_jsonl(rows)) / 2


def test_the_peak_is_of_what_was_done_meanwhile() -> None:
    lm: Any = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    watch = PeakMemory(lm)
    if watch.start is None:
        assert watch.mib() is None  # this system does not tell
        return
    block = torch.ones(32 * 2**20 // 4)
    assert 25 < (watch.mib() or 0) < 200
    del block


def test_texts_of_the_tiny_tokenizer_hold_the_cases() -> None:
    known = {word for text in TEXTS for word in text.rstrip(".").split()}
    assert {word for c in cases() for word in c.edits[0].prompt.split()} <= known
