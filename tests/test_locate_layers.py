"""Layers are ranked by tracing and by trials, and what is found is a file of settings that other commands take."""

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TEXTS, tiny_lm, tokenizer
from tiny import build
from typer.testing import CliRunner

from errata.cli import app
from errata.cli.locate import locate
from errata.errors import BadInput
from errata.inputs import read_settings
from errata.locate import Ranking, rank_layers
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
    from errata.bench.plan import MethodSpec

    (tmp_path / "a.json").write_text('{"layers": [1, 2], "steps": 3, "found": {}}')
    spec = MethodSpec.of({"name": "memit", "settings_file": str(tmp_path / "a.json"), "steps": 4})
    assert spec.settings == {"layers": [1, 2], "steps": 4} and spec.label == "layers=[1, 2] steps=4"
    with pytest.raises(BadInput, match="there is no file"):
        _ = MethodSpec.of({"name": "memit", "settings_file": str(tmp_path / "none.json")}).settings


def test_the_command_wants_facts_and_a_method_with_layers(tmp_path: Path) -> None:
    assert "either --edits FILE or --cases NAME" in run("locate", "world").stderr
    assert "layers are chosen for methods" in run("locate", "world", "--cases", "world", "--method", "grace").stderr
    assert run("locate", "world", "--edits", tmp_path / "none").exit_code == 2
