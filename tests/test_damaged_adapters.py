"""LoRA adapters that are damaged, or that lie: each is refused with its folder's name, or adds what it says."""

import copy
import json
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from conftest import tiny_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from errata.errors import BadInput
from errata.exchange import from_peft
from errata.exchange.adapters import PATTERN, REPEATED
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.peft import CONFIG, PREFIX, TENSORS

PATH = "transformer.h.{}.mlp.c_proj"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it


@cache
def plain() -> tuple[str, dict[str, Tensor]]:
    """The configuration's text and the tensors of a small adapter of two layers."""
    draw = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for i, r in ((1, 2), (2, 3)):
        tensors[f"{PREFIX}{PATH.format(i)}.lora_A.weight"] = torch.randn(r, 64, generator=draw)
        tensors[f"{PREFIX}{PATH.format(i)}.lora_B.weight"] = torch.randn(32, r, generator=draw)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x", "r": 3, "lora_alpha": 6,
        "rank_pattern": {PATH.format(1): 2}, "alpha_pattern": {},
        "target_modules": ["h.1.mlp.c_proj", "h.2.mlp.c_proj"], "bias": "none",
        "fan_in_fan_out": True, "inference_mode": True, "lora_dropout": 0.1, "init_lora_weights": True,
    }  # fmt: skip
    return json.dumps(config), tensors


def write(folder: Path, config: dict[str, Any] | str | None = None, tensors: dict[str, Tensor] | None = None) -> Path:
    text, own = plain()
    changed = text if config is None else config if isinstance(config, str) else json.dumps(config)
    (folder / CONFIG).write_text(changed)
    save_file({n: t.clone().contiguous() for n, t in (own if tensors is None else tensors).items()}, folder / TENSORS)
    return folder


def config(**changes: Any) -> dict[str, Any]:
    return {**json.loads(plain()[0]), **changes}


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(BadInput) as refusal:
        from_peft(tiny_lm("gpt2"), folder)
    message = str(refusal.value)
    assert str(folder) in message and len(message) < 1500, message
    assert all(word in message for word in words), message


@contextmanager
def somewhere() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)


# What is plain LoRA is read exactly --------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_alpha": 1},
        {"lora_alpha": 0.5},
        {"alpha_pattern": {PATH.format(2): 11}},
        {"alpha_pattern": {r"^transformer\.h\.[12]\.mlp\.c_proj": 5}},
        {"use_rslora": True},
        {"target_modules": r".*\.h\.[12]\.mlp\.c_proj"},
        {"target_modules": [PATH.format(1), PATH.format(2)], "init_lora_weights": "gaussian"},
    ],
)
def test_an_adapter_is_what_peft_makes_of_it(changes: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    lm = tiny_lm("gpt2")
    patch = from_peft(lm, write(tmp_path, config(**changes)))
    model = PeftModel.from_pretrained(copy.deepcopy(lm.model), tmp_path).eval()
    ids = torch.tensor([lm.tokens.prompt("Ann Lee was born in Rome")])
    with torch.no_grad():
        want = model(input_ids=ids).logits
        with patch.applied(lm):
            assert (lm.model(input_ids=ids).logits - want).abs().max() < 1e-4
    assert patch.meta["imported"]["from"] == "peft" and not patch.edits


def test_the_scaling_is_in_the_product(tmp_path: Path) -> None:
    _, tensors = plain()
    a, b = (tensors[f"{PREFIX}{PATH.format(1)}.lora_{side}.weight"] for side in "AB")
    for changes, scale in (({}, 6 / 2), ({"use_rslora": True}, 6 / math.sqrt(2))):
        w = from_peft(tiny_lm("gpt2"), write(tmp_path, config(**changes))).of_kind(Delta)[0].weights
        got = w[f"{PATH.format(1)}.weight"]
        assert isinstance(got, LowRank) and torch.allclose(got.dense(), scale * (b @ a), atol=1e-4)


# What is not, is refused by name -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"kasa_config": {"a": 1}}, "kasa_config"),
        ({"made_up_by_a_later_peft": "yes"}, "made_up_by_a_later_peft"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": 3}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 5}, "rank"),
        ({"r": "3"}, "r of"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"alpha_pattern": []}, ""),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern"),
        ({"alpha_pattern": {"(a": 1}}, "alpha_pattern"),
        ({"rank_pattern": {"x" * 1000: 1}}, "rank_pattern"),
        ({"rank_pattern": {".*.*.*.*.*c": 1}}, "rank_pattern"),
        ({"target_modules": ["q_proj"]}, "target_modules"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder = write(tmp_path, config(**changes))
    if not word:  # an empty list says nothing
        assert from_peft(tiny_lm("gpt2"), folder)
        return
    refused(folder, word)


def test_a_pattern_takes_no_long_time() -> None:
    for slow in ("(a+)+", "(a|a)*", "(.*)*", "a**", "((a)+b)+", "(?:a+){9}"):
        assert REPEATED.search(slow) or not PATTERN.fullmatch(slow)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t | {f"{PREFIX}{PATH.format(1)}.lora_magnitude_vector": torch.ones(32)}, "lora_magnitude_vector"),
        (lambda t: t | {f"{PREFIX}transformer.wte.lora_embedding_A": torch.ones(2, 320)}, "lora_embedding_A"),
        (lambda t: t | {f"{PREFIX}lm_head.modules_to_save.weight": torch.ones(2)}, "modules_to_save"),
        (lambda t: dict(list(t.items())[1:]), "one factor of two"),
        (lambda t: {n: x.T for n, x in t.items()}, "shapes"),
        (lambda t: {n: x[:, :0] if "lora_B" in n else x[:0] for n, x in t.items()}, "shapes"),
        (lambda t: {n: x.reshape(*x.shape, 1) for n, x in t.items()}, "shapes"),
        (lambda t: {n: x.to(torch.int32) for n, x in t.items()}, "floating"),
        (lambda t: {n: torch.full_like(x, math.inf) for n, x in t.items()}, "finite"),
        (lambda t: {n: torch.full_like(x, math.nan) for n, x in t.items()}, "finite"),
        (lambda t: {n: torch.full_like(x, 3e38) for n, x in t.items()}, "finite"),
        (lambda t: {n.replace("mlp.c_proj", "mlp.gone"): x for n, x in t.items()}, "does not have"),
        (lambda t: {n.replace("mlp.c_proj", "ln_1"): x for n, x in t.items()}, "linear"),
        (lambda t: {n.replace("h.1.mlp.c_proj", "h.2.mlp.c_proj").removeprefix(PREFIX): x for n, x in t.items()} | t,
         "two factors"),
        (lambda t: {n: x[:, :1] if "lora_A" in n else x for n, x in t.items()}, "shapes"),
        (lambda t: {}, "0 tensors"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], word: str, tmp_path: Path
) -> None:
    refused(write(tmp_path, None, change(dict(plain()[1]))), word)


