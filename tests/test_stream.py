"""Answers in pieces: joined they are what ``generate`` gives, and no piece ends inside a character."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, data_for, quick, same_weights, sentencepiece, tiny_lm, tokenizer, weights
from test_chat import chat
from test_sampling import HOT, PROMPTS

import errata
from errata.errors import BadInput, InForce
from errata.model.hf import HFLM
from errata.model.lm import LM

LETTERS = "a é ☃ 日本 🙂🙂 naïve — 🏳️‍🌈."


def scripted(lm: HFLM, ids: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> HFLM:
    """The model, which writes these ids, whatever it is asked."""

    def choose(logits: torch.Tensor, rows: Sequence[int], step: int) -> torch.Tensor:
        return torch.tensor([ids[step]] * len(rows))

    monkeypatch.setattr("errata.model.hf.greedy", choose)
    return lm


@pytest.mark.parametrize("arch", ["gpt2", "llama sentencepiece", "t5", "gemma3"])
@pytest.mark.parametrize("how", [{}, {**HOT, "seed": 3}])
def test_joined_pieces_are_what_generate_gives(arch: str, how: Any) -> None:
    lm = tiny_lm(arch)
    for prompt in (PROMPTS[0], "", "Zürich ☃ "):
        pieces = list(lm.stream(prompt, 12, **how))
        assert pieces and "".join(pieces) == lm.generate([prompt], 12, **how)[0]
        assert all(pieces)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_too(dtype: torch.dtype) -> None:
    lm = tiny_lm("llama", dtype)
    assert "".join(lm.stream("Rome", 24)) == lm.generate(["Rome"], 24)[0]


@pytest.mark.parametrize("made", [tokenizer, sentencepiece])
def test_no_piece_ends_inside_a_character(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama sentencepiece" if made is sentencepiece else "llama")
    ids = made()("x " + LETTERS, add_special_tokens=False)["input_ids"]
    pieces = list(scripted(lm, ids, monkeypatch).stream("Rome", len(ids)))
    assert "".join(pieces).strip() == "x " + LETTERS and len(pieces) > 8
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("made", [tokenizer, sentencepiece])
def test_an_answer_that_is_cut_inside_a_character_is_the_one_that_generate_gives(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama sentencepiece" if made is sentencepiece else "llama")
    ids = made()("é ☃🙂", add_special_tokens=False)["input_ids"]
    lm = scripted(lm, ids, monkeypatch)
    for n in range(1, len(ids) + 1):
        assert "".join(lm.stream("Rome", n)) == lm.generate(["Rome"], n)[0]


def test_a_character_that_bytes_never_complete_is_shown_when_more_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokenizer()("☃", add_special_tokens=False)["input_ids"][:-1] + tokenizer()("Rome")["input_ids"]
    pieces = list(scripted(tiny_lm("gpt2"), ids, monkeypatch).stream("Oslo", len(ids)))
    assert pieces[:2] == [" ", "\ufffd Rome"]


def test_pieces_come_as_tokens_do(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    ran: list[int] = []
    run = lm.run
    monkeypatch.setattr(lm, "run", lambda *args, **how: ran.append(1) or run(*args, **how))
    pieces = lm.stream("Ann Lee was born in", 20)
    next(pieces)
    assert 0 < len(ran) < 20
    pieces.close()  # type: ignore[attr-defined]
    assert lm.generate(["Rome"], 2)  # nothing is held


def test_between_tokens_a_patch_may_come_and_then_the_stream_is_refused() -> None:
    lm = tiny_lm("gpt2")
    before = weights(lm.model)
    patch = errata.method("ft-m", steps=2).edit(lm, [EDIT])
    pieces = lm.stream("Ann Lee was born in", 20)
    next(pieces)
    with patch.applied(lm) as edited:
        with pytest.raises(InForce):
            list(pieces)
        inside = edited.stream("Ann Lee was born in", 20)
        next(inside)
    with pytest.raises(InForce):
        list(inside)
    assert same_weights(lm.model, before)


def test_gradients_are_off_and_on_again() -> None:
    pieces = tiny_lm("gpt2").stream("Rome", 4)
    next(pieces)
    assert torch.is_grad_enabled()


def test_bad_input_is_refused() -> None:
    lm = tiny_lm("gpt2")
    for wrong in ({"max_new_tokens": 0}, {"top_p": 0.5}, {"temperature": -1.0}):
        with pytest.raises(BadInput):
            list(lm.stream("Rome", **wrong))  # type: ignore[arg-type]
    with pytest.raises(BadInput):
        list(lm.stream(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["grace", "wise", "rag", "ike", "mello", "serac", "language-patches", "ft-m"])
def test_with_a_patch_in_force(name: str) -> None:
    lm, made = tiny_lm("gpt2"), quick(name)
    patch = made.edit(lm, EDITS, made.prepare(lm, data_for(made) if made.needs_prepare else None))
    with patch.applied(lm) as edited:
        for prompt in (EDIT.prompt, "Rome"):
            assert "".join(edited.stream(prompt, 12)) == edited.generate([prompt], 12)[0]


def test_a_model_that_only_generates_streams_in_one_piece() -> None:
    class Remote(LM):
        def generate(self, prompts: Sequence[str], max_new_tokens: int = 32, **more: Any) -> list[str]:
            return [prompt.upper() for prompt in prompts]

    pieces: Iterator[str] = Remote().stream("rome")
    assert list(pieces) == ["ROME"]


# Several turns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chatml", "llama"])
def test_behind_earlier_turns_the_ids_are_those_of_the_template(kind: str) -> None:
    lm = chat(kind)
    said = [("Who is Ann Lee?", "A baker."), ("Where?", "In Rome.")]
    turns = [
        {"role": role, "content": text} for turn in said for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    text = lm.tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": "And Bob Ray?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    view = lm.behind(said)
    assert view.tokens.prompt("And Bob Ray?") == lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert view.asked == lm.asked and view.tokens.ends == lm.tokens.ends
    assert lm.tokens.prompt("a") != view.tokens.prompt("a")
    assert view.tokens.last_of_subject("And Bob Ray?", "Bob Ray") > len(lm.tokens.prompt("And Bob Ray?"))


def test_patches_go_on_a_model_behind_turns() -> None:
    lm = chat()
    patch = errata.method("ft-m", steps=8, lr=1e-2).edit(lm, [EDIT])
    view = lm.behind([("Hello", "Good day")])
    with patch.applied(view) as edited:
        assert edited.tokens.prompt("a") == view.tokens.prompt("a")
        after = edited.generate([EDIT.prompt], 8)
        with pytest.raises(InForce):
            lm.generate(["a"])
    assert after != view.generate([EDIT.prompt], 8)


def test_plain_text_has_no_turns() -> None:
    with pytest.raises(BadInput, match="asked in plain text, which has no turns"):
        tiny_lm("gpt2").behind([("a", "b")])
