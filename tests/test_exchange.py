"""Patches as LoRA adapters, whole models and folders for a hub, and back: what is written says what the patch says."""

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ARCHITECTURES, EDIT, EDITS, TEXTS, data_for, quick, same_weights, tiny_lm, tokenizer, weights
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from tiny import build
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.errors import BadInput, Refused, Unsupported, WrongModel
from errata.exchange import card, from_checkpoints, from_peft, to_folder, to_merged, to_peft
from errata.exchange.difference import differences, leading, rounding
from errata.methods.registry import METHODS
from errata.methods.state import State
from errata.model import weights as weights_of
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import EMPTY, Patch
from errata.patch.peft import CONFIG, TENSORS, lora_files
from errata.types import Edit

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
PROMPTS = [*(edit.prompt for edit in EDITS), "Rome"]
SITE = "transformer.h.{}.mlp.c_proj.weight"


def logits(lm: HFLM, model: Any = None) -> Tensor:
    """The model's logits at every token of some prompts, one after the other."""
    model = lm.model if model is None else model
    rows = [torch.tensor([lm.tokens.prompt(prompt)]) for prompt in PROMPTS]
    with torch.no_grad():
        return torch.cat([model(input_ids=ids).logits[0].float() for ids in rows])


def edited_logits(lm: HFLM, patch: Patch) -> Tensor:
    with patch.applied(lm):
        return logits(lm)


def by_peft(lm: HFLM, folder: Path) -> Tensor:
    """The logits of a copy of the model with the adapter in the folder, as peft loads it."""
    from peft import PeftModel

    return logits(lm, PeftModel.from_pretrained(copy.deepcopy(lm.model), folder).eval())


def made(name: str, lm: HFLM, edits: Sequence[Edit] = (EDIT,)) -> Patch:
    method = quick(name)
    state = method.prepare(lm, data_for(method)) if method.needs_prepare else State()
    return method.edit(lm, list(edits), state)


def changed(patch: Patch) -> list[Any]:
    return list(patch.of_kind(Delta)[0].weights.values())


def low_rank(lm: HFLM, ranks: Sequence[int], seed: int = 0) -> Patch:
    """A random change of rank ``ranks[i]`` of the down projection of block i."""
    draw = torch.Generator().manual_seed(seed)
    changes: dict[str, Any] = {}
    for path, r in zip(lm.sites.mlp_out, ranks, strict=False):
        a, b = torch.randn(32, r, generator=draw) * 0.2, torch.randn(r, 64, generator=draw)
        changes[f"{path}.weight"] = LowRank(a, b)
    return Patch((Delta(changes),), meta={"model": {"name": lm.name, "fingerprint": lm.fingerprint}, "made": []})


# LoRA adapters -----------------------------------------------------------------------------------


@pytest.mark.slow  # as the laws: every method prepares and edits, in three architectures
@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_says_what_the_patch_of_any_method_says(name: str, tmp_path: Path) -> None:
    for arch in ARCHITECTURES:
        lm = tiny_lm(arch)
        patch, folder = made(name, lm), tmp_path / arch
        if not all(isinstance(part, Delta) for part in patch.parts):
            with pytest.raises(Unsupported, match=r"only changes of weights .* holds .*errata ask --patch"):
                patch.to_peft(folder, lm)
            assert not folder.exists()
            return  # of the same kind in every architecture
        if any(len(w.shape) == 1 for w in changed(patch)):  # a whole block was trained, its norms too
            with pytest.raises(Unsupported, match=r"no matrix of a linear layer.*--to merged"):
                patch.to_peft(folder, lm, rank=32)
            assert not folder.exists()
            continue
        try:
            patch.to_peft(folder, lm)
        except Unsupported as error:
            assert "is of rank" in str(error) and not folder.exists()
            assert not all(isinstance(w, LowRank) for w in changed(patch))
            patch.to_peft(folder, lm, rank=32)  # as many as a matrix here can have
        assert (by_peft(lm, folder) - edited_logits(lm, patch)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("arch", "dtype", "near"), [("gemma3_text", torch.float32, 1e-4), ("llama", torch.bfloat16, 0.1)]
)
def test_an_adapter_behind_a_norm_and_in_bfloat16(arch: str, dtype: torch.dtype, near: float, tmp_path: Path) -> None:
    lm = tiny_lm(arch, dtype)
    patch = made("memit", lm, EDITS)
    to_peft(lm, patch, tmp_path / "adapter")
    plain, edited = logits(lm), edited_logits(lm, patch)
    assert (by_peft(lm, tmp_path / "adapter") - edited).abs().max() < near < (edited - plain).abs().max() / 4


