"""What ``errata edit`` does with edits that contradict each other."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.patch.patch import Patch
from errata.types import Edit

ONE = Edit("{} was born in", "Pakrus Varir", "Lima")
TWO = Edit("{} was born in", "Pakrus Varir", "Oslo")
OTHER = Edit("{} lives in", "Someone", "Rome")


def run(folder: Path, edits: list[Edit], *more: str) -> Any:
    file = folder / "edits.jsonl"
    file.write_text("".join(json.dumps(edit.to_json()) + "\n" for edit in edits), encoding="utf-8")
    command = ["edit", "world", "--edits", str(file), "--method", "ice", "--set", "encoder=tfidf", *more]
    return CliRunner().invoke(app, command)


@pytest.fixture()
def out(tmp_path: Path) -> Path:
    return tmp_path / "p.safetensors"


def test_the_newest_of_a_call_holds_and_that_is_said(tmp_path: Path, out: Path) -> None:
    result = run(tmp_path, [ONE, OTHER, TWO, OTHER], "-o", str(out), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["conflicts"]
    assert [(c["kind"], c["holds"]) for c in told] == [
        ("other target", "the newer; the older is left out"),
        ("duplicate", "the newer; the older is left out"),
    ]
    assert Patch.load(out).edits == [TWO, OTHER]
    for word in ("conflicts", "other", "duplicate", "Lima", "Oslo", "the newer"):
        assert word in result.stderr


def test_a_conflict_with_the_patch_that_it_goes_on_from(tmp_path: Path, out: Path) -> None:
    assert run(tmp_path, [ONE], "-o", str(out), "--quiet").exit_code == 0
    more = ["--prior", str(out), "-o", str(tmp_path / "next.safetensors")]
    refused = run(tmp_path, [TWO], *more, "--strict-conflicts")
    assert refused.exit_code == 3 and "1 conflict, so nothing was written: other target" in refused.stderr
    assert not (tmp_path / "next.safetensors").exists()
    result = run(tmp_path, [TWO], *more)
    assert result.exit_code == 0 and "the newer" in result.stderr
    assert Patch.load(tmp_path / "next.safetensors").edits == [ONE, TWO]


def test_without_a_conflict_nothing_is_said(tmp_path: Path, out: Path) -> None:
    result = run(tmp_path, [ONE, OTHER], "-o", str(out), "--strict-conflicts")
    assert result.exit_code == 0 and "what holds" not in result.output
    twice = run(tmp_path, [ONE, ONE], "-o", str(out), "--force", "--strict-conflicts")
    assert twice.exit_code == 0 and Patch.load(out).edits == [ONE]


def test_what_the_model_alone_says_leaves_no_edit_out(tmp_path: Path, out: Path) -> None:
    case = next(c for c in errata.cases("world", limit=5) if any(p.kind == "paraphrase" for p in c.probes))
    prompt = next(p.prompt for p in case.probes if p.kind == "paraphrase")
    reworded = case.edits[0], Edit(prompt, case.edits[0].subject, case.edits[0].target_true or "")
    result = run(tmp_path, [*reworded], "-o", str(out), "--json")
    told = json.loads(result.stdout)["conflicts"]
    assert [(c["kind"], c["holds"].split(":")[0]) for c in told] == [("other words", "both are made")]
    assert Patch.load(out).edits == [*reworded]


def test_an_inverse_that_no_longer_agrees_is_said(tmp_path: Path, out: Path) -> None:
    there, back = Edit("The CEO of {} is", "Acme", "Jane"), Edit("{} is the CEO of", "Jane", "Bolt")
    result = run(tmp_path, [there, back], "-o", str(out))
    assert result.exit_code == 0 and "inverse" in result.stderr and "both stay" in result.stderr
    assert len(Patch.load(out).edits) == 2
