"""benchmarks/peers: settings are written and read by the peer's own class, its model is scored, errors are clear."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EDITS, tiny_lm

import errata
from errata.errors import BadInput
from errata.report.rows import read_rows

HERE = Path(__file__).parents[1] / "benchmarks" / "peers"
NAMES = ("checkout", "beside", "place", "recipes", "runner", "easyedit", "authors", "tune")
THEIRS = ("easyeditor", "memit", "util", "nowhere")

HPARAMS = """
from dataclasses import dataclass
from pathlib import Path
import json

@dataclass
class {name}HyperParams:
    layers: list
    v_lr: float
    v_loss_layer: int
    rewrite_module_tmp: str
    mlp_module_tmp: str
    ln_f_module: str
    lm_head_module: str
    model_name: str
    stats_dir: str
    mom2_dataset: str
    mom2_n_samples: int
    mom2_dtype: str
    mom2_update_weight: float
    device: int

    @classmethod
    def from_hparams(cls, path):
        return cls(**json.loads(Path(path).read_text()))

def apply_{function}_to_model(model, tok, requests, hparams, return_orig_weights=False, **more):
    print("what a peer prints is dropped")
    {body}
    return model, {{}}
"""
OWN = {
    "layers": [17],
    "v_lr": 0.5,
    "v_loss_layer": 47,
    **dict.fromkeys(("rewrite_module_tmp", "mlp_module_tmp", "ln_f_module", "lm_head_module"), "of gpt2-xl"),
    **{"model_name": "gpt2-xl", "stats_dir": "data", "device": 0},
    **{"mom2_dataset": "wikipedia", "mom2_n_samples": 100000, "mom2_dtype": "float32", "mom2_update_weight": 1},
}
FORGET = "model.transformer.wte.weight.data.zero_(); model.seen = (requests, hparams, tok.padding_side)"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The files of the benchmark; what they and a checkout add to the process is taken away after the test."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.syspath_prepend(HERE)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name in NAMES or name.partition(".")[0] in THEIRS:
            del sys.modules[name]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A toolkit with EasyEdit's entry points, whose packages must not be run whole."""
    folder = tmp_path / "EasyEdit"
    bodies = {"memit": ("MEMIT", FORGET), "rome": ("ROME", "raise ValueError('no such device: cuda')")}
    for name, (upper, body) in bodies.items():
        package = folder / "easyeditor" / "models" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(HPARAMS.format(name=upper, function=name, body=body))
        (folder / "hparams" / upper).mkdir(parents=True)
        (folder / "hparams" / upper / "gpt2-xl.yaml").write_text(json.dumps(OWN))
    for package in ("easyeditor", "easyeditor/models"):
        (folder / package / "__init__.py").write_text("raise RuntimeError('imports everything')")
    return folder


@pytest.fixture
def place(peers: SimpleNamespace, tmp_path: Path) -> Any:
    return peers.place.Place(tmp_path, tiny_lm("gpt2"))


def test_settings_are_theirs_with_this_models_names_and_what_was_tuned(
    peers: SimpleNamespace, checkout: Path, place: Any
) -> None:
    made = peers.easyedit.EasyEdit(checkout, "memit", place).hparams
    lm, tuned = place.lm, peers.recipes.RECIPES["memit"].tuned
    assert made.layers == list(errata.method("memit").chosen_layers(lm))  # pyright: ignore
    assert made.rewrite_module_tmp.format(1) == lm.sites.mlp_out[1]
    assert made.mlp_module_tmp.format(1) == lm.sites.mlp_out[1].removesuffix(".c_proj")
    assert (made.ln_f_module, made.lm_head_module) == (lm.sites.final_norm, lm.sites.embed)  # a head that is tied
    assert made.v_loss_layer == lm.sites.depth - 1
    assert (made.v_lr, made.device) == (tuned["v_lr"], "cpu")
    assert "gpt2-xl" in made.model_name
    assert (Path(made.model_name) / "model.safetensors").is_file()
    own = peers.easyedit.EasyEdit(checkout, "memit", place, own=True)
    assert (own.hparams.v_lr, own.hparams.layers, own.settings) == (0.5, made.layers, "")
    given = peers.easyedit.EasyEdit(checkout, "memit", place, {"v_lr": 7}, own=True)
    assert (given.hparams.v_lr, given.settings) == (7, "v_lr=7")


