"""The laws of an edit in hybrids, linear attention and state-space models: it takes, and is undone bit for bit."""

from pathlib import Path

import pytest
import torch
from conftest import EDIT, TEXTS, quick, same_weights, tiny_lm, weights
from tiny import HYBRID, ONE_LAYER

from errata.errors import Unsupported
from errata.methods.registry import method as registered
from errata.methods.state import State
from errata.patch.patch import Patch

PROMPTS = [EDIT.prompt, "Bob Ray lives in", "Rome"]
TARGETS = ["Oslo", "Rome", "New York"]
EVERY = [
    (name, method, torch.float32)
    for name in [*HYBRID, *ONE_LAYER]
    for method in ("r-rome", "memit")
    if (name, method) != ("nemotron_h", "memit")  # above its target nothing of so few blocks mixes tokens
]
# one of each kind: in half precision, and with the other families of methods
HALF = [(name, "r-rome", dtype) for name in ("qwen3_next", "mamba2") for dtype in (torch.float16, torch.bfloat16)]
OTHERS = [
    (name, method, torch.float32)
    for name in ("granitemoehybrid", "mamba")
    for method in ("ft", "alphaedit", "grace", "wise", "calinet", "lora")
]


@pytest.mark.parametrize(("name", "method", "dtype"), [*EVERY, *HALF, *OTHERS])
def test_an_edit_takes_and_is_undone(name: str, method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lm, made = tiny_lm(name, dtype), quick(method)
    before, texts, scores = weights(lm.model), lm.generate(PROMPTS, 5), lm.score(PROMPTS, TARGETS)
    state = made.prepare(lm, TEXTS) if made.needs_prepare else State()
    patch = made.edit(lm, [EDIT], state)
    assert patch.not_finite() is None and same_weights(lm.model, before)
    loaded = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    assert loaded == patch
    with loaded.applied(lm) as edited:
        assert edited.score(PROMPTS[:1], TARGETS[:1])[0].total > scores[0].total
        assert edited.generate(PROMPTS, 5) == [edited.generate([prompt], 5)[0] for prompt in PROMPTS]
    assert same_weights(lm.model, before)
    assert lm.generate(PROMPTS, 5) == texts and lm.score(PROMPTS, TARGETS) == scores
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_pmet_needs_attention_beside_an_mlp() -> None:
    lm, made = tiny_lm("mamba2"), quick("pmet")
    state = made.prepare(lm, TEXTS)
    before = weights(lm.model)
    with pytest.raises(Unsupported, match="no attention beside an MLP"):
        made.edit(lm, [EDIT], state)
    assert same_weights(lm.model, before)


def test_behind_a_gate_one_layer_is_edited() -> None:
    """RWKV: a gate for each coordinate stands behind the MLP, so targets are found at its own output."""
    lm, made = tiny_lm("rwkv"), quick("r-rome")
    assert lm.sites.gain == (None,) * 4 and lm.sites.mlp_out[1].endswith("feed_forward.value")
    before, (score,) = weights(lm.model), lm.score(PROMPTS[:1], TARGETS[:1])
    patch = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    with patch.applied(lm) as edited:
        assert edited.score(PROMPTS[:1], TARGETS[:1])[0].total > score.total
        assert edited.generate(PROMPTS, 5) == [edited.generate([prompt], 5)[0] for prompt in PROMPTS]
    assert same_weights(lm.model, before)


def test_lora_on_attention_needs_attention() -> None:
    with pytest.raises(Unsupported, match="no attention beside an MLP"):
        registered("lora", targets=("attn_out",)).edit(tiny_lm("mamba2"), [EDIT])
