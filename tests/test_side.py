"""Side memories: how prompts are routed, that the route holds while decoding, what is stored, what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, tiny_lm
from tiny import build

from errata.errors import BadInput, Unsupported
from errata.methods.registry import method
from errata.methods.side_memory.base import Known, Lessons, dense, from_bits, of_prompts, sparse, to_bits
from errata.methods.side_memory.memoir import MemoirMemory, tophash
from errata.methods.side_memory.wise import WiseMemory, ties
from errata.model import passes
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.patch import Patch
from errata.types import Edit

QUICK: dict[str, dict[str, Any]] = {"wise": {"contexts": 1, "shard": 500}, "memoir": {"contexts": 1}}
AGAIN = Edit(EDIT.prompt, EDIT.subject, "Lima")


def made(name: str, edits: list[Edit], arch: str = "llama", **settings: Any) -> tuple[HFLM, Any, Any, Patch]:
    lm, m = tiny_lm(arch), method(name, **QUICK[name] | settings)
    state = m.prepare(lm, TEXTS)
    return lm, m, state, m.edit(lm, edits, state)


def side(patch: Patch) -> Any:
    (part,) = patch.parts
    return part


# What both share -----------------------------------------------------------------------------------


def test_bits_and_sparse_tensors_come_back() -> None:
    x = torch.randn(3, 5, 13) * (torch.rand(3, 5, 13) < 0.3)
    assert torch.equal(from_bits(to_bits(x != 0), 13), x != 0)
    kept = sparse("w", x)
    assert torch.equal(dense("w", kept, 13), x) and kept["w.where"].shape == (3, 5, 2)


@pytest.mark.parametrize("at", ["last", "mean"])
def test_what_is_read_of_a_prompt_does_not_depend_on_padding(at: Any) -> None:
    x = torch.randn(1, 6, 4)
    wanted = x[:, 3] if at == "last" else x[:, :4].mean(1)
    right = Call(torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([3]))  # an answer and padding behind
    left = Call(torch.tensor([[0, 0, 1, 1, 1, 1]]), torch.tensor([5]))
    assert torch.allclose(of_prompts(right, x, at), wanted)
    assert torch.allclose(of_prompts(left, x.roll(2, 1), at), wanted)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox"])
def test_lessons_from_the_site_up_are_lessons_from_the_start(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    asked = [(lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new)) for e in EDITS]
    site, found = lm.sites.mlp_out[2], []
    for plain in (False, True):
        w = torch.full((32, 64), 1e-2, dtype=torch.float64, requires_grad=True)
        for _, its in Lessons(lm, site, asked, plain=plain).losses(lambda rows, x, w=w: x @ w.T, [True] * 3):
            its.sum().backward()
        found.append(w.grad)
    assert torch.allclose(*found, atol=1e-8) and found[0].abs().sum() > 0


@pytest.mark.parametrize("name", QUICK)
def test_the_route_is_decided_at_the_prompt_and_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache, without one, and where what was said is fed behind the prompt."""
    lm, _, _, patch = made(name, EDITS)
    prompts = [e.prompt for e in EDITS]
    with patch.applied(lm) as edited:
        said = edited.generate(prompts, 5)
        assert said != edited.generate(["Ann Lee", "Bob Ray", "Cy Moor"], 5)
        for prompt, text in zip(prompts, said, strict=True):
            ids: list[int] = []
            for _ in range(5):
                logits = edited.target_logits([(edited.tokens.prompt(prompt), [*ids, edited.tokens.fill])])
                ids.append(int(logits[-1].argmax()))
            assert edited.tokens.decode(ids) == text
        monkeypatch.setattr(passes, "new_cache", lambda model: None)
        assert edited.generate(prompts, 5) == said