@pytest.mark.parametrize("target", ["mlp_in", "attn_out"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_adapter_of_other_linear_layers(arch: str, target: str, tmp_path: Path) -> None:
    lm = tiny_lm(arch)
    paths = [lm.sites.attn_out[1]] if target == "attn_out" else lm.sites.mlp_in[1]
    change = {f"{path}.weight": torch.zeros(lm.model.get_submodule(str(path)).weight.shape) for path in paths}
    if arch == "gpt2":
        change = {name: value.T for name, value in change.items()}
    for value in change.values():
        value[3:5] = torch.randn(2, value.shape[1])  # of rank two, though dense
    patch = Patch((Delta(change),))
    folder = patch.to_peft(tmp_path / "a", lm)
    assert json.loads((folder / CONFIG).read_text())["r"] == 2
    assert (by_peft(lm, folder) - edited_logits(lm, patch)).abs().max() < 1e-4


def test_each_module_has_its_rank_and_a_scaling_of_one(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    patch = low_rank(lm, [3, 7, 3, 1])
    folder = patch.to_peft(tmp_path / "a", lm)
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / TENSORS)
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (7, 7, True)
    assert sorted(config["rank_pattern"].values()) == [1, 3, 3] == sorted(config["alpha_pattern"].values())
    base = "base_model.model.transformer.h.1.mlp.c_proj"
    assert tensors[f"{base}.lora_A.weight"].shape == (7, 64) and tensors[f"{base}.lora_B.weight"].shape == (32, 7)
    assert set(config["target_modules"]) == {name.removeprefix("base_model.model.")[:-14] for name in tensors}
    assert (by_peft(lm, folder) - edited_logits(lm, patch)).abs().max() < 1e-4
    loaded = from_peft(lm, folder)
    for name, w in patch.of_kind(Delta)[0].weights.items():
        again = loaded.of_kind(Delta)[0].weights[name]
        assert isinstance(w, LowRank) and isinstance(again, LowRank)
        assert torch.equal(again.dense(), w.dense()) and again.rank == w.rank


def test_factors_of_unequal_size_fit_half_precision(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    a, b = torch.rand(32, 1) * 1e5 + 1e4, torch.rand(1, 64) * 1e-7 + 1e-8
    patch = Patch((Delta({SITE.format(1): LowRank(a, b)}),))
    tensors = load_file(patch.to_peft(tmp_path / "a", lm) / TENSORS)
    big, small = (next(t for name, t in tensors.items() if side in name) for side in ("lora_B", "lora_A"))
    assert torch.equal(big @ small, a @ b)  # powers of two round nothing
    for t in (big, small):
        assert torch.allclose(t.half().float(), t, rtol=1e-3, atol=0)


def test_an_adapter_without_the_model(tmp_path: Path) -> None:
    lm = tiny_lm("gpt_neox")
    patch = low_rank(lm, [2, 2])
    assert (by_peft(lm, patch.to_peft(tmp_path / "a")) - edited_logits(lm, patch)).abs().max() < 1e-4
    head = Patch((Delta({f"{lm.sites.lm_head}.weight": torch.zeros(320, 32).index_fill_(0, torch.tensor(3), 1.0)}),))
    with pytest.raises(Unsupported, match=r"only the model tells .*to_peft\(folder, lm\)"):
        head.to_peft(tmp_path / "b")
    assert (by_peft(lm, head.to_peft(tmp_path / "b", lm)) - edited_logits(lm, head)).abs().max() < 1e-4


def test_a_dense_change_of_full_rank_is_refused_or_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("llama")
    change = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    patch = Patch((Delta({f"{lm.sites.mlp_out[1]}.weight": change}),))
    with pytest.raises(Unsupported, match=r"of rank 32, of 32 .* --rank R .* --to merged"):
        patch.to_peft(tmp_path / "a", lm)
    assert not (tmp_path / "a").exists()
    exported = to_peft(lm, patch, tmp_path / "a", rank=5)
    s = torch.linalg.svdvals(change.double())
    lost = float(s[5:].norm() / s.norm())
    assert exported.lost == pytest.approx({f"{lm.sites.mlp_out[1]}.weight": lost})
    assert "was cut off" in (tmp_path / "a" / "README.md").read_text() and "cut to rank 5" in caplog.text
    got = from_peft(lm, tmp_path / "a").of_kind(Delta)[0].weights[f"{lm.sites.mlp_out[1]}.weight"]
    assert isinstance(got, LowRank) and got.rank == 5
    assert float((got.dense() - change).norm() / change.norm()) == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transformer.wte.weight": torch.ones(320, 32)}, "Embedding"),
        ({"lm_head.weight": torch.ones(320, 32)}, "does not have|Embedding|too"),
        ({"transformer.h.1.mlp.c_proj.bias": torch.ones(32)}, "no matrix"),
        ({"transformer.h.1.ln_1.weight": torch.ones(32)}, "no matrix"),
        ({SITE.format(1): torch.zeros(32, 64)}, "changes no weight"),
    ],
)
def test_what_no_adapter_holds_is_refused(change: dict[str, Tensor], words: str, tmp_path: Path) -> None:
    with pytest.raises((Unsupported, WrongModel), match=words):
        Patch((Delta(change),)).to_peft(tmp_path / "a", tiny_lm("gpt2"))
    assert not list(tmp_path.iterdir())


def test_tied_weights_experts_and_other_models_are_refused(tmp_path: Path) -> None:
    lm = tiny_lm("gemma3_text")  # whose head is its embedding
    tied = Patch((Delta({"model.embed_tokens.weight": torch.ones(320, 32)}),))
    with pytest.raises(Unsupported, match="--to merged"):
        tied.to_peft(tmp_path / "a", lm)
    moe = tiny_lm("qwen3_moe")
    expert = Patch((Delta({"model.layers.1.mlp.experts.down_proj[2]": LowRank(torch.ones(32, 1), torch.ones(1, 16))}),))
    with pytest.raises(Unsupported, match=r"one expert of a stack, .*to_peft\(folder, lm\)"):
        expert.to_peft(tmp_path / "a")
    plain = Patch((Delta({"model.layers.1.mlp.gate[0]": LowRank(torch.ones(32, 1), torch.ones(1, 16))}),))
    with pytest.raises(Unsupported, match="is no expert of a stack"):
        lora_files(plain.of_kind(Delta)[0].weights, moe)
    with pytest.raises(WrongModel):
        low_rank(tiny_lm("gpt2"), [1]).to_peft(tmp_path / "a", lm)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(BadInput, match="rank is a whole number"):
            low_rank(lm, [1]).to_peft(tmp_path / "a", lm, rank=wrong)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="changes no weight"):
        EMPTY.to_peft(tmp_path / "a", lm)
    assert not list(tmp_path.iterdir())


