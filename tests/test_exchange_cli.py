"""``errata export``, ``import`` and ``audit``: what they write and print, and what a mistake ends with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, quick, tiny_model, tokenizer
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.patch.delta import Delta
from errata.patch.patch import Patch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, an adapter's base, and a patch of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_model("gpt2", torch.float32).save_pretrained("base")
    tokenizer().save_pretrained("base")
    dense = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    Patch((Delta({"transformer.h.1.mlp.c_proj.weight": dense}),)).save("dense.safetensors")
    quick("lora").edit(errata.load("base"), [EDIT]).save("p.safetensors")
    return tmp_path


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    shown = f"{result.stdout}\n{result.stderr}"
    assert result.exit_code == code and (result.exception is None or isinstance(result.exception, SystemExit)), shown
    return result


def test_out_and_in_again_and_audited() -> None:
    made = json.loads(run("export", "base", "p.safetensors", "--to", "peft", "-o", "a", "--json", "-q").stdout)
    assert made["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"] and not made["lost"]
    run("export", "base", "p.safetensors", "--to", "merged", "-o", "m", "--shard-size", "30KB")
    run("export", "base", "p.safetensors", "--to", "patch", "-o", "h", "--license", "mit")
    assert "license: mit" in Path("h/README.md").read_text() and Patch.load("h/patch.safetensors")
    run("import", "base", "--peft", "a", "-o", "from-a.safetensors")
    told = json.loads(run("import", "base", "--edited", "m", "-o", "from-m.safetensors", "--json", "-q").stdout)
    assert {part["site"] for part in told["parts"]} == {
        part["site"] for part in Patch.load("from-a.safetensors").summary()
    }
    Path("s.txt").write_text("Ann Lee\nBob Ray\n")
    found = json.loads(
        run("audit", "base", "m", "--subjects", "s.txt", "--patch", "p.safetensors", "--json", "-q").stdout
    )
    assert found["claim"]["holds"] and {one["subject"] for one in found["suspects"]} == {"Ann Lee", "Bob Ray"}
    table = run("audit", "base", "m", "--subjects", "s.txt", "--patch", "p.safetensors").stdout
    assert "weights that differ" in table and "the patch is all that differs" in table and "in the patch" in table
    alone = run("audit", "base", "m")
    assert "--subjects FILE" in alone.stderr and "suspects" not in alone.stdout
    assert "in no weight" in run("audit", "base", "base").stdout
    Path("t.txt").write_text("So Ann Lee was born in Rome.\nThen Ann Lee slept.\n")
    assert "named in the texts" in run("audit", "base", "m", "--texts", "t.txt").stdout


def test_mistakes() -> None:
    before = sorted(Path().rglob("*"))
    Path("r.json").write_text("[1]")
    export = ("export", "base", "p.safetensors", "-o", "x", "-q", "--to")
    for words, said in (
        ((*export, "gguf"), "unknown form 'gguf'"),
        ((*export, "merged", "--rank", "3"), "--rank is of adapters"),
        ((*export, "patch", "--review", "r.json"), "an object"),
        ((*export, "patch", "--license", "no licence"), "a licence is"),
        ((*export, "merged", "--shard-size", "x"), "written as 5GB"),
        (("export", "base", "gone.safetensors", "-o", "x", "--to", "peft"), "there is no patch"),
        (("export", "base", "p.safetensors", "-o", "base", "--to", "merged"), "exists; add --force"),
        (("import", "base", "-o", "x"), "either --peft"),
        (("import", "base", "-o", "x", "--peft", "a", "--edited", "b"), "either --peft"),
        (("import", "base", "-o", "x", "--peft", "a", "--exact"), "--exact is of checkpoints"),
        (("import", "base", "-o", "p.safetensors", "--peft", "a"), "--force"),
        (("import", "base", "-o", "x", "--peft", "base", "-q"), "adapter_config.json"),
        (("import", "base", "-o", "x", "--edited", "base", "-q"), "differs from base in no weight"),
        (("import", "base", "-o", "x", "--edited", "gone", "-q"), "there is no model"),
        (("audit", "base", "gone", "-q"), "there is no model"),
    ):
        result = run(*words, code=2)
        assert said in result.stderr and not result.stdout, result.stderr
    assert sorted([*before, Path("r.json")]) == sorted(Path().rglob("*"))


def test_a_dense_change_is_cut_where_that_is_asked_for() -> None:
    refusal = run("export", "base", "dense.safetensors", "--to", "peft", "-o", "x", "-q", code=2)
    assert "of rank 32" in refusal.stderr and "--rank R" in refusal.stderr and not Path("x").exists()
    result = run("export", "base", "dense.safetensors", "--to", "peft", "-o", "y", "--rank", 1)
    assert "was cut off" in result.stderr