@pytest.mark.parametrize("name", QUICK)
def test_an_encoder_decoder_has_its_memory_in_the_encoder(name: str) -> None:
    lm = HFLM(build("t5", vocab_size=320), tiny_lm("llama").tokenizer, name="tiny t5")
    m = method(name, **QUICK[name])
    state = m.prepare(lm, TEXTS)
    patch = m.edit(lm, [EDIT], state)
    assert side(patch).site.startswith("encoder")
    before, said = lm.score([EDIT.prompt], [EDIT.target_new])[0].total, lm.generate(["Rome"], 4)
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before
        assert edited.generate([EDIT.prompt, "Rome"], 4)[1:] == said
        assert [bool(lines) for lines in edited.explain([EDIT.prompt, "Rome"])] == [True, False]


@pytest.mark.parametrize("name", QUICK)
def test_why_names_what_fired_and_the_rest_is_as_it_was(name: str) -> None:
    lm, _, _, patch = made(name, EDITS[:2])
    other = "Dora Finn is the mayor of"
    before = lm.score([other], ["Rome"])
    with patch.applied(lm) as edited:
        fired, silent = edited.explain([EDIT.prompt, other])
        assert fired[0].startswith(f"{name}: ") and silent == []
        assert edited.score([other], ["Rome"]) == before


@pytest.mark.parametrize("name", QUICK)
def test_what_is_refused(name: str) -> None:
    lm, m, state, patch = made(name, EDITS[:2])
    for bad in ({"layer": 4}, {"texts": 1}, {"lr": 0.0}, {"at": "first"}):
        with pytest.raises(BadInput):
            method(name, **bad).prepare(lm, TEXTS)
    with pytest.raises(BadInput, match="prepare anew"):
        replace(m, layer=1).edit(lm, [EDIT], state)
    low = replace(m, layer=1)
    with pytest.raises(BadInput, match="go on with the same settings"):
        low.edit(lm, [EDITS[2]], low.prepare(lm, TEXTS), patch)
    with pytest.raises(BadInput, match="prepared for at = last"):
        replace(m, at="mean").edit(lm, [EDITS[2]], state, patch)
    with pytest.raises(BadInput, match="two different texts"):
        m.prepare(lm, ["Rome"])
    with pytest.raises(Unsupported, match="keep the earlier patch"):
        patch.without(EDITS[0].id)


@pytest.mark.parametrize("name", QUICK)
def test_lessons_in_many_batches_teach_the_same(name: str) -> None:
    lm, m, state, patch = made(name, EDITS, steps=5)
    lm.budget = 40
    again = m.edit(lm, EDITS, state)
    kept, found = (part.tensors() for part in (side(patch), side(again)))
    assert max(float((kept[key].float() - found[key].float()).abs().max()) for key in kept if "values" in key) < 1e-3


# MEMOIR --------------------------------------------------------------------------------------------


def masked(features: list[list[float]], k: int, threshold: float) -> MemoirMemory:
    f = len(features[0])
    log = tuple(Known(f"e{i}", f"prompt {i}", "prompt", [i], [i]) for i in range(len(features)))
    usual, columns = torch.full((f,), 0.5), torch.arange(f).roll(1)
    masks = tophash(torch.tensor(features) - usual, k, columns)
    settings = {"at": "last", "k": k, "threshold": threshold}
    return MemoirMemory("site", settings, log, torch.eye(2, f), masks, usual, columns)


def test_tophash_and_the_best_overlap() -> None:
    part = masked([[2.0, -1.0, 0.5, 0.5], [0.5, 0.5, 3.0, 0.0]], 2, 0.9)
    assert part.masks.tolist() == [[True, False, False, True], [False, True, True, False]]  # moved by the permutation
    call = Call(torch.ones(3, 1), torch.zeros(3).long())
    x = torch.tensor([[[3.0, 0.7, 0.6, 0.5]], [[0.5, 0.5, 3.0, 2.0]], [[2.0, 0.5, 0.5, 1.0]]])
    assert part.overlaps(part.mask(x[:, 0])).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert part.route(call, x).tolist() == [0, 1, -1]
    assert part.said(x[:1], torch.tensor([0])).tolist() == [[[3.0, 0.0]]]