def experts_of(lm: HFLM, ranks: Sequence[int], leaves: Sequence[str], seed: int = 0) -> Patch:
    """A random change of rank ``ranks[i]`` of expert i, in the stacks of these names of the first block with some."""
    draw, changes = torch.Generator().manual_seed(seed), dict[str, Any]()
    layer = next(i for i in range(4) if any("experts" in path for path in lm.sites.experts_of(i)))
    stack = next(path for path in lm.sites.experts_of(layer) if path.endswith("experts"))
    for leaf in leaves:
        for e, r in enumerate(ranks):
            out, into = weights_of.shape_of(lm.model, f"{stack}.{leaf}[{e}]")
            pair = torch.randn(out, r, generator=draw), torch.randn(r, into, generator=draw)
            changes |= {f"{stack}.{leaf}[{e}]": LowRank(*pair)} if r else {}
    changes[f"{lm.sites.attn_out[1]}.weight"] = LowRank(torch.ones(32, 1), torch.ones(1, 32))
    return Patch((Delta(changes),))


@pytest.mark.parametrize("leaves", [["down_proj"], ["down_proj", "gate_up_proj"]], ids=["one", "nested"])
@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe", "gpt_oss", "llama4_text"])
def test_an_adapter_of_stacked_experts(arch: str, leaves: list[str], tmp_path: Path) -> None:
    """Stored (out, in), (in, out) by their own word, and (in, out) without one; experts of several ranks and none."""
    lm = tiny_lm(arch)
    patch = experts_of(lm, [1, 0, 3, 2], leaves)
    exported = to_peft(lm, patch, tmp_path / "a")
    edited = edited_logits(lm, patch)
    assert (by_peft(lm, exported.folder) - edited).abs().max() < 1e-4 < (edited - logits(lm)).abs().max() / 4
    config = json.loads((exported.folder / CONFIG).read_text())
    assert [name.rpartition(".")[2] for name in config["target_parameters"]] == leaves and config["r"] == 3
    assert same_changes(from_peft(lm, exported.folder), patch)