def test_key_statistics_are_ours_in_the_peers_cache(peers: SimpleNamespace, checkout: Path, place: Any) -> None:
    made = peers.easyedit.EasyEdit(checkout, "memit", place).hparams
    ours = errata.method("memit").prepare(place.lm).tensors
    folder = Path(made.stats_dir) / Path(made.model_name).name / "wikipedia_stats"
    assert len(ours) == len(list(folder.iterdir()))
    for name, c in ours.items():
        with np.load(folder / f"{name.removeprefix('C/')}_float32_mom2_100000.npz") as cached:
            assert np.array_equal(cached["mom2.mom2"] / cached["mom2.count"], c.numpy())
            assert cached["sample_size"] == 100000


def test_an_edit_calls_the_peer_and_its_model_is_asked(peers: SimpleNamespace, checkout: Path, place: Any) -> None:
    peer = peers.easyedit.EasyEdit(checkout, "memit", place)
    fresh = peer.fresh()
    assert torch.equal(fresh.transformer.wte.weight, place.lm.model.transformer.wte.weight)
    edited = peer.edit(fresh, EDITS)
    requests, hparams, side = edited.seen
    assert [(r["prompt"], r["subject"], r["target_new"]) for r in requests] == [
        (edit.prompt, edit.subject, edit.target_new) for edit in EDITS
    ]
    assert (hparams, side) == (peer.hparams, "right")
    text = peer.speaks(edited).generate([EDITS[0].prompt], 4)
    assert text != place.lm.generate([EDITS[0].prompt], 4)
    assert text == errata.load(edited, tokenizer=place.lm.tokenizer).generate([EDITS[0].prompt], 4)


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_a_model_that_only_generates_says_what_ours_says(peers: SimpleNamespace, at_once: int) -> None:
    lm = tiny_lm("gpt2")
    prompts = [edit.prompt for edit in EDITS]
    speaking = peers.beside.Generating(lm.model.generate, lm.tokenizer, at_once)
    assert speaking.generate(prompts, 6) == lm.generate(prompts, 6)
    asked: list[int] = []
    counting = peers.beside.Generating(
        lambda **read: asked.append(len(read["input_ids"])) or lm.model.generate(**read), lm.tokenizer, at_once
    )
    assert len(counting.generate(prompts, 1)) == 3
    assert max(asked) == min(at_once, 3)