def test_the_same_question_again_has_its_new_answer() -> None:
    lm, m, state, patch = made("memoir", EDITS, steps=80)
    for new in (m.edit(lm, [AGAIN], state, patch), m.edit(lm, [EDIT, AGAIN], state)):
        assert side(new).route(*seen(lm, side(new), EDIT.prompt)).tolist() == [len(side(new).log) - 1]
        with new.applied(lm) as edited:
            lima, oslo = (edited.score([EDIT.prompt], [to])[0].total for to in ("Lima", "Oslo"))
        assert lima > oslo
        assert EDIT.id not in [entry["edit"] for entry in side(new).entries()]


def seen(lm: HFLM, part: Any, prompt: str) -> tuple[Call, torch.Tensor]:
    ids = lm.tokens.prompt(prompt)
    x = lm.read([ids], [range(len(ids))], [(part.site, "in")])[part.site, "in"][None]
    return Call(torch.ones(1, len(ids)), torch.tensor([len(ids) - 1])), x


def test_an_edit_changes_its_columns_alone() -> None:
    _, _, _, patch = made("memoir", [EDIT], decay=0.0)
    assert torch.equal((side(patch).weight != 0).any(0), side(patch).masks[0])
    assert side(patch).masks.sum(-1).tolist() == [16]


def test_memoirs_settings() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(BadInput, match="1 to 64"):
        method("memoir", k=65).prepare(lm, TEXTS)
    with pytest.raises(BadInput, match="share"):
        method("memoir", share=2.0)
    with pytest.raises(BadInput, match="prepared for k = 16, not 8"):
        method("memoir", k=8).edit(lm, EDITS, method("memoir").prepare(lm, TEXTS))
    state = method("memoir").prepare(lm, TEXTS)
    made: list[Any] = [method("memoir", share=share) for share in (0.5, 0.0)]
    wide, narrow = (m.resolve(lm, state).threshold for m in made)
    assert wide < narrow <= 1


# WISE ----------------------------------------------------------------------------------------------


def memories(retrieve: bool, distances: list[float]) -> WiseMemory:
    """Two memories of three edits; the first looks at the first feature, the second at the second, twice as hard."""
    log = tuple(Known(f"e{i}", f"prompt {i}", "prompt", [i], [i]) for i in range(3))
    weights = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])
    settings = {"at": "last", "ratio": 0.5, "retrieve": retrieve}
    return WiseMemory("site", settings, log, weights, torch.tensor([0, 0, 1]), torch.tensor(distances))


def test_the_memory_of_the_largest_distance_answers_where_it_passes() -> None:
    x = torch.tensor([[[2.0, 1.5]], [[3.0, 0.0]], [[0.5, 0.5]], [[1.5, 0.0]]])
    call = Call(torch.ones(4, 1), torch.zeros(4).long())
    one, each = memories(False, [6.0, 2.0, 4.0]), memories(True, [6.0, 2.0, 4.0])
    assert one.thresholds.tolist() == [1.0, 1.0] and each.thresholds.tolist() == [1.0, 2.0]
    assert one.route(call, x).tolist() == [1, 0, -1, 0]
    assert each.route(call, x).tolist() == [1, 0, -1, 0]
    assert memories(True, [6.0, 4.0, 8.0]).route(call, x).tolist() == [-1, 0, -1, -1]
    assert one.said(x[:2], torch.tensor([1, 0])).tolist() == [[[0.0, 3.0]], [[3.0, 0.0]]]
    assert one.named(0) == "side memory 1 of 2, with 2 edits"


