"""Layers are ranked by tracing and by trials, and what is found is a file of settings that other commands take."""

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TEXTS, tiny_lm, tokenizer
from test_bench import go, plan
from tiny import build
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.cli.locate import locate
from errata.errors import BadInput, Refused
from errata.inputs import read_settings
from errata.locate import Ranking, rank_layers
from errata.locate import layers as layers_module
from errata.locate.found import found_for, warn_of_origin
from errata.locate.kept import Kept
from errata.locate.layers import Layer
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Edit, Probe

KNOWN = "Ann Lee was born in"


def case_of(prompt: str, subject: str, number: int) -> Case:
    """An edit of whatever the model says by itself, with a paraphrase and a neighbour."""
    probes = (
        Probe("paraphrase", f"{subject} went by night to", ("Lima",)),
        Probe("neighborhood", "Flo Ash lives in", ("x",)),
    )
    return Case(f"case {number}", (Edit(prompt, subject, "Lima"),), probes)


@pytest.fixture()
def cases() -> list[Case]:
    return [case_of(KNOWN, "Ann Lee", 0), case_of("Bob Ray lives in", "Bob Ray", 1)]


class Editing:
    """A way to edit that works in one layer alone: there, what names the subject is answered with the target."""

    def __init__(self, lm: Any, good: int) -> None:
        self.lm, self.good, self.prepared = lm, good, list[list[int]]()

    def __call__(self, layers: Sequence[int]) -> Any:
        self.prepared.append(list(layers))
        return self.edit

    def edit(self, layer: int, edit: Edit) -> Any:
        def generate(prompts: Sequence[str], *_: Any, **how: Any) -> list[str]:
            old = self.lm.generate(prompts, 16, **how)
            return [f" {edit.target_new}." if edit.subject in p else text for p, text in zip(prompts, old)]

        edited = SimpleNamespace(generate=generate)
        return SimpleNamespace(applied=lambda lm: nullcontext(edited)) if layer == self.good else EMPTY


def test_the_layer_in_which_edits_take_comes_first(cases: list[Case]) -> None:
    lm = tiny_lm("llama")
    editing = Editing(lm, good=2)
    ranking = rank_layers(lm, cases, editing, samples=2)
    assert editing.prepared == [[0, 1, 2, 3]] and ranking.edits == 2 and ranking.traced >= 1
    first, *others = ranking.layers
    assert first.layer == 2 and first.reliability == 1.0 and (first.score or 0) > 0
    assert all(one.reliability == 0.0 and one.kept == 1.0 and one.score == 0.0 for one in others)
    effects = [one.effect for one in others]
    assert effects == sorted(effects, reverse=True)
    assert ranking.best() == (2,) and 2 in ranking.best(2)


def test_only_the_best_traced_are_tried(cases: list[Case]) -> None:
    lm = tiny_lm("llama")
    editing = Editing(lm, good=2)
    ranking = rank_layers(lm, cases, editing, tried=2, samples=2)
    tried = [one for one in ranking.layers if one.score is not None]
    assert len(tried) == 2 and sorted(one.layer for one in tried) == editing.prepared[0]
    assert min(one.effect for one in tried) >= max(one.effect for one in ranking.layers if one.score is None)


def test_the_score_is_the_harmonic_mean_of_what_was_asked() -> None:
    assert Layer(0, 0.0, None).score is None
    assert Layer(0, 0.0, None, 1.0, None, 0.5).score == pytest.approx(2 / 3)
    assert Layer(0, 0.0, None, 1.0, 0.0, 1.0).score == 0.0


def test_the_best_layers_lie_side_by_side() -> None:
    made = [Layer(n, 0.0, None, rate, None, rate) for n, rate in ((5, 1.0), (1, 0.8), (2, 0.7), (3, 0.2))]
    ranking = Ranking(tuple(made), 1, 1)
    assert ranking.best(1) == (5,) and ranking.best(2) == (1, 2) and ranking.best(3) == (1, 2, 3)
    with pytest.raises(BadInput, match="lie side by side"):
        ranking.best(4)