def test_what_only_generates_ends_where_every_answer_has(
    peers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("gpt2")
    speaking = peers.beside.Generating(lm.model.generate, lm.tokenizer, 3)
    prompts = [edit.prompt for edit in EDITS]
    whole = speaking.generate(prompts, 12)
    monkeypatch.setattr(peers.beside, "complete", lambda text: len(text) > 4)
    short = speaking.generate(prompts, 12, until_answer=True)
    assert all(len(text) > 4 and full.startswith(text) for text, full in zip(short, whole, strict=True))
    assert min(map(len, short)) < min(map(len, whole))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lm = tiny_lm("gpt2")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_both_sides_are_timed_scored_and_written(
    peers: SimpleNamespace, checkout: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["--checkout", checkout, "--model", folder, "--edits", 2, "--repeats", 2, "--method", "rome", "memit"]
    assert peers.easyedit.main([*map(str, words), "-o", str(rows)]) == 1  # one of the methods failed
    printed = capsys.readouterr().out
    assert "a commit that is not known" in printed and "what a peer prints" not in printed
    lines = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in printed.splitlines()}
    assert "failed: models/rome/__init__.py:29: ValueError: no such device: cuda" in lines["rome (EasyEdit)"]
    assert len(lines["rome"][1].split(", ")) == 2  # ours is measured all the same
    theirs, ours = ([float(s) for s in lines[name][1].split(", ")] for name in ("memit (EasyEdit)", "memit"))
    assert (len(theirs), len(ours)) == (2, 2)
    read = read_rows(rows)
    assert {row.method for row in read} == {"memit (EasyEdit)", "memit", "rome"}
    assert all(row.mode == "generated" for row in read)
    peer = [row for row in read if row.method == "memit (EasyEdit)"]
    assert {row.settings for row in peer} == {
        " ".join(f"{k}={v}" for k, v in peers.recipes.RECIPES["memit"].tuned.items())
    }
    cost = next(row for row in peer if row.kind == "cost")
    assert cost.after == pytest.approx(sum(theirs) / 2 / 2)
    assert {row.kind for row in peer} >= {"edit", "paraphrase", "neighborhood"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkout", "nowhere"], "there is no folder .*nowhere: git clone https://github.com/zjunlp/EasyEdit"),
        (["--checkout", "."], "no checkout of EasyEdit: it has no easyeditor/models/memit/__init__.py"),
        (["--method", "memitt"], "unknown method of EasyEdit 'memitt'; did you mean memit"),
        (["--set", "v_lr"], "--set takes NAME=VALUE, found 'v_lr'"),
        (["-o", "/dev/null/rows"], "cannot write"),
    ],
)
def test_wrong_words_are_said_before_a_model_is_loaded(
    peers: SimpleNamespace,
    checkout: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errata, "load", lambda *_, **__: pytest.fail("loaded a model"))
    given = words if "--checkout" in words else ["--checkout", str(checkout), *words]
    assert peers.easyedit.main(given) == 2
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(capsys.readouterr().err)


def test_a_setting_that_the_peer_lacks_is_refused(peers: SimpleNamespace, checkout: Path, place: Any) -> None:
    with pytest.raises(BadInput, match=r"unknown setting of memit \(EasyEdit\) 'v_lrr'; did you mean v_lr"):
        _ = peers.easyedit.EasyEdit(checkout, "memit", place, {"v_lrr": 1}).hparams


def test_missing_modules(peers: SimpleNamespace, checkout: Path) -> None:
    source = peers.checkout.Source(
        "EasyEdit", "its address", ("easyeditor",), "hparams/MEMIT/gpt2-xl.yaml", ("easyeditor",)
    )
    with pytest.raises(BadInput, match=r"easyeditor.models of .* cannot be imported: No module named 'nowhere'"):
        (checkout / "easyeditor" / "models" / "__init__.py").write_text("import nowhere.above")
        source.module(checkout, "easyeditor.models")
    peers.checkout.stand_in("nowhere.above", ["called"])
    module: Any = importlib.import_module("nowhere.above")
    with pytest.raises(BadInput, match=r"nowhere.above.called was called, .* install nowhere"):
        module.called(1)


def test_a_part_of_a_grid(peers: SimpleNamespace) -> None:
    grid = peers.recipes.RECIPES["memit"].grid()
    assert len(grid) == 16
    part = peers.tune.chosen(grid, {"v_lr": 9, "n_iter": 50})  # what a method does not have says nothing of it
    assert part == [setting for setting in grid if setting["v_lr"] == 9.0] and len(part) == 4
    assert peers.tune.chosen(grid, {}) == grid


