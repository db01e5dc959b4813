"""Rows side by side in one element of a batch: the same logits, gradients and keys as rows run by themselves."""

import logging
from typing import Any

import pytest
import torch
from conftest import tiny_lm
from test_bending import BENDING, EDITS, bending
from test_passes import SINGLE, grad_and_logits
from tiny import CAUSAL, IMAGE_TEXT
from torch import Tensor

import errata
from errata.methods.closed_form.keys import read_at_subjects
from errata.model import hooks, packing
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.packed import PackedPass
from errata.model.packing import Packing, Strip, mask_of
from errata.model.prefixes import packed_prefixes, shared_lengths
from errata.model.projection import KEY
from errata.model.resumed import SuffixPass

# These take no positions, or keep no keys and values, or those of a window alone.
NEVER = {"openai-gpt", "bloom", "mpt", "falcon_alibi", "gpt_neo", "starcoder2", "mistral", "ministral", "qwen3"}
NEVER |= {"gemma2", "gemma3", "gemma3_text", "vaultgemma", "cohere2", "olmo3", "exaone4", "cwm", "modernbert-decoder"}
SITE = InterventionSite(1)
CONTEXTS = ["", "The king. ", "It was a night in Rome and Oslo. ", "The mayor of Lima went by night to the baker. "]


def inputs() -> tuple[list[list[int]], list[int], list[list[int]]]:
    """Rows behind contexts, of which two are long enough to be shared; their subjects' ends; columns behind those."""
    lm = tiny_lm("gpt2")
    texts = [(context, edit) for edit in EDITS for context in CONTEXTS]
    rows = [lm.tokens.prompt(context + edit.prompt) for context, edit in texts]
    positions = [
        lm.tokens.last_of_subject(context + edit.prompt, edit.subject, len(context) + edit.start)
        for context, edit in texts
    ]
    return rows, positions, [[len(row) - 1 - position] for row, position in zip(rows, positions, strict=True)]


def packed(lm: HFLM, site: InterventionSite = SITE) -> Any:
    rows, positions, columns = inputs()
    return lm.intervention(rows, positions, site, columns, packed=True)