def test_what_cannot_be_ranked_is_refused(
    cases: list[Case], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama")
    old = [Case("answered so", (Edit(KNOWN, "Ann Lee", "Oslo"),))]
    unknown = [Case("unknown", (Edit(KNOWN, "Ann Lee", "Lima", "a baker of Paris"),))]
    none: Any = None
    monkeypatch.setattr(lm, "generate", lambda prompts, *_, **__: [" Oslo."] * len(prompts))
    with pytest.raises(BadInput, match="answers all 1 edits with their new target already"):
        rank_layers(lm, old, none)
    with pytest.raises(BadInput, match="knows none of the 1 facts"):
        rank_layers(lm, unknown, none)
    with pytest.raises(BadInput, match="found none"):
        rank_layers(lm, [], none)
    with pytest.raises(BadInput, match="at least 1 layer"):
        rank_layers(lm, cases, none, tried=0)
    with caplog.at_level(logging.WARNING):
        rank_layers(lm, [*old, *cases], lambda layers: lambda layer, edit: EMPTY, tried=1, samples=1)
    assert "1 of 3 edits are answered so already" in caplog.text


def test_trials_are_edits_of_the_layer(cases: list[Case], caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("llama")
    before = [p.clone() for p in lm.model.parameters()]
    ranking = locate(lm, cases, TEXTS, samples=2, tried=3)
    assert {one.layer for one in ranking.layers} == {0, 1, 2, 3}
    assert sum(one.score is not None for one in ranking.layers) == 3
    assert "missed" not in caplog.text
    assert all((a == b).all() for a, b in zip(before, lm.model.parameters(), strict=True))


class Failing(Editing):
    """Edits of Bob Ray cannot be made in layer 1."""

    def edit(self, layer: int, edit: Edit) -> Any:
        if layer == 1 and edit.subject == "Bob Ray":
            raise Refused("an entry of the patch is no finite number")
        return super().edit(layer, edit)


def test_a_trial_that_fails_counts_as_an_edit_that_did_not_take(cases: list[Case]) -> None:
    lm = tiny_lm("llama")
    ranking = rank_layers(lm, cases, Failing(lm, good=1), samples=1)
    (one,) = [one for one in ranking.layers if one.layer == 1]
    assert one.failed == ("'Bob Ray lives in': Refused: an entry of the patch is no finite number",)
    assert one.reliability == 0.5 and ranking.best() == (1,)
    assert all(not other.failed for other in ranking.layers if other.layer != 1)
    assert next(x for x in ranking.to_json()["layers"] if x["layer"] == 1)["failed"] == one.failed

    def never(layer: int, edit: Edit) -> Any:
        raise torch.linalg.LinAlgError("not positive-definite")  # pyright: ignore[reportPrivateImportUsage]

    with pytest.raises(Refused, match=r"none of the 8 trial edits could be made; the first: .*not positive-definite"):
        rank_layers(lm, cases, lambda layers: never, samples=1)


@pytest.mark.parametrize("stop", [1, 5], ids=["in a trace", "in a trial"])
def test_an_interrupted_search_goes_on(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """What it had found is not looked for again, and the ranking is that of an undisturbed search."""
    lm, file = tiny_lm("llama"), tmp_path / "found.json.part"
    done: list[str] = []
    real_trace, real_edit = layers_module.trace, Editing.edit

    def noted(what: str, make: Any) -> Any:
        if len(done) == limit[0]:
            raise KeyboardInterrupt
        done.append(what)
        return make()

    monkeypatch.setattr(
        layers_module, "trace", lambda lm, *a, **b: noted(f"trace {a[1]}", lambda: real_trace(lm, *a, **b))
    )
    monkeypatch.setattr(
        Editing, "edit", lambda self, layer, e: noted(f"{layer} {e.subject}", lambda: real_edit(self, layer, e))
    )
    limit, of = [99], {"seed": 0}
    whole = rank_layers(lm, cases, Editing(lm, good=2), samples=1)
    everything = list(done)
    done.clear()
    limit[0] = stop
    with pytest.raises(KeyboardInterrupt):
        rank_layers(lm, cases, Editing(lm, good=2), samples=1, kept=Kept.at(file, of))
    assert len(done) == stop and file.is_file()
    limit[0] = 99
    assert rank_layers(lm, cases, Editing(lm, good=2), samples=1, kept=Kept.at(file, of)) == whole
    assert done == everything
    again = Editing(lm, good=2)
    assert rank_layers(lm, cases, again, samples=1, kept=Kept.at(file, of)) == whole
    assert done == everything and not again.prepared
    with pytest.raises(BadInput, match=r"another kind \(seed 0, not 1\): give the same command again"):
        Kept.at(file, {"seed": 1})
    for text in ("", "{}", "[]", file.read_text().replace('"took"', '"taken"')):
        file.write_text(text)
        with pytest.raises(BadInput, match="holds nothing that errata locate kept; remove it"):
            Kept.at(file, of)


def test_a_search_in_which_nothing_could_be_tried_is_not_kept(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise Refused("no")

    monkeypatch.setattr("errata.cli.locate._trials", lambda *_: lambda layers: never)
    file = tmp_path / "found.json.part"
    with pytest.raises(Refused, match="none of the 1 trial edits"):
        locate(tiny_lm("llama"), cases[:1], TEXTS, samples=1, tried=1, kept_in=file)
    assert not file.exists()


def test_trials_are_drawn_by_the_seed(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[tuple[str, int]] = []
    real = errata.method

    def method(name: str, **settings: Any) -> Any:
        seeds.append((name, settings["seed"]))
        return real(name, **settings)

    monkeypatch.setattr(errata, "method", method)
    locate(tiny_lm("llama"), cases[:1], TEXTS, samples=1, tried=1, seed=3)
    assert set(seeds) == {("memit", 3), ("r-rome", 3)}


# The file and the command ------------------------------------------------------------------------


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    build("llama", vocab_size=320).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return tmp_path


def test_what_is_found_is_used_by_other_commands(folder: Path, cases: list[Case]) -> None:
    edits, found = folder / "edits.jsonl", folder / "found.json"
    edits.write_text("\n".join(json.dumps(case.edits[0].to_json()) for case in cases))
    given = ("--data", folder / "texts.txt", "--quiet")
    result = run("locate", folder / "model", "--edits", edits, "--count", 2, "--samples", 2, "-o", found, *given)
    assert result.exit_code == 0, result.stderr
    record = json.loads(found.read_text())
    layers = record["layers"]
    assert len(layers) == 2 and f"layers={layers[0]},{layers[1]}" in result.stdout
    assert record["found"]["edits"] == 2 and len(record["found"]["layers"]) == 4
    assert read_settings(found) == {"layers": layers}
    assert run("locate", folder / "model", "--edits", edits, "-o", found, *given).exit_code == 2  # it is there
    patch = folder / "patch.safetensors"
    words = ("--settings", found, "--set", "contexts=0", "--set", "steps=2", "-o", patch, *given)
    result = run("edit", folder / "model", "--edits", edits, *words)
    assert result.exit_code == 0, result.stderr
    assert Patch.load(patch).meta["made"][0]["resolved"]["layers"] == layers
    result = run("plan", folder / "model", "--settings", found, "--json")
    assert json.loads(result.stdout)["layers"] == layers
    assert not Path(f"{found}.part").exists()


def test_the_command_goes_on_where_it_was_interrupted(
    folder: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, found, part = folder / "edits.jsonl", folder / "found.json", folder / "found.json.part"
    edits.write_text("\n".join(json.dumps(case.edits[0].to_json()) for case in cases))
    words = ("locate", folder / "model", "--edits", edits, "--samples", 1, "--try", 1, "--count", 1, "-o", found)
    words = (*words, "--data", folder / "texts.txt", "--quiet")

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("errata.cli.locate._trials", lambda *_: interrupted)
        result = run(*words)
    assert result.exit_code == 130 and f"kept in {part}; the same command goes on from there" in result.stderr
    assert not found.exists() and len(json.loads(part.read_text())["traces"]) == 2
    result = run(*words, "--seed", 1)
    assert result.exit_code == 2 and "seed 0, not 1" in result.stderr
    with monkeypatch.context() as patched:
        patched.setattr(layers_module, "trace", interrupted)  # both are kept
        result = run(*words)
    assert result.exit_code == 0 and found.is_file() and not part.exists(), result.stderr


def test_a_file_of_settings_for_something_else_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama")
    file = folder / "found.json"

    def told(name: str, model: str = "mine", print_: str | None = lm.fingerprint) -> str:
        caplog.clear()
        warn_of_origin(file, name, model, print_)
        return caplog.text

    record = {"layers": [1, 2], "found": found_for("memit", "models/mine", lm.fingerprint)}
    file.write_text(json.dumps(record))
    assert not told("memit") and not told("memit", "other name") and not told("memit", "/tmp/mine", None)
    assert "made for the method memit, and this is pmet; `errata locate mine --method pmet -o FILE`" in told("pmet")
    assert f"for the model models/mine ({lm.fingerprint}), and this is mine (abc)" in told("memit", print_="abc")
    assert "and this is yours (not loaded); `errata locate yours" in told("memit", "yours", None)
    for hand_made in ({"by": "hand"}, "x", {"model": "m"}):
        file.write_text(json.dumps({"layers": [1], "found": hand_made}))
        assert not told("memit")
    record["found"]["model"]["fingerprint"] = "0" * 16
    file.write_text(json.dumps(record))
    words = ("--prompt", KNOWN, "--subject", "Ann Lee", "--target", "Lima", "--data", folder / "texts.txt")
    words = ("edit", folder / "model", *words, "--settings", file, "--set", "steps=1", "-o", folder / "p.safetensors")
    assert "was made for the model models/mine (0000000000000000)" in " ".join(run(*words).stderr.split())
    assert "this is other (not loaded)" in _plan_of(folder, file)
    result = run("edit", "world", *words[2:8], "--method", "grace", "--settings", file)
    assert result.exit_code == 2 and "the file was made for the method memit: give --method memit" in result.stderr


def _plan_of(folder: Path, settings: Path) -> str:
    """What is said of a plan of the same model under another name."""
    (folder / "model").rename(folder / "other")
    return " ".join(run("plan", folder / "other", "--settings", settings).stderr.split()).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", ""), ("a.json", "{}"), ("a.toml", "\n"), ("a.json", '{"found": {}}')]
)
def test_a_file_without_settings_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=r"holds no settings; --settings wants some .*errata locate MODEL"):
        read_settings(tmp_path / name)


def test_a_bench_tells_of_settings_for_another_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"lr": 0.01, "found": found_for("ft", "other", "0" * 16)}))
    planned = plan(methods=[{"name": "ft", "settings_file": str(file), "steps": 1}], data=[{"name": "x", "limit": 1}])
    planned = planned.model_copy(update={"settings": plan(settings=["single"]).settings})
    go(planned, tmp_path / "rows.jsonl")
    assert "was made for the model other (0000000000000000)" in caplog.text


def test_a_plan_that_does_not_fit_ends_with_code_3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("plan", folder / "model", "--method", "ft", "--json")
    assert run(*words).exit_code == 0
    monkeypatch.setattr("errata.cost.plan.free_host", lambda: 1000)
    result = run(*words)
    assert result.exit_code == 3 and json.loads(result.stdout)["fits"] is False
    result = run(*words[:-1])
    assert result.exit_code == 3 and "does not fit" in result.stdout


def test_settings_come_from_json_and_toml_and_a_word_goes_before_them(tmp_path: Path) -> None:
    from errata.cli.common import make_method

    (tmp_path / "a.toml").write_text('layers = [1, 2]\nsteps = 7\n[found]\nby = "hand"\n')
    made: Any = make_method("memit", ["steps=9"], file=tmp_path / "a.toml")
    assert made.layers == (1, 2) and made.steps == 9
    wrong = {"b.json": "[1]", "c.json": "{", "d.toml": "x =", "e.json": '{"layer": [1]}', "f.json": '{"layers": "x"}'}
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInput, match=name):
            make_method("memit", None, file=tmp_path / name)


def test_a_bench_file_names_a_file_of_settings(tmp_path: Path) -> None:
    from errata.bench.specs import MethodSpec

    (tmp_path / "a.json").write_text('{"layers": [1, 2], "steps": 3, "found": {}}')
    spec = MethodSpec.of({"name": "memit", "settings_file": str(tmp_path / "a.json"), "steps": 4})
    assert spec.settings == {"layers": [1, 2], "steps": 4} and spec.label == "layers=[1, 2] steps=4"
    with pytest.raises(BadInput, match="there is no file"):
        _ = MethodSpec.of({"name": "memit", "settings_file": str(tmp_path / "none.json")}).settings


def test_the_command_wants_facts_and_a_method_with_layers(tmp_path: Path) -> None:
    assert "either --edits FILE or --cases NAME" in run("locate", "world").stderr
    assert "layers are chosen for methods" in run("locate", "world", "--cases", "world", "--method", "grace").stderr
    assert run("locate", "world", "--edits", tmp_path / "none").exit_code == 2