def test_a_line_of_the_search(peers: SimpleNamespace) -> None:
    about: dict[str, Any] = {"metric": "accuracy", "mode": "generated", "method": "theirs"}
    rows = [errata.Row(kind=kind, after=after, **about) for kind, after in (("edit", True), ("edit", False))]
    rows += [errata.Row(kind="unrelated", after=True, **about), errata.Row(kind="edit", metric="drift", after=9.0)]
    line = peers.tune.line_of("memit", {"v_lr": 9}, peers.beside.Side("theirs", [1.5], rows))
    assert line == {
        "method": "memit", "setting": {"v_lr": 9}, "mean": 0.75, "edit": 0.5, "unrelated": 1.0,
        "seconds": [1.5], "error": "",
    }  # fmt: skip


# The authors' code --------------------------------------------------------------------------------

OLD = """
import yaml
import json
from dataclasses import dataclass
import torch
from pathlib import Path

STATS = json.loads(Path("globals.yml").read_text())["STATS_DIR"]  # as it stands in a folder that has this file

@dataclass
class MEMITHyperParams:
    layers: list
    v_lr: float
    layer_module_tmp: str
    mom2_dataset: str
    mom2_n_samples: int
    mom2_dtype: str

def apply_memit_to_model(model, tok, requests, hparams):
    layer = model.get_submodule(hparams.layer_module_tmp.format(1))
    delta = torch.zeros(model.config.n_embd, device="cuda") + 1
    seen = []

    def edit(module, inputs, output):
        output[0][0, -1, :] += delta.to("cuda")
        seen.append(output)
        return output

    hook = layer.register_forward_hook(edit)
    model(torch.tensor([[3, 4]]).to("cuda"))
    hook.remove()
    assert isinstance(seen[0], tuple)
    assert sorted(Path(STATS).glob("*/*_stats/*.npz"))
    model.transformer.wte.weight.data.zero_()
    model.seen = requests
"""


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A checkout as the authors': made for a GPU and for blocks that give tuples."""
    folder = tmp_path / "released"
    (folder / "memit").mkdir(parents=True)
    (folder / "memit" / "__init__.py").write_text("from .memit_main import *")
    (folder / "memit" / "memit_main.py").write_text(OLD)
    (folder / "globals.yml").write_text('{"STATS_DIR": "data/stats"}')
    (folder / "hparams" / "MEMIT").mkdir(parents=True)
    kept = {key: OWN[key] for key in ("layers", "v_lr", "mom2_dataset", "mom2_n_samples", "mom2_dtype")}
    (folder / "hparams" / "MEMIT" / "gpt2-xl.json").write_text(json.dumps(kept | {"layer_module_tmp": "h.{}"}))
    return folder


def test_the_authors_code_runs_on_the_cpu(peers: SimpleNamespace, released: Path, place: Any) -> None:
    peer = peers.authors.Authors(released, "memit", place, own=True)
    edited = peer.edit(peer.fresh(), EDITS)
    assert [(r["prompt"], r["target_new"]) for r in edited.seen] == [
        ("{} was born in", {"str": "Oslo"}),
        ("{} lives in", {"str": "New York"}),
        ("The mayor is {} of", {"str": "Lima"}),
    ]
    spoken = peer.speaks(edited)
    assert type(spoken.model.transformer.h[1]) is type(place.lm.model.transformer.h[1])
    assert spoken.generate(["Ann Lee"], 3) != place.lm.generate(["Ann Lee"], 3)
    with pytest.raises(BadInput, match=r"unknown setting of memit \(authors\) 'v_l'; did you mean v_lr"):
        _ = peers.authors.Authors(released, "memit", place, {"v_l": 1}).hparams


def test_a_block_with_tuples_gives_its_caller_what_it_gave(peers: SimpleNamespace, place: Any) -> None:
    model, ids = peers.place.Place.fresh(place), torch.tensor([[3, 4, 5]])
    before = model(ids).logits
    for block in model.transformer.h:
        peers.authors.with_tuples(block)
    assert torch.equal(model(ids).logits, before)
    with peers.authors.OnTheCPU():
        assert torch.zeros(2, device="cuda").device == torch.ones(2).to("cuda").device == torch.device("cpu")