def same_changes(one: Patch, two: Patch) -> bool:
    """Whether two patches change the same matrices by products of the same rank, to the last bit."""
    weights, others = (patch.of_kind(Delta)[0].weights for patch in (one, two))
    assert weights.keys() == others.keys()
    pairs = [(weights[name], others[name]) for name in weights]
    return all(
        isinstance(w, LowRank) and isinstance(v, LowRank) and w.rank == v.rank and torch.equal(w.dense(), v.dense())
        for w, v in pairs
    )


def test_an_adapter_of_parameters_that_others_wrote(tmp_path: Path) -> None:
    """Parameters named by the end of their names, in an order of their own, with a scaling; and by an older peft."""
    lm = tiny_lm("mixtral")
    patch = experts_of(lm, [1, 0, 3, 2], ["down_proj", "gate_up_proj"])
    folder = patch.to_peft(tmp_path / "a", lm)
    config = json.loads((folder / CONFIG).read_text())
    stack = config["target_parameters"][0].rpartition(".")[0].partition(".layers.")[2]  # "1.mlp.experts"
    other = 1 - int(stack[0])
    ends = [f"{stack}.gate_up_proj", f"{stack}.down_proj"]
    told = config | {"target_parameters": ends, "lora_alpha": 6, "alpha_pattern": {}}
    (folder / CONFIG).write_text(json.dumps(told))
    found = from_peft(lm, folder)
    assert (by_peft(lm, folder) - edited_logits(lm, found)).abs().max() < 1e-4
    for change, message in (
        ({"peft_version": "0.18.1"}, r"from 0.19.1 on, and this adapter is of '0.18.1'"),
        ({"peft_version": None}, "this adapter is of None"),
        ({"target_parameters": "experts"}, "target_parameters is a list of names"),
        ({"target_parameters": [*ends, f"{other}.mlp.experts.down_proj"]}, f"has no factors of model.layers.{other}"),
        ({"target_parameters": [*ends, "embed_tokens.weight"]}, "neither a linear layer's matrix nor a stack"),
        ({"target_parameters": ends[:1]}, rf"adapts 'model.layers.{stack}.base_layer', which"),
        ({"r": 4}, "are of rank 3, and adapter_config.json says 4"),
    ):
        (folder / CONFIG).write_text(json.dumps(told | change))
        with pytest.raises(BadInput, match=message):
            from_peft(lm, folder)


@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_an_adapter_of_edits_in_a_mixture_and_its_shared_expert(arch: str, tmp_path: Path) -> None:
    lm = tiny_lm(arch)
    patch = made("memit", lm, EDITS)
    names = [name for delta in patch.of_kind(Delta) for name in delta.weights]
    assert any("[" in name for name in names) and (arch != "qwen2_moe" or any("shared" in name for name in names))
    edited = edited_logits(lm, patch)
    near = 1e-4 * float((edited - logits(lm)).abs().max()) + 1e-4
    folder = patch.to_peft(tmp_path / "a", lm)
    assert (by_peft(lm, folder) - edited).abs().max() < near
    assert same_changes(from_peft(lm, folder), patch)


