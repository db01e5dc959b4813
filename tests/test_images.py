"""Models that read images too: their language half is edited, and they go on answering about images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, TEXTS, quick, same_weights, tiny_lm, tiny_model, tokenizer, weights
from tiny import IMAGE_TEXT, build, seen
from torch import Tensor

import errata
from errata.model.configuration import auto_class, text_config
from errata.model.detect import find_sites
from errata.model.fingerprint import fingerprint
from errata.model.hf import HFLM
from errata.model.recording import recorded

NAMES = list(IMAGE_TEXT)


@torch.no_grad()
def looked(model: Any, name: str) -> Tensor:
    return model(**seen(name)).logits


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_answered_with_the_edited_weights_and_then_as_before(name: str) -> None:
    lm = tiny_lm(name)
    before, logits, was = weights(lm.model), looked(lm.model, name), lm.score([EDIT.prompt], [EDIT.target_new])[0]
    said: Any = lm.model.generate(**seen(name), max_new_tokens=4, do_sample=False)  # pyright: ignore
    rome: Any = errata.method("r-rome", contexts=0, steps=8)
    patch = rome.edit(lm, [EDIT], rome.prepare(lm, TEXTS))
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > was.total
        now = looked(edited.model, name)
        edited.model.generate(**seen(name), max_new_tokens=4, do_sample=False)  # pyright: ignore
    merged = HFLM(build(name, vocab_size=320), tokenizer())
    patch.merge(merged)
    assert torch.equal(looked(merged.model, name), now), "nothing but the edited weights speaks"
    assert not torch.equal(now, logits)
    assert same_weights(lm.model, before)
    assert torch.equal(looked(lm.model, name), logits)
    assert torch.equal(lm.model.generate(**seen(name), max_new_tokens=4, do_sample=False), said)  # pyright: ignore
    assert lm.score([EDIT.prompt], [EDIT.target_new])[0] == was


@pytest.mark.parametrize("method", ["memit", "ft-m", "grace"])
def test_other_methods(method: str) -> None:
    lm = tiny_lm("gemma3")
    before, was = weights(lm.model), lm.score([EDIT.prompt], [EDIT.target_new])[0]
    made: Any = quick(method)
    patch = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > was.total
    assert same_weights(lm.model, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_folder_keeps_its_eyes(name: str, tmp_path: Path) -> None:
    model = tiny_model(name, torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lm, half = errata.load(tmp_path), errata.load(tmp_path, dtype="bfloat16")
    assert type(lm.model) is type(model)
    assert torch.equal(looked(lm.model, name), looked(model, name))
    assert lm.fingerprint == half.fingerprint == fingerprint(model)


@pytest.mark.parametrize("name", NAMES)
def test_the_part_that_is_about_text(name: str) -> None:
    lm = tiny_lm(name)
    assert lm.text_config.hidden_size == 32
    assert lm.text_config is lm.config.text_config
    assert lm.tokens.limit == 128
    with pytest.raises(errata.errors.BadInput, match="at most 128"):
        lm.generate(["Rome " * 200])


def test_a_model_of_text_is_described_by_the_whole() -> None:
    for name in ("llama", "t5", "bart"):
        config = tiny_model(name, torch.float32).config
        assert text_config(config) is config


def test_sites_are_found_without_the_token_of_an_image() -> None:
    model = build("llava")
    model.config.image_token_id = 31
    ids = next(call.args[0] for call in recorded(model) if call.name == "model.language_model.embed_tokens")
    assert 31 not in ids
    assert find_sites(model).depth == 4


def test_classes() -> None:
    made = {name: auto_class(tiny_model(name, torch.float32).config).__name__ for name in ("gemma3", "llama", "t5")}
    assert made == {
        "gemma3": "AutoModelForImageTextToText",
        "llama": "AutoModelForCausalLM",
        "t5": "AutoModelForSeq2SeqLM",
    }


def test_a_memory_is_silent_where_no_prompt_is_known() -> None:
    lm = tiny_lm("llava")
    logits = looked(lm.model, "llava")
    grace: Any = quick("grace")
    with grace.edit(lm, [EDIT], grace.prepare(lm, TEXTS)).applied(lm) as edited:
        assert torch.equal(looked(edited.model, "llava"), logits)
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > -5