def test_files_that_are_missing_pickled_or_huge_are_refused(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    refused(tmp_path / "gone", "there is no folder")
    folder = write(tmp_path)
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    refused(folder, "adapter_model.bin", "a pickle")
    (folder / "adapter_model.bin").unlink()
    refused(folder, f"holds no {TENSORS}")
    header = {f"{PREFIX}{PATH.format(1)}.lora_A.weight": {"dtype": "F32", "shape": [2, 64], "data_offsets": [0, 512]},
              f"{PREFIX}{PATH.format(1)}.lora_B.weight":
              {"dtype": "F32", "shape": [32, 2**40], "data_offsets": [512, 512 + 2**47]}}  # fmt: skip
    text = json.dumps(header).encode()
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(512))
    refused(folder, "broken or not whole")
    (folder / TENSORS).write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(folder, "broken or not whole")
    write(folder)
    for text in ("", "{", "[1]", '{"r": NaN}', "nul", '{"peft_type": "LORA", "peft_type": "LORA"}', "[" * 100_000):
        (folder / CONFIG).write_text(text)
        refused(folder, CONFIG)
    (folder / CONFIG).unlink()
    refused(folder, CONFIG)
    assert from_peft(lm, write(folder))


# Whatever happens to the bytes -------------------------------------------------------------------


def holds(folder: Path) -> None:
    """It is refused by a clear error, or it is a patch of finite numbers that fits."""
    lm = tiny_lm("gpt2")
    try:
        patch = from_peft(lm, folder)
    except BadInput as error:
        assert str(folder) in str(error) and len(str(error)) < 1500
        return
    assert patch.not_finite() is None and load_file(folder / TENSORS)
    patch.check(lm)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes(data: st.DataObject) -> None:
    with somewhere() as folder:
        write(folder)
        file = folder / data.draw(st.sampled_from([TENSORS, CONFIG]))
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, min(len(content) - 1, 900)))
            content[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content)))]
        file.write_bytes(bytes(content))
        holds(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*json.loads(plain()[0]), "use_dora", "use_rslora", "lora_bias"]) | st.text(max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_configurations_that_lie(changes: dict[str, Any]) -> None:
    with somewhere() as folder:
        write(folder, config(**changes))
        holds(folder)


NAMES = st.sampled_from([*plain()[1]]) | st.from_regex(r"(base_model\.model\.)?[a-z.0-9_]{1,30}\.lora_[AB]\.weight")
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 32, 64]), min_size=0, max_size=3)
TYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(SHAPES, TYPES), max_size=4), st.booleans())
def test_tensors_that_lie(forged: dict[str, tuple[list[int], torch.dtype]], beside: bool) -> None:
    tensors = {name: torch.ones(shape).to(dtype) for name, (shape, dtype) in forged.items()}
    with somewhere() as folder:
        write(folder, None, (plain()[1] if beside else {}) | tensors)
        holds(folder)
