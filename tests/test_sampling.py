"""Tokens that are drawn: how often, by what seeds, and the same text whatever the batches and wrappers are."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, tiny_lm
from test_cli import run, saved

import errata
from errata.errors import BadInput, Unsupported
from errata.methods.memory.log import EditRecord
from errata.methods.prompting.mello import MelloLM
from errata.methods.trained.routed.language_part import Open, PatchedLM
from errata.methods.trained.routed.router import RoutedLM
from errata.model.decoding import Choose, StopRule
from errata.model.sampling import TopP, for_rows, seeds_of
from errata.patch.patch import Patch

PROMPTS = ["Ann Lee was born in", "Rome", "The old king went by night to", "Bob Ray lives in"]
HOT: Any = {"temperature": 1.5, "top_p": 0.9}
LOGITS = torch.tensor([[2.0, -1.0, 1.0, 0.0, 1.9]])


# The draw ----------------------------------------------------------------------------------------


def shares(temperature: float, p: float, n: int = 4000) -> torch.Tensor:
    draw = TopP(temperature, p, range(n), 2)
    drawn = draw(LOGITS.expand(n, -1), range(n), 1)
    return torch.bincount(drawn, minlength=5) / n


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    assert torch.allclose(shares(temperature, 1.0), (LOGITS / temperature).softmax(-1)[0], atol=0.03)


def test_the_likeliest_tokens_that_have_top_p_together_are_drawn_among() -> None:
    p = LOGITS.softmax(-1)[0]  # in order of likelihood tokens 0, 4, 2, 3, 1
    most = p.index_fill(0, torch.tensor([1, 3]), 0.0)
    for top_p in (float(p[0] + p[4]) + 1e-3, float(p[0] + p[4] + p[2]) - 1e-3):
        assert torch.allclose(shares(1.0, top_p), most / most.sum(), atol=0.03)
        assert shares(1.0, top_p)[[1, 3]].sum() == 0
    assert shares(1.0, 1e-9).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert shares(1e-6, 1.0).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_row_draws_by_its_own_seed_and_step() -> None:
    draw, other = TopP(2.0, 1.0, [5, 6, 7], 40), TopP(2.0, 1.0, [7, 5], 3)
    for step in range(3):
        together = draw(LOGITS.expand(3, -1), [0, 1, 2], step)
        assert draw(LOGITS, [2], step) == together[2] == other(LOGITS, [0], step)
        assert other(LOGITS, [1], step) == together[0]
    assert len({tuple(TopP(2.0, 1.0, [s], 9)(LOGITS, [0], i).item() for i in range(9)) for s in range(20)}) > 15


def test_seeds_are_of_the_seed_and_the_index() -> None:
    assert seeds_of({}, 3) == seeds_of({"seed": 0}, 3) == [*seeds_of({"seed": 0}, 2), seeds_of({}, 3)[2]]
    assert len({*seeds_of({"seed": 0}, 50), *seeds_of({"seed": 1}, 50)}) == 100
    assert for_rows({"temperature": 1.0, "seed": 4}, 3, [2, 0])["seed"] == [seeds_of({"seed": 4}, 3)[i] for i in (2, 0)]
    assert for_rows({"seed": 4}, 3, [0]) == {}


# The verb ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama sentencepiece", "t5"])
def test_a_text_depends_on_its_seed_alone(arch: str) -> None:
    lm = tiny_lm(arch)
    texts = lm.generate(PROMPTS, 8, **HOT, seed=3)
    assert texts == lm.generate(PROMPTS, 8, **HOT, seed=3) != lm.generate(PROMPTS, 8, **HOT, seed=4)
    assert texts[:2] == lm.generate(PROMPTS[:2], 8, **HOT, seed=3)
    seeds = seeds_of({"seed": 3}, 4)
    assert texts[::-1] == lm.generate(PROMPTS[::-1], 8, **HOT, seed=seeds[::-1])
    lm.budget = 1  # each row alone
    assert texts == lm.generate(PROMPTS, 8, **HOT, seed=3)
    assert texts[2].startswith(lm.generate(PROMPTS[:3], 4, **HOT, seed=3)[2])


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "modernbert-decoder", "lfm2", "falcon_h1", "t5"])
def test_a_prompt_of_several_texts_is_read_once(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, read = tiny_lm(arch), list[int]()
    alone = [lm.sample([PROMPTS[i]], 5, seed=[s])[0] for i, s in ((0, 1), (3, 2), (0, 3), (0, 4), (3, 5))]
    run, sizes = lm.run, ("input_ids", "decoder_input_ids")
    monkeypatch.setattr(lm, "run", lambda x: read.append(next(len(x[n]) for n in sizes if n in x)) or run(x))
    asked = [PROMPTS[0], PROMPTS[3], PROMPTS[0], PROMPTS[0], PROMPTS[3]]
    assert lm.sample(asked, 5, seed=[1, 2, 3, 4, 5]) == alone
    assert (read[0], read[1]) == (2, 5) or not lm.caching.padded
    assert len(set(map(tuple, alone))) > 2
    assert lm.sample([PROMPTS[0]] * 3, 1, seed=[1, 3, 4]) == [alone[i][:1] for i in (0, 2, 3)]


def test_without_a_temperature_the_likeliest_token_is_taken() -> None:
    lm = tiny_lm("gpt2")
    greedy = lm.generate(PROMPTS, 6)
    for how in ({"temperature": 0}, {"temperature": None}, {"temperature": 0.0, "top_p": 0.5, "seed": 9}):
        assert lm.generate(PROMPTS, 6, **how) == greedy  # pyright: ignore[reportArgumentType]
    assert lm.generate(PROMPTS, 6, temperature=1e-4) == lm.generate(PROMPTS, 6, temperature=5, top_p=1e-9) == greedy
    assert lm.generate(PROMPTS, 6, **HOT) != greedy


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperature": -0.1}, "temperature is a number above 0"),
        ({"temperature": float("nan")}, "temperature is a number above 0"),
        ({"temperature": "hot"}, "found 'hot'"),
        ({"temperature": True}, "found True"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is a share above 0 and at most 1, found 0.0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p is a share"),
        ({"top_p": 0.5}, "add temperature=1"),
        ({"temperature": 1.0, "seed": -1}, "seed is a whole number"),
        ({"temperature": 1.0, "seed": [1]}, "one for each of 4 prompts"),
    ],
)
def test_what_is_no_sampling_is_refused(how: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        tiny_lm("gpt2").generate(PROMPTS, 4, **how)


def test_a_misspelt_setting_is_no_sampling() -> None:
    with pytest.raises(TypeError, match="'temprature'"):
        tiny_lm("gpt2").generate(PROMPTS, 4, temprature=1.0)  # pyright: ignore[reportCallIssue]


# Behind a patch ----------------------------------------------------------------------------------


def test_an_edited_model_draws() -> None:
    lm = tiny_lm("gpt2")
    patch = errata.method("ft-m").edit(lm, [EDIT])
    with patch.applied(lm) as edited:
        texts = edited.generate(PROMPTS, 8, **HOT, seed=3)
        assert texts == edited.generate(PROMPTS, 8, **HOT, seed=3) != edited.generate(PROMPTS, 8)
    assert texts != lm.generate(PROMPTS, 8, **HOT, seed=3)


def test_behind_facts_the_model_draws() -> None:
    lm: Any = tiny_lm("gpt2")
    rag: Any = errata.method("rag", encoder="tfidf", near=0.0)
    with rag.edit(lm, EDITS, rag.prepare(lm)).applied(lm) as edited:
        told = [text for text, _ in edited.prompted(PROMPTS)]
        texts = edited.generate(PROMPTS, 8, **HOT, seed=3)
    assert told != PROMPTS and texts == lm.generate(told, 8, **HOT, seed=3)


class Routed(RoutedLM[int]):
    """Answers every second prompt itself, from logits of its own."""

    def read(self, prompts: Sequence[str]) -> list[int | None]:
        return [None if prompt in PROMPTS[::2] else 1 for prompt in prompts]

    def size(self, row: int) -> int:
        return 1

    def logprobs(self, rows: Sequence[int], targets: Any) -> Any:
        raise NotImplementedError

    def lines(self, rows: Sequence[int]) -> list[str]:
        return []

    def written(self, rows: Any, stop: StopRule, choose: Choose, numbers: Sequence[int]) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in rows]
        for step in range(8):
            ids = choose(torch.zeros(len(rows), 300), numbers, step).tolist()
            for i, id in enumerate(ids):
                stop.append(i, out[i], id)
        return out


def test_a_router_keeps_the_draws_of_each_prompt() -> None:
    lm = tiny_lm("gpt2")
    routed, all_ = Routed(lm).generate(PROMPTS, 8, **HOT, seed=3), lm.generate(PROMPTS, 8, **HOT, seed=3)
    assert routed[::2] == all_[::2] and routed[1] != routed[3]
    draw = TopP(1.5, 0.9, seeds_of({"seed": 3}, 4), 8)
    ids = [int(draw(torch.zeros(1, 300), [3], step)) for step in range(8)]
    assert routed[3] == lm.tokens.continuation(lm.tokens.prompt(PROMPTS[3]), ids)
    assert Routed(lm).generate(PROMPTS, 8)[::2] == lm.generate(PROMPTS, 8)[::2]


def test_language_patches_keep_the_draws_of_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    patched: Any = PatchedLM(SimpleNamespace(log=[EditRecord.of(EDIT)]), lm)  # pyright: ignore[reportArgumentType]
    answered = Open(0, 0.9, lm.tokens.target(PROMPTS[0], "Oslo"))  # one prompt is under the patch, and ends with it
    monkeypatch.setattr(PatchedLM, "opened", lambda self, prompts: [answered, None, None, None])
    monkeypatch.setattr(PatchedLM, "_goes_on", lambda self, text: False)
    assert patched.generate(PROMPTS, 8, **HOT, seed=3) == [" Oslo", *lm.generate(PROMPTS, 8, **HOT, seed=3)[1:]]
    with pytest.raises(BadInput, match="temperature is"):
        patched.generate(PROMPTS, 8, temperature=-1)


def test_mello_draws_nothing() -> None:
    lm: Any = MelloLM(None, tiny_lm("gpt2"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unsupported, match="leave temperature out"):
        lm.generate(PROMPTS, temperature=1.0)


# The command -------------------------------------------------------------------------------------


def test_the_command_draws(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, lm = saved("gpt2", tmp_path / "model"), tiny_lm("gpt2")
    Patch().save(tmp_path / "empty.safetensors")
    (text,) = lm.generate(["Rome"], temperature=1.5, top_p=0.9, seed=3)
    words = ("ask", folder, "Rome", "--temperature", 1.5, "--top-p", 0.9, "--seed", 3, "--json")
    for more in ((), ("--patch", "empty.safetensors"), ("--no-chat",)):
        assert json.loads(run(*words, *more).stdout)[0]["text"] == text
    assert json.loads(run("ask", folder, "Rome", "--json").stdout)[0]["text"] == lm.generate(["Rome"])[0] != text
    assert "top_p is a share" in run("ask", folder, "Rome", "--temperature", 1, "--top-p", 2, code=2).stderr
