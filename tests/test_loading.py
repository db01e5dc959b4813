"""Models in folders: every architecture loads, is edited and undone; what cannot be loaded is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, TEXTS, same_weights, tiny_lm, tiny_model, tokenizer, weights
from tiny import CAUSAL, ENCODER_DECODER, IMAGE_TEXT

import errata
from errata.errors import BadInput, WrongModel

SAMPLE = ["Ann Lee was born in New York.", "café 12 – x", "The old king"]


@pytest.mark.parametrize("name", [*CAUSAL, *IMAGE_TEXT])
def test_saved_edited_undone(name: str, tmp_path: Path) -> None:
    tiny_model(name, torch.float32).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lm = errata.load(tmp_path)
    assert [lm.tokenizer(text)["input_ids"] for text in SAMPLE] == [tokenizer()(text)["input_ids"] for text in SAMPLE]
    before, score = weights(lm.model), lm.score([EDIT.prompt], [EDIT.target_new])[0]
    memit: Any = errata.method("memit", contexts=2, steps=8)
    for patch in (errata.method("ft-m").edit(lm, [EDIT]), memit.edit(lm, [EDIT], memit.prepare(lm, TEXTS))):
        with patch.applied(lm) as edited:
            now = edited.score([EDIT.prompt], [EDIT.target_new])[0]
            assert not same_weights(lm.model, before)
        if patch.meta["made"][0]["method"] == "ft-m":  # with MEMIT random contexts may outweigh the prompt
            assert now.total > score.total
        assert same_weights(lm.model, before)
    assert lm.score([EDIT.prompt], [EDIT.target_new])[0] == score


@pytest.mark.parametrize("name", [n for n in ENCODER_DECODER if n not in ("longt5",)])
def test_encoder_decoders_are_asked_and_fine_tuned(name: str) -> None:
    lm = tiny_lm(name)
    prompts = ["Rome", "Ann Lee was born in", "The old king went by"]
    together = lm.generate(prompts, 5)
    assert together == [lm.generate([prompt], 5)[0] for prompt in prompts]
    scores = lm.score(prompts, ["Oslo", "New York", "Lima"])
    alone = lm.score(prompts[1:2], ["New York"])[0]
    assert alone.total == pytest.approx(scores[1].total, abs=1e-4)
    before = weights(lm.model)
    patch = errata.method("ft-m").edit(lm, [EDIT])
    was = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > was
    assert same_weights(lm.model, before)


def test_same_model_in_another_precision_has_the_same_fingerprint(tmp_path: Path) -> None:
    tiny_model("llama", torch.float32).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    single, half = errata.load(tmp_path), errata.load(tmp_path, dtype="bfloat16")
    assert single.fingerprint == half.fingerprint
    assert half.dtype == torch.bfloat16
    memit: Any = errata.method("memit", contexts=0)
    patch = memit.edit(half, [EDIT], memit.prepare(half, TEXTS))
    for lm in (single, half):
        before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
        with patch.applied(lm) as edited:
            assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before


def test_a_model_in_memory(tmp_path: Path) -> None:
    lm = errata.load(tiny_model("gpt2", torch.float32), tokenizer=tokenizer())
    assert lm.generate(["Rome"], 2) == tiny_lm("gpt2").generate(["Rome"], 2)
    with pytest.raises(BadInput, match="tokenizer="):
        errata.load(tiny_model("gpt2", torch.float32))


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json"):
        errata.load(tmp_path)
    with pytest.raises(BadInput, match="no-such/model"):
        errata.load("no-such/model", local_files_only=True)
    with pytest.raises(BadInput, match="float31"):
        errata.load(tmp_path, dtype="float31")
    tiny_model("gpt2", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="tokenizer"):
        errata.load(tmp_path)


def test_too_long_a_prompt_is_named() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(BadInput, match="at most 128"):
        lm.generate(["Rome " * 200])


def test_a_state_of_another_model_is_refused() -> None:
    memit: Any = errata.method("memit", contexts=1)
    state = memit.prepare(tiny_lm("llama"), TEXTS)
    with pytest.raises(WrongModel, match="prepare"):
        memit.edit(tiny_lm("gpt2"), [EDIT], state)