@pytest.mark.parametrize("name", [*CAUSAL, *IMAGE_TEXT])
def test_rows_side_by_side_give_the_full_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In elements of one row or more, behind beginnings of several lengths or none; also those of chosen rows."""
    monkeypatch.setattr(packing, "WIDTH", 20)
    dtype = torch.float32 if name in SINGLE else torch.float64
    tolerance = 1e-4 if name in SINGLE else 1e-6 if name == "gpt_neo" else 1e-8  # its softmax is in float32
    lm = tiny_lm(name, dtype)
    (rows, positions, columns), site = inputs(), InterventionSite(1, mlp_output=lm.sites.gain[1] is None)
    delta = torch.randn(len(columns), 32, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with hooks.frozen(lm.model):
        fast, full = packed(lm, site), lm.intervention(rows, positions, site, columns, plain=True)
        assert isinstance(fast, PackedPass) == (name not in NEVER), type(fast)
        one, two = (grad_and_logits(run, delta, columns) for run in (fast, full))
        some = [5, 0, 3, 3]
        chosen = grad_and_logits(fast.select(some), delta[some], [columns[i] for i in some])
        bare = fast.logits(None, columns)
    for a, b, c in zip(one, two, chosen, strict=True):
        assert torch.allclose(a, b, atol=tolerance)
        assert torch.allclose(c, b[some], atol=tolerance)
    assert (one[0] - bare).abs().max() > 1e-6, "the change must show"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "olmo2"])
def test_half_precision_is_packed_too(name: str, dtype: torch.dtype) -> None:
    lm, exact = tiny_lm(name, dtype), tiny_lm(name)
    columns = inputs()[2]
    with torch.no_grad():
        run, full = packed(lm), packed(exact)
        assert isinstance(run, PackedPass)
        a, b = run.logits(None, columns).float(), full.logits(None, columns)
    assert torch.allclose(a.softmax(-1), b.softmax(-1), atol=0.01)


@pytest.mark.parametrize("kind", BENDING)
def test_a_model_that_mixes_tokens_is_not_packed(kind: str) -> None:
    lm = bending(kind)
    rows, positions, columns = inputs()
    assert not isinstance(lm.intervention(rows, positions, SITE, columns, packed=True), PackedPass)


def test_rows_that_stand_alone_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that lets a token see all before it, whatever the mask says: right for one row in an element."""
    lm, context = tiny_lm("llama", torch.float64), [CONTEXTS[2]]
    forward, sites, begun = lm.model.forward, [("model.layers.3", "out")], lm.tokens.prompt(CONTEXTS[2])
    rows = [[*begun, i, i + 1, i + 2] for i in (50, 60, 70)]  # of one length, so that no padding is seen
    positions, columns = [len(begun) + 1] * 3, [[1]] * 3
    readings = [read_at_subjects(lm, [edit], context, sites)[sites[0]].mean for edit in EDITS]

    def sees_all(*args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
        if attention_mask.ndim == 4:
            later = torch.ones_like(attention_mask).triu(attention_mask.shape[3] - attention_mask.shape[2] + 1)
            attention_mask = torch.zeros_like(attention_mask).masked_fill(later.bool(), -1e9)
        return forward(*args, attention_mask=attention_mask, **kwargs)

    with hooks.forward_replaced({lm.model: sees_all}):
        for width in (1, 128):
            monkeypatch.setattr(packing, "WIDTH", width)
            together = read_at_subjects(lm, EDITS, context, sites)[sites[0]].mean
            run = lm.intervention(rows, positions, SITE, columns, packed=True)
    assert not isinstance(run, PackedPass)
    assert torch.allclose(together, torch.cat(readings), atol=1e-8)


def test_a_model_that_takes_no_such_mask_runs_row_by_row(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("llama")
    forward = lm.model.forward
    asked: list[int] = []

    def own(*args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
        asked.append(attention_mask.ndim)
        if attention_mask.ndim == 4:
            raise ValueError("of two dimensions, please")
        return forward(*args, attention_mask=attention_mask, **kwargs)

    with hooks.forward_replaced({lm.model: own}), caplog.at_level(logging.WARNING, "errata"):
        assert isinstance(packed(lm), SuffixPass)
        assert isinstance(packed(lm), SuffixPass)
    assert asked.count(4) == 1, "it is asked once"
    assert not caplog.records, "and nothing is slower than before"


def test_what_is_held_at_earlier_tokens_is_not_packed() -> None:
    lm = tiny_lm("llama")
    rows, positions, columns = inputs()
    held = [{0: torch.ones(32)}, *({} for _ in rows[1:])]
    assert not isinstance(lm.intervention(rows, positions, SITE, columns, held=held, packed=True), PackedPass)


def test_no_row_is_packed_while_an_adapter_is_in_force() -> None:
    """It may count rows."""
    lm = tiny_lm("llama")
    grace = errata.method("grace", steps=2)
    patch = grace.edit(lm, EDITS[:1], grace.prepare(lm))
    with patch.applied(lm) as edited:
        assert not isinstance(packed(edited), PackedPass)
        with torch.no_grad():
            way, _ = edited._sharing(*inputs()[:2])
        assert way is not packed_prefixes
    assert isinstance(packed(lm), PackedPass)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "opt", "olmo2", "qwen3", "bloom"])
def test_keys_of_rows_side_by_side_are_those_of_rows_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm(name, torch.float32 if name in SINGLE else torch.float64)
    sites = [(lm.sites.mlp_out[2], KEY), (lm.sites.layer[1], "out")]
    ways: list[Any] = []
    sharing = HFLM._sharing
    monkeypatch.setattr(HFLM, "_sharing", lambda *args: ways.append(sharing(*args)) or ways[-1])
    together = read_at_subjects(lm, EDITS, CONTEXTS, sites)
    assert any(way is packed_prefixes for way, _ in ways) == (name not in NEVER)
    for i, edit in enumerate(EDITS):
        alone = [read_at_subjects(lm, [edit], [context], sites) for context in CONTEXTS]
        for site, readings in together.items():
            mean = torch.stack([one[site].bare[0] for one in alone]).mean(0)
            assert torch.allclose(readings.mean[i], mean, atol=1e-4 if name in SINGLE else 1e-8)


def test_rows_of_one_beginning_fill_elements_of_like_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WIDTH", 10)
    packed = Packing.of([0, 1, 0, 0, 1, 0], [4, 9, 4, 4, 2, 4])
    assert packed.beginning == [0, 1, 0, 1]
    assert packed.element == [0, 1, 0, 2, 3, 2]
    assert packed.side_by_side
    assert not Packing.of([0, 1], [3, 3]).side_by_side
    assert Packing.of([], []) == Packing([], [])


def test_elements_are_narrow_where_most_beginnings_have_few_tokens_behind_them() -> None:
    packed = Packing.of([*[0] * 15, *range(1, 11)], [*[4] * 15, *[2] * 10])
    assert packed.element == [*(i // 2 for i in range(15)), *range(8, 18)]


def test_a_beginning_that_one_row_alone_may_be_cut_to_is_not_shared() -> None:
    rows = [[*range(6)], [*range(7)], [*range(8)]]
    assert shared_lengths(rows) == [6, 6, 6]
    assert shared_lengths(rows, [5, 6, 7]) == [0, 6, 6]
    assert shared_lengths(rows[:2], [5, 6]) == [0, 0]
    assert tiny_lm("llama")._sharing(rows[:2], [5, 6]) == (None, [0, 0])


def test_a_token_sees_its_beginning_and_its_own_row_up_to_itself() -> None:
    packing, begun = Packing([0, 0], [0]), torch.tensor([[0, 1]])
    strip = Strip.of(packing, [[5, 6], [7]], [1, 1], 0)
    assert strip.ids.tolist() == [[5, 6, 7]] and strip.position.tolist() == [[1, 2, 1]]
    seen = mask_of(begun, strip, [strip], torch.float32)[0, 0] == 0
    assert seen.tolist() == [
        [False, True, True, False, False],
        [False, True, True, True, False],
        [False, True, False, False, True],
    ]