# Folders -----------------------------------------------------------------------------------------


def test_a_folder_is_replaced_with_force_alone_and_only_an_export(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    first, second = low_rank(lm, [1]), low_rank(lm, [2])
    folder = tmp_path / "a"
    to_peft(lm, first, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(BadInput, match="exists; add --force"):
        to_peft(lm, second, folder)
    with pytest.raises(BadInput, match=r"holds no config.json, so it is no earlier export"):
        to_merged(lm, second, folder, force=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    to_peft(lm, second, folder, force=True)
    assert json.loads((folder / CONFIG).read_text())["r"] == 2
    (folder / "own").mkdir()
    with pytest.raises(BadInput, match="holds own, so it is no earlier export"):
        to_peft(lm, first, folder, force=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(folder)
    for name, what in (("file", "a file"), ("link", "a symbolic link")):
        with pytest.raises(BadInput, match=f"{what} stands there"):
            to_peft(lm, first, tmp_path / name, force=True)
    (tmp_path / "empty").mkdir()
    to_peft(lm, first, tmp_path / "empty")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    to_peft(lm, low_rank(lm, [1]), tmp_path / "a")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a, **k: 1 / 0)
    for folder in ("a", "b"):
        with pytest.raises(ZeroDivisionError):
            to_peft(lm, low_rank(lm, [2]), tmp_path / folder, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before


# Whole models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "gemma3_text", "qwen3_moe"])
def test_a_merged_model_is_the_edited_one(arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lm = tiny_lm(arch, dtype)
    patch = made("memit", lm, EDITS)
    before, config = weights(lm.model), lm.config.to_dict()
    exported = to_merged(lm, patch, tmp_path / "m", shard_size="30KB")
    assert same_weights(lm.model, before) and lm.config.to_dict() == config and lm.model.config is lm.config
    assert sum(name.endswith(".safetensors") for name in exported.files) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").eval()
    assert loaded.dtype == dtype
    merged = HFLM(copy.deepcopy(lm.model), tokenizer(), sites=lm.sites)
    patch.merge(merged)
    assert same_weights(loaded, weights(merged.model))
    if dtype == torch.float32:
        assert (logits(lm, loaded) - edited_logits(lm, patch)).abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "m")(TEXTS[0]) == lm.tokenizer(TEXTS[0])
    again = from_checkpoints(lm, tmp_path / "m", exact=True)
    copied = copy.deepcopy(lm.model)
    again.merge(HFLM(copied, tokenizer(), sites=lm.sites))
    assert same_weights(copied, weights(loaded))


def test_a_merged_model_keeps_template_and_generation_settings(tmp_path: Path) -> None:
    model, own = copy.deepcopy(tiny_lm("llama").model), copy.deepcopy(tokenizer())
    own.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model.generation_config.max_new_tokens = 7
    lm = HFLM(model, own, name="chatty")
    to_merged(lm, low_rank(lm, [1]), tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert loaded.generation_config.max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == own.chat_template


def test_tied_weights_are_merged_under_both_names(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    patch = Patch((Delta({"transformer.wte.weight": torch.randn(320, 32)}),))
    to_merged(lm, patch, tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert (logits(lm, loaded) - edited_logits(lm, patch)).abs().max() < 1e-5


def test_rounding_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("llama", torch.bfloat16)
    patch = low_rank(lm, [1, 1]) * 1e-3
    exported = to_merged(lm, patch, tmp_path / "m")
    assert exported.rounded == patch.rounded_away(lm) and len(exported.rounded) == 2
    assert "rounding left" in (tmp_path / "m" / "README.md").read_text() and "rounding leaves" in caplog.text


def test_what_cannot_be_merged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2", torch.float16)
    with pytest.raises(Refused, match="not finite"):
        to_merged(lm, low_rank(lm, [1]) * 1e6, tmp_path / "m")
    with pytest.raises(BadInput, match="written as 5GB"):
        to_merged(lm, low_rank(lm, [1]), tmp_path / "m", shard_size="much")
    with pytest.raises(Unsupported, match="only changes of weights can be merged"):
        to_merged(lm, made("ice", lm), tmp_path / "m")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(BadInput, match="1,000 are free"):
        to_merged(lm, low_rank(lm, [1]), tmp_path / "m")
    assert not list(tmp_path.iterdir())


# From checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3_text"])
def test_the_rank_of_an_edit_is_found_through_rounding(arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lm = tiny_lm(arch, dtype)
    to_merged(lm, low_rank(lm, [1, 5, 0, 9]), tmp_path / "m")
    patch = from_checkpoints(lm, tmp_path / "m")
    ranks = {name: record["rank"] for name, record in patch.meta["imported"]["weights"].items()}
    assert ranks == {f"{lm.sites.mlp_out[i]}.weight": r for i, r in ((0, 1), (1, 5), (3, 9))}
    assert all(isinstance(w, LowRank) for w in patch.of_kind(Delta)[0].weights.values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").eval()
    merged = patch.merged(lm)
    assert merged.keys() == ranks.keys()
    for name, value in merged.items():  # as saved, but for the last bit of some
        saved = loaded.get_parameter(name).data.double()
        assert (value.double() - saved).norm() < torch.finfo(dtype).eps * saved.norm()
    assert Patch.load(patch.save(tmp_path / "p.safetensors")) == patch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sizes_are_relative_to_the_base_and_a_whole_difference_has_its_rank(dtype: torch.dtype) -> None:
    lm = tiny_lm("llama", dtype)
    other = HFLM(copy.deepcopy(lm.model), tokenizer(), sites=lm.sites)
    patch = low_rank(lm, [3]) * 10  # so that the base's weight and the edited one are of other sizes
    patch.merge(other)
    ((name, w),) = patch.of_kind(Delta)[0].weights.items()
    assert isinstance(w, LowRank)
    want = float(w.dense().norm() / lm.model.get_parameter(name).detach().float().norm())
    for exact in (False, True):
        ((change, kept),) = differences(lm, other, exact=exact)
        assert change.rank == 3 and isinstance(kept, Tensor) == exact
        assert change.relative == pytest.approx(want, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arch", ["gpt2", "qwen3_moe"])
def test_an_exact_difference_gives_the_edited_weight_to_the_last_bit_whatever_its_size(
    arch: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """W + fl(W' − W) is not always W' in one precision: where W' is far smaller than W, or of the other sign."""
    lm = tiny_lm(arch, dtype)
    other = copy.deepcopy(lm.model)
    name = "transformer.h.1.mlp.c_proj.weight" if arch == "gpt2" else "model.layers.1.mlp.experts.down_proj"
    down: Any = other.get_parameter(name)
    turned = torch.randn(down.shape, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-4, 4).repeat(
        down.shape[-1] // 8
    )
    down.data = turned.to(dtype)
    edited = HFLM(other, tokenizer(), sites=lm.sites)
    patch = from_checkpoints(lm, edited, exact=True)
    saved = Patch.load(patch.save(tmp_path / "p.safetensors"))
    with saved.applied(lm) as changed:
        assert same_weights(changed.model, weights(other))
    saved.merge(merged := HFLM(copy.deepcopy(lm.model), tokenizer(), sites=lm.sites))
    assert same_weights(merged.model, weights(other))


def test_a_product_is_cut_to_a_rank(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    patch = low_rank(lm, [7, 2])
    exported = to_peft(lm, patch, tmp_path / "a", rank=3)
    name = f"{lm.sites.mlp_out[0]}.weight"
    w = patch.of_kind(Delta)[0].weights[name]
    assert isinstance(w, LowRank)
    s = torch.linalg.svdvals(w.dense().double())
    assert exported.lost == pytest.approx({name: float(s[3:].norm() / s.norm())}, rel=1e-4)
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["r"] == 3 and list(config["rank_pattern"].values()) == [2]


def test_a_base_in_more_precision_than_the_edited_model(tmp_path: Path) -> None:
    """What only rounding to the edited model's type makes is no difference."""
    half, lm = tiny_lm("llama", torch.bfloat16), tiny_lm("llama")
    patch = low_rank(half, [0, 2])
    to_merged(half, patch, tmp_path / "m")
    found = from_checkpoints(lm, tmp_path / "m").of_kind(Delta)[0]
    (name, w), *more = found.weights.items()
    assert not more and name == f"{lm.sites.mlp_out[1]}.weight" and isinstance(w, LowRank) and w.rank == 2
    want = patch.of_kind(Delta)[0].weights[name]
    assert isinstance(want, LowRank) and (w.dense() - want.dense()).norm() < 0.02 * want.dense().norm()


def test_full_changes_vectors_and_embeddings_are_kept_whole(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    draw = torch.Generator().manual_seed(0)
    change = {
        "transformer.wte.weight": torch.randn(320, 32, generator=draw),
        "transformer.h.2.attn.c_attn.weight": torch.randn(96, 32, generator=draw),
        "transformer.h.2.ln_1.bias": torch.randn(32, generator=draw),
    }
    to_merged(lm, Patch((Delta(change),)), tmp_path / "m")
    found = from_checkpoints(lm, tmp_path / "m").of_kind(Delta)[0].weights
    assert found.keys() == change.keys()
    for name, value in change.items():
        w = found[name]
        assert isinstance(w, Tensor) and torch.allclose(w, value, atol=1e-5)


def test_experts_whose_names_differ_on_disk_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("qwen3_moe")
    expert = "model.layers.1.mlp.experts.down_proj[2]"
    patch = Patch((Delta({expert: LowRank(torch.ones(32, 1), torch.ones(1, 16))}),))
    with caplog.at_level(logging.WARNING):
        to_merged(lm, patch, tmp_path / "m")
        found = from_checkpoints(lm, tmp_path / "m")
    assert "the whole of it is loaded" in caplog.text
    w = found.of_kind(Delta)[0].weights[expert]
    assert len(found.of_kind(Delta)[0].weights) == 1 and isinstance(w, LowRank) and w.rank == 1


def test_a_model_in_memory_can_be_compared_and_equal_ones_give_nothing(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    same = HFLM(copy.deepcopy(lm.model), tokenizer(), sites=lm.sites)
    assert not from_checkpoints(lm, same) and not from_checkpoints(lm, same, exact=True)
    low_rank(lm, [2]).merge(same)
    found = from_checkpoints(lm, same)
    assert [w.rank for w in found.of_kind(Delta)[0].weights.values() if isinstance(w, LowRank)] == [2]


def test_other_models_pickles_and_broken_files_are_refused(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    folder = tmp_path / "m"
    to_merged(lm, low_rank(lm, [1]), folder)
    with pytest.raises(WrongModel, match=r"config\.json has"):
        from_checkpoints(tiny_lm("llama"), folder)
    other = HFLM(build("gpt2", vocab_size=320, n_inner=32), tokenizer(), name="narrow")
    with pytest.raises(WrongModel, match=r"config\.json has n_inner"):
        from_checkpoints(other, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="is broken or not whole"):
        from_checkpoints(lm, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="a pickle, which can run code"):
        from_checkpoints(lm, folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(BadInput, match=r"holds no model\.safetensors"):
        from_checkpoints(lm, folder)
    for files in ({"a": "../x.safetensors"}, {"a": "gone.safetensors"}, {}, {"a": 1}, [1]):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        with pytest.raises(BadInput):
            from_checkpoints(lm, folder)
    tensors = {name: t.clone() for name, t in lm.model.state_dict().items() if name != "lm_head.weight"}
    tensors["transformer.h.1.mlp.c_proj.weight"][0, 0] = float("nan")
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="not finite"):
        from_checkpoints(lm, folder)


def test_leading_singular_values_of_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    d = torch.randn(90, 6, generator=draw) @ torch.randn(6, 70, generator=draw)
    want = torch.linalg.svdvals(d.double())
    for limit in (2048, 10):  # all of them, and the first by a random range
        monkeypatch.setattr("errata.exchange.difference.WHOLE", limit)
        monkeypatch.setattr("errata.exchange.difference.PROBED", 20)
        u, s, whole = leading(d)
        assert whole == (limit == 2048)
        assert torch.allclose(s[:6], want[:6]) and (s[6:] < 1e-5 * s[0]).all()
        assert torch.allclose(u[:, :6] @ (u[:, :6].T @ d.double()), d.double(), atol=1e-5)


def test_rounding_bounds_what_rounding_makes() -> None:
    draw = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        w = torch.randn(200, 100, generator=draw) * torch.rand(200, 1, generator=draw)
        error = torch.linalg.matrix_norm((w.to(dtype).float() - w).double(), 2)
        assert 0.4 * rounding(w, dtype) < error < rounding(w, dtype)


# Cards -------------------------------------------------------------------------------------------

HOSTILE = "a | b\n# no heading <b>bold</b> [link](http://x.y) `code` *star* www.bad.com \x1b[2J"


def test_a_card_shows_texts_letter_by_letter() -> None:
    edit = Edit(f"{{}} {HOSTILE}", "Ann", f"new {HOSTILE}", id="x")
    meta = {
        "model": {"name": HOSTILE, "fingerprint": "f" * 16},
        "made": [{"method": "memit", "edits": [edit.to_json()]}],
    }
    patch = Patch((Delta({SITE.format(1): torch.ones(32, 64)}),), meta=meta)
    review = {"verdict": HOSTILE, "guards": [{"name": HOSTILE, "ok": True}], "other": {HOSTILE: 1.5}}
    text = card(patch, review=review, notes=[HOSTILE])
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front) == {
        "license": "unknown",
        "library_name": "errata",
        "tags": ["knowledge-editing", "model-editing", "errata", "memit"],
    }
    tokens = list(MarkdownIt("gfm-like", {"linkify": False}).parse(body))
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"link_open", "image", "html_inline", "code_inline", "strong_open", "em_open"} or kinds <= {
        "text", "softbreak", "code_inline", "text_special"
    }  # fmt: skip
    assert not any(token.type == "html_block" for token in tokens)
    assert len([t for t in tokens if t.type == "heading_open" and t.tag == "h1"]) == 1
    words = "".join(token.content for token in tokens if token.type != "fence")
    assert "http://" not in words and "www.bad" not in words and "\x1b" not in body
    code = next(token.content for token in tokens if token.type == "fence")
    compile(code, "card", "exec")


@pytest.mark.parametrize("form", ["patch", "peft", "merged"])
def test_a_card_says_base_licence_method_and_review(form: Any, tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    patch = made("memit", lm, EDITS)
    rows = [
        {"kind": "paraphrase", "metric": "accuracy", "mode": "generated", "before": x, "after": 1.0} for x in (0, 1)
    ]
    text = card(patch, form, base="owner/model", licence="apache-2.0", folder="f", review={"rows": rows, "ok": True})
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["base_model"] == "owner/model" and "memit" in front["tags"]
    assert front["library_name"] == {"patch": "errata", "peft": "peft", "merged": "transformers"}[form]
    assert front["base_model_relation"] == ("finetune" if form == "merged" else "adapter")
    for words in (EDITS[1].prompt, "| lam |", "paraphrase | accuracy | generated | 0.50 | 1.00 | 2", "- ok: true"):
        assert words in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    with pytest.raises(BadInput, match="a licence is an identifier"):
        card(patch, form, licence="a: b")
    with pytest.raises(BadInput, match="a review is a JSON object"):
        card(patch, form, review=[1])  # type: ignore[arg-type]


def test_a_folder_for_a_hub_holds_the_patch(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    patch = made("grace", lm)  # any kind of part
    exported = to_folder(patch, tmp_path / "hub", base="gpt2")
    assert exported.files == ("README.md", "patch.safetensors")
    assert Patch.load(tmp_path / "hub" / "patch.safetensors") == patch
    with pytest.raises(BadInput, match="--force"):
        to_folder(patch, tmp_path / "hub")
    to_folder(patch, tmp_path / "hub", force=True, memory=False)
    assert not Patch.load(tmp_path / "hub" / "patch.safetensors").memory