def test_ties_by_hand() -> None:
    deltas = torch.tensor([[[4.0, -3.0, 0.1, 0.0]], [[2.0, 5.0, 0.0, 1.0]]])
    even, uneven = (ties(deltas, torch.tensor(w), 0.75)[0].tolist() for w in ([0.5, 0.5], [0.9, 0.1]))
    assert even == pytest.approx([3.0, 5.0, 0.1, 1.0])  # the sign of the larger sum; what stands alone stays
    assert uneven == pytest.approx([3.8, -3.0, 0.1, 1.0])
    assert ties(deltas, torch.tensor([0.5, 0.5]), 0.25)[0].tolist() == pytest.approx([4.0, 5.0, 0.0, 0.0])


FIVE = [Edit(f"{who} lives in", who, "Oslo") for who in ("Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn", "A baker")]


@pytest.mark.parametrize(("retrieve", "sizes"), [(False, [4, 1]), (True, [4, 1])])
def test_shards_are_filled_and_merged(retrieve: bool, sizes: list[int]) -> None:
    lm, m, state, patch = made("wise", FIVE, shard=2, merge=2, steps=10, retrieve=retrieve)
    assert side(patch).sizes == sizes and side(patch).memory.tolist() == [0, 0, 0, 0, 1]
    assert (side(patch).weights[0] != 0).float().mean() > 1.4 * (side(patch).weights[1] != 0).float().mean()
    more = m.edit(lm, EDITS, state, patch)
    assert side(more).sizes == ([8] if not retrieve else [4, 4])
    for part in (side(patch), side(more)):  # the distances stored are those of the memory as it is
        calls = [seen(lm, part, edit.prompt) for edit in part.log]
        d = torch.stack([(part.weights[i] @ x[0, -1]).norm() for i, (_, x) in zip(part.memory, calls, strict=True)])
        assert torch.allclose(part.distances, d, rtol=1e-4)


def test_a_shard_changes_its_own_entries_alone() -> None:
    lm, m, state, patch = made("wise", EDITS[:1], steps=10)
    more = m.edit(lm, EDITS[1:], state, patch)
    first, second = (side(p).weights[0] != 0 for p in (patch, more))
    assert 0.1 < second.float().mean() < 0.3 and not (first & ~second).any()


def test_the_margins_part_what_is_edited_from_what_is_not() -> None:
    """With margins d of the edits is larger, against d of other texts, than without."""
    ratios: list[float] = []
    without: dict[str, Any] = {"alpha": 1e9, "beta": 0.0, "gamma": 0.0}
    for margins in ({}, without):
        lm, _, _, patch = made("wise", EDITS, **margins)
        part = side(patch)
        others = [(part.weights[0] @ seen(lm, part, text)[1][0, -1]).norm() for text in TEXTS[:30]]
        ratios.append(float(part.distances.min() / torch.stack(others).median()))
    assert ratios[0] > 1.1 * ratios[1]


def test_what_looks_like_an_edit_is_made_of_the_edits() -> None:
    lm, m, _, patch = made("wise", EDITS, steps=1)
    with patch.applied(lm) as edited:
        ids = m._others(edited, side(patch), [0, 1, 2], torch.Generator().manual_seed(0))
    texts = {lm.tokens.decode(row).strip() for row in ids}
    assert texts and not texts & {edit.prompt for edit in EDITS}
    assert texts <= {edit.of(other.subject) for edit in side(patch).log for other in side(patch).log}


def test_wises_settings() -> None:
    for bad in ({"merge": 1}, {"ratio": 1.5}, {"mask": 0.0}, {"density": 2.0}):
        with pytest.raises(BadInput):
            method("wise", **bad)
    lm, m, state, patch = made("wise", EDITS[:1])
    relative: Any = method("wise")
    assert relative.resolve(lm, state).shard == 2  # of 64 columns
    with pytest.raises(BadInput, match="retrieve = True"):
        replace(m, retrieve=False).edit(lm, EDITS[1:], state, patch)
    with pytest.raises(BadInput, match="shard = 500"):
        replace(m, shard=2).edit(lm, EDITS[1:], state, patch)
