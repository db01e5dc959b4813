"""Side memories: how prompts are routed, that the route holds while decoding, what is stored, what is refused."""

import re
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, tiny_lm
from tiny import build

from errata.errors import BadInput, Unsupported
from errata.methods.memory.log import EditRecord
from errata.methods.memory.packing import pack, unpack
from errata.methods.registry import method
from errata.methods.side_memory import wise
from errata.methods.side_memory.alike import Asked, alike, names_in, parting
from errata.methods.side_memory.margins import PromptInputs
from errata.methods.side_memory.matrix import of_prompts
from errata.methods.side_memory.memoir import MaskedMatrix, Masks, tophash
from errata.methods.side_memory.shards import Distances, SideMatrices, WiseMemory, ties
from errata.methods.side_memory.training import Descent, SiteLosses, site_tensors
from errata.model import hooks, texts
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.delta import Delta
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


def test_packed_tensors_come_back() -> None:
    x = torch.randn(3, 5, 13) * (torch.rand(3, 5, 13) < 0.3)
    packed = pack("w", x, mostly_zero=True) | pack("b", x > 0) | pack("x", x) | pack("none", x[:0] > 0)
    assert packed["w.bits"].nbytes == packed["b.bits"].nbytes == 25  # of 195 booleans
    assert len(packed["w.values"]) == int((x != 0).sum())
    whole = unpack(packed, ["w"])
    for name, expected in {"w": x, "b": x > 0, "x": x, "none": x[:0] > 0}.items():
        assert torch.equal(whole[name], expected) and whole[name].dtype == expected.dtype


@pytest.mark.parametrize("at", ["last", "mean"])
def test_what_is_read_of_a_prompt_does_not_depend_on_padding(at: Any) -> None:
    x = torch.randn(1, 6, 4)
    expected = x[:, 3] if at == "last" else x[:, :4].mean(1)
    right = Call(torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([3]))  # an answer and padding behind
    left = Call(torch.tensor([[0, 0, 1, 1, 1, 1]]), torch.tensor([5]))
    assert torch.allclose(of_prompts(right, x, at), expected)
    assert torch.allclose(of_prompts(left, x.roll(2, 1), at), expected)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox"])
def test_losses_from_the_site_up_are_losses_from_the_start(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    rows = [(lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new)) for e in EDITS]
    site, gradients = lm.sites.mlp_out[2], []
    for plain in (False, True):
        w = torch.full((32, 64), 1e-2, dtype=torch.float64, requires_grad=True)
        for _, losses in SiteLosses(lm, site, rows, plain=plain).of(lambda rows, x, w=w: x @ w.T, [True] * 3):
            losses.sum().backward()
        gradients.append(w.grad)
    assert torch.allclose(*gradients, atol=1e-8) and gradients[0].abs().sum() > 0


BEGINS = ["The mayor of this old town said so yesterday. ", "Dora lives in a house by the sea. "]


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "mllama", "mistral"])  # mistral's window is shorter
def test_what_rows_begin_with_runs_once_and_is_changed_alike(arch: str) -> None:
    """Losses and gradients are those of whole passes, of all rows and of some, and so are the site's inputs."""
    lm = tiny_lm(arch, torch.float64)
    rows = [
        (lm.tokens.prompt(text + e.prompt), lm.tokens.target(e.prompt, e.target_new))
        for e in EDITS
        for text in ("", *BEGINS)
    ]
    found: list[tuple[Any, ...]] = []
    for plain in (False, True):
        w = torch.full((32, 64), 3e-2, dtype=torch.float64, requires_grad=True)
        losses = SiteLosses(lm, lm.sites.mlp_out[1], rows, list(map(lm.tokens.prompt, BEGINS)), plain=plain)
        assert any(n for _, n in losses.begun) is (not plain and arch != "mistral")
        seen, sizes = torch.zeros(len(rows), dtype=torch.float64), list[int]()
        for some in ([True] * 9, [True, False, True] * 3):

            def change(of: list[int], x: torch.Tensor, w: Any = w, sizes: list[int] = sizes) -> torch.Tensor:
                sizes.append(x.shape[0] * x.shape[1])
                return x @ w.T

            for chosen, loss in losses.of(change, some):
                loss.sum().backward()
                seen[chosen] += loss.detach()
        found.append((w.grad, seen, torch.cat(losses.inputs("last")), torch.cat(losses.inputs("mean")), sum(sizes)))
    for fast, plain in zip(*(one[:4] for one in found), strict=True):
        assert torch.allclose(fast, plain, atol=1e-6) and fast.abs().sum() > 0
    assert (found[0][4] < 0.7 * found[1][4]) is (arch != "mistral")


@pytest.mark.parametrize("arch", ["gpt2", "llama", "mllama"])
def test_what_rows_begin_with_is_read_once_while_nothing_is_in_force(arch: str) -> None:
    """Keys of beginnings are those of rows that are run; they are read anew under a patch, and of other weights."""
    lm = tiny_lm(arch, torch.float64)
    texts, site = list(map(lm.tokens.prompt, BEGINS)), InterventionSite(1, mlp_output=True)
    begins = lm.beginnings(texts, site)
    assert begins is not None and lm.beginnings(texts, site) is begins
    rows = [texts[1][:5] + [7, 8, 9], texts[0][:9] + [5], [4, 5, 6]]
    about: Any = rows, [5, 9, 0], site, [[0, 2], [0], [1]]
    kept, own = lm.intervention(*about, begins=begins, of=[1, 0, 0]), lm.intervention(*about)
    assert torch.allclose(kept.logits(None, about[3]), own.logits(None, about[3]), atol=1e-10)
    wrong = lm.intervention(*about, begins=begins, of=[0, 0, 0])
    assert not torch.allclose(wrong.logits(None, about[3])[:2], own.logits(None, about[3])[:2], atol=1e-4)
    with Patch(()).applied(lm) as edited:
        assert edited.beginnings(texts, site) is begins
    path, change = f"{lm.sites.mlp_out[0]}.weight", torch.ones(32, 64)
    with Patch((Delta({path: change}),)).applied(lm) as edited:
        other = edited.beginnings(texts, site)
        assert other is not None and other is not begins
        assert not torch.allclose(other.run.stored[0], begins.run.stored[0])
        with Patch(()).applied(edited) as inner:
            assert inner.beginnings(texts, site) is not begins
    with lm.changed(lambda view, undo: view) as view:  # whoever changes the model says so where it stays as it is
        assert not view.bare and lm.bare
    assert lm.beginnings(texts, site) is begins
    assert lm.beginnings(texts, InterventionSite(2, mlp_output=True)) is not begins
    kept_again = lm.beginnings(texts, site)
    assert kept_again is not begins and lm.beginnings(texts, site) is kept_again
    lm.model.get_parameter(path).data += 1
    lm.forget_fingerprint()
    other = lm.beginnings(texts, site)
    assert other is not None and not torch.allclose(other.run.stored[0], begins.run.stored[0])


def test_an_edit_on_top_of_others_is_that_of_a_model_that_read_nothing_before() -> None:
    """The second edit finds contexts read; one under another method's patch, or of another layer, reads its own."""
    m, lm = method("wise", **QUICK["wise"]), tiny_lm("llama")
    state = m.prepare(lm, TEXTS)
    first, other = m.edit(lm, EDITS[:1], state), Patch((Delta({f"{lm.sites.mlp_out[0]}.weight": torch.ones(32, 64)}),))
    for prior in (first, other):
        used, fresh = (m.edit(one, EDITS[1:2], state, prior).parts[-1] for one in (lm, tiny_lm("llama")))
        assert side(first) != used == fresh


def test_the_last_block_gives_what_rows_begin_with_its_keys_alone() -> None:
    lm = tiny_lm("llama")
    rows = [(lm.tokens.prompt(BEGINS[0] + EDIT.prompt), lm.tokens.target(EDIT.prompt, EDIT.target_new))]
    losses = SiteLosses(lm, lm.sites.mlp_out[1], rows, [lm.tokens.prompt(BEGINS[0])])
    assert losses.begins is not None
    ran: list[str] = []
    paths = [path for block in (2, 3) for path in (lm.sites.attn_out[block], lm.sites.mlp_out[block]) if path]
    with hooks.all_of(
        hooks.after(lm.model.get_submodule(path), lambda args, kwargs, out, path=path: ran.append(path))
        for path in paths
    ):
        keys = losses.begins.run.keys_above()
    assert ran == paths[:2] and list(keys) == [2, 3]


class Pulls:
    """Rows whose loss is half the squared distance of a change of ones from a row of ``to``."""

    def __init__(self, to: torch.Tensor) -> None:
        self.to, self.graphs = to, list[bool]()

    def of(self, change: Any, chosen: list[bool]) -> Any:
        rows = [i for i, one in enumerate(chosen) if one]
        x = torch.ones(len(rows), 1, 4, dtype=torch.float64)
        losses = 0.5 * (change(rows, x)[:, 0] - self.to[rows]).square().sum(-1)
        self.graphs.append(losses.requires_grad)
        yield rows, losses


@pytest.mark.parametrize("masked", [False, True])
def test_steps_are_those_of_torch_on_the_entries_that_may_change(masked: bool) -> None:
    """Of two edits with three rows: decay, clipped gradients, what is masked; no graph once both are learned."""
    draw = torch.Generator().manual_seed(0)
    to, start = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (3, 4))
    mask = (torch.rand(3, 4, generator=draw) < 0.6).double() if masked else torch.ones(3, 4, dtype=torch.float64)
    start, of = start.T * mask, torch.tensor([0, 0, 1])
    found, _ = Descent(7, 0.3, 0.1, 0.5, 1e-9).run(
        start, cast(Any, Pulls(to)), of, lambda v: lambda rows, x: x @ v.T, None, mask if masked else None
    )
    v = start.clone().requires_grad_()
    sgd = torch.optim.SGD([v], lr=0.3, weight_decay=0.1)
    for _ in range(7):
        losses = 0.5 * ((v * mask).sum(-1) - to).square().sum(-1)
        (losses / torch.tensor([2.0, 2.0, 1.0])).sum().backward()
        torch.nn.utils.clip_grad_norm_([v], 0.5 * 2**0.5)
        sgd.step()
        sgd.zero_grad()
    assert torch.allclose(found, v, atol=1e-9) and not found[mask == 0].any()
    pulls = Pulls(to[:1].expand(3, 3))
    Descent(40, 0.2, 0.0, 5.0, 0.02).run(
        start, cast(Any, pulls), of, lambda v: lambda rows, x: x @ v.T, lambda v: 5 - v.sum() * 0
    )
    assert pulls.graphs == sorted(pulls.graphs, reverse=True) and pulls.graphs[0] and pulls.graphs.count(False) > 1


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2"])
def test_edits_are_those_of_whole_passes(arch: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, _, fast = made(name, EDITS, arch)
    monkeypatch.setattr(f"errata.methods.side_memory.{name}.SiteLosses", partial(SiteLosses, plain=True))
    _, _, _, plain = made(name, EDITS, arch)
    one, two = (next(t for n, t in side(p).payload.tensors().items() if n.endswith("values")) for p in (fast, plain))
    assert (one - two).norm() < 0.02 * two.norm()


def test_distances_that_no_penalty_looks_at_have_no_gradient() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    inputs = PromptInputs(x, torch.tensor([0, 0, 1, 2, 2, 3]), 4)
    w = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    for some in ([0, 1, 2, 3], [2], []):
        gradients = []
        for way in (
            inputs.distances(w),
            torch.stack([(x[inputs.of == i] @ w.T).norm(dim=-1).mean() for i in range(4)]),
        ):
            gradients.append(torch.autograd.grad(way[some].square().sum(), w)[0])
        assert torch.allclose(*gradients) and gradients[0].any() == bool(some)
    none = torch.zeros(3, 5, requires_grad=True)
    of_none = inputs.distances(none.double())
    of_none.sum().backward()
    assert none.grad is not None and not none.grad.any() and of_none.tolist() == [0.0] * 4


def test_prompts_are_joined_in_units() -> None:
    one = PromptInputs.read([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]])], "mean")
    two = PromptInputs.read([torch.tensor([[7.0, 8.0]])], "last")
    both = PromptInputs.joined([one, two], 0.5)
    assert both.n == 3 and both.of.tolist() == [0, 0, 1, 2]
    assert both.x.tolist() == [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0], [3.5, 4.0]]
    assert one.x[0].tolist() == [1.0, 2.0] and PromptInputs.joined([two], 2.0).x.tolist() == [[14.0, 16.0]]
    assert two.x.tolist() == [[7.0, 8.0]]


def test_contexts_are_written_once_for_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, m = tiny_lm("gpt2"), method("memoir", **QUICK["memoir"])
    state, asked = m.prepare(lm, TEXTS), list[int]()
    real = texts.contexts_of
    monkeypatch.setattr(texts, "contexts_of", lambda lm, n, seed: asked.append(n) or real(lm, n, seed))
    first = m.edit(lm, EDITS[:1], state)
    m.edit(lm, EDITS[1:], state, first)
    assert asked == [1]


@pytest.mark.parametrize("name", QUICK)
def test_the_route_is_decided_at_the_prompt_and_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache, without one, and where the answer so far is fed behind the prompt."""
    lm, _, _, patch = made(name, EDITS)
    prompts = [e.prompt for e in EDITS]
    with patch.applied(lm) as edited:
        texts = edited.generate(prompts, 5)
        assert texts != edited.generate(["Ann Lee", "Bob Ray", "Cy Moor"], 5)
        for prompt, text in zip(prompts, texts, strict=True):
            ids: list[int] = []
            for _ in range(5):
                logits = edited.target_logits([(edited.tokens.prompt(prompt), [*ids, edited.tokens.fill])])
                ids.append(int(logits[-1].argmax()))
            assert edited.tokens.decode(ids) == text
        monkeypatch.setattr("errata.model.decoding.new_cache", lambda model: None)
        assert edited.generate(prompts, 5) == texts


@pytest.mark.parametrize("name", QUICK)
def test_an_encoder_decoder_has_its_memory_in_the_encoder(name: str) -> None:
    lm = HFLM(build("t5", vocab_size=320), tiny_lm("llama").tokenizer, name="tiny t5")
    m = method(name, **QUICK[name])
    state = m.prepare(lm, TEXTS)
    patch = m.edit(lm, [EDIT], state)
    assert side(patch).site.startswith("encoder")
    before, texts = lm.score([EDIT.prompt], [EDIT.target_new])[0].total, lm.generate(["Rome"], 4)
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before
        assert edited.generate([EDIT.prompt, "Rome"], 4)[1:] == texts
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
def test_training_in_many_batches_gives_the_same(name: str) -> None:
    lm, m, state, patch = made(name, EDITS, steps=5)
    lm.budget = 40
    again = m.edit(lm, EDITS, state)
    one, two = (part.tensors() for part in (side(patch), side(again)))
    assert max(float((one[key].float() - two[key].float()).abs().max()) for key in one if "values" in key) < 1e-3


FIVE = [Edit(f"{who} lives in", who, "Oslo") for who in ("Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn", "A baker")]
LENIENT: dict[str, dict[str, Any]] = {
    "wise": {"contexts": 1, "shard": 2, "steps": 120, "ratio": 0.5},
    "memoir": {"contexts": 0, "share": 0.2, "steps": 80, "k": 32},
}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("calls", [1, 5])
def test_the_newest_answer_of_every_prompt_wins(name: str, calls: int) -> None:
    """In one call and one by one, across shards: each prompt is asked again for another answer."""
    lm, m, state, patch = made(name, FIVE, **LENIENT[name])
    again = [replace(edit, target_new="Lima", id="") for edit in FIVE]
    for i in range(calls):
        patch = m.edit(lm, again[i::calls], state, patch)
    with patch.applied(lm) as edited:
        lima, oslo = (edited.score([e.prompt for e in FIVE], [to] * 5) for to in ("Lima", "Oslo"))
    assert all(new.total > old.total for new, old in zip(lima, oslo, strict=True))
    assert [entry["edit"] for entry in side(patch).entries()] == [e.id for e in side(patch).log[5:]]


@pytest.mark.parametrize("name", QUICK)
def test_the_newest_answer_wins_in_other_words_too(name: str) -> None:
    lm, m, state, patch = made(name, [EDIT, EDITS[1]], **LENIENT[name])
    other = Edit("Ann Lee was then born in", "Ann Lee", "Lima", "Rome")
    with patch.applied(lm) as edited:
        assert edited.score([other.prompt], ["Oslo"])[0].correct  # the memory takes both for one question
    apart = m.edit(lm, [replace(other, target_true="Paris", id="")], state, patch)  # asks for something else
    assert len(side(apart).entries()) == 3
    patch = m.edit(lm, [other], state, patch)
    with patch.applied(lm) as edited:
        lima, oslo = (edited.score([other.prompt, EDIT.prompt], [to] * 2) for to in ("Lima", "Oslo"))
    assert all(new.total > old.total for new, old in zip(lima, oslo, strict=True))
    assert [entry["edit"] for entry in side(patch).entries()] == [EDITS[1].id, side(patch).log[2].id]


@pytest.mark.parametrize("name", QUICK)
def test_edits_that_end_above_their_loss_are_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    made(name, EDITS, steps=1)
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(f"{name} missed 3 of 3 edits: ") and "search ended at" in line
    caplog.clear()
    made(name, EDITS, steps=200, stop=1e-9)
    assert re.search(rf"{name}: \d of 3 edits are answered, though their search ended above its `stop`", caplog.text)


# MEMOIR --------------------------------------------------------------------------------------------


def masked(features: list[list[float]], k: int, threshold: float) -> tuple[Masks, MaskedMatrix]:
    f = len(features[0])
    usual, columns = torch.full((f,), 0.5), torch.arange(f).roll(1)
    masks = tophash(torch.tensor(features) - usual, k, columns)
    live = torch.ones(len(features), dtype=torch.bool)
    lookup = Masks(at="last", k=k, threshold=threshold, usual=usual, columns=columns, live=live)
    return lookup, MaskedMatrix(weight=torch.eye(2, f), masks=masks)


def test_tophash_and_the_best_overlap() -> None:
    lookup, payload = masked([[2.0, -1.0, 0.5, 0.5], [0.5, 0.5, 3.0, 0.0]], 2, 0.9)
    assert payload.masks.tolist() == [
        [True, False, False, True],
        [False, True, True, False],
    ]  # permuted
    call = Call(torch.ones(3, 1), torch.zeros(3).long())
    x = torch.tensor([[[3.0, 0.7, 0.6, 0.5]], [[0.5, 0.5, 3.0, 2.0]], [[2.0, 0.5, 0.5, 1.0]]])
    assert lookup.overlaps(lookup.mask(x[:, 0]), payload).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert lookup.find(call, x, x, payload).tolist() == [0, 1, -1]
    assert payload.added(x[:1], torch.tensor([0])).tolist() == [[[3.0, 0.0]]]


def test_the_same_question_again_has_its_new_answer() -> None:
    lm, m, state, patch = made("memoir", EDITS, steps=80)
    for new in (m.edit(lm, [AGAIN], state, patch), m.edit(lm, [EDIT, AGAIN], state)):
        call, x = seen(lm, side(new), EDIT.prompt)
        assert side(new).entry(call, x, x).tolist() == [len(side(new).log) - 1]
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
    payload = side(patch).payload
    assert torch.equal((payload.weight != 0).any(0), payload.masks[0])
    assert payload.masks.sum(-1).tolist() == [16]


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
    log = tuple(EditRecord(f"e{i}", f"prompt {i}", "prompt", "target") for i in range(3))
    weights = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])
    least = torch.tensor([min(distances[:2]), distances[2]])
    lookup = Distances(
        at="last", ratio=0.5, retrieve=retrieve, distances=torch.tensor(distances), thresholds=0.5 * least
    )
    payload = SideMatrices(shard=2, mask=0.2, weights=weights, of=torch.tensor([0, 0, 1]))
    return WiseMemory("site", log, lookup, payload)


def test_the_memory_of_the_largest_distance_answers_where_it_passes() -> None:
    x = torch.tensor([[[2.0, 1.5]], [[3.0, 0.0]], [[0.5, 0.5]], [[1.5, 0.0]]])
    call = Call(torch.ones(4, 1), torch.zeros(4).long())
    one, each = memories(False, [6.0, 2.0, 4.0]), memories(True, [6.0, 2.0, 4.0])
    payload = one.payload
    assert one.lookup.thresholds.tolist() == each.lookup.thresholds.tolist() == [1.0, 2.0]
    for memory, routed in (
        (one, [1, 0, -1, 0]),
        (each, [1, 0, -1, 0]),
        (memories(True, [6.0, 4.0, 8.0]), [-1, 0, -1, -1]),
    ):
        assert memory.lookup.find(call, x, x, memory.payload).tolist() == routed
    assert payload.added(x[:2], torch.tensor([1, 0])).tolist() == [[[0.0, 3.0]], [[3.0, 0.0]]]
    assert payload.describe(one.log, 0) == "side memory 1 of 2, with 2 edits"


def test_ties_by_hand() -> None:
    deltas = torch.tensor([[[4.0, -3.0, 0.1, 0.0]], [[2.0, 5.0, 0.0, 1.0]]])
    equal, unequal = (ties(deltas, torch.tensor(w), 0.75)[0].tolist() for w in ([0.5, 0.5], [0.9, 0.1]))
    assert equal == pytest.approx([3.0, 5.0, 0.1, 1.0])  # the sign of the larger sum; what stands alone stays
    assert unequal == pytest.approx([3.8, -3.0, 0.1, 1.0])
    assert ties(deltas, torch.tensor([0.5, 0.5]), 0.25)[0].tolist() == pytest.approx([4.0, 5.0, 0.0, 0.0])


@pytest.mark.parametrize(("retrieve", "sizes"), [(False, [4, 1]), (True, [4, 1])])
def test_shards_are_filled_and_merged(retrieve: bool, sizes: list[int]) -> None:
    lm, m, state, patch = made("wise", FIVE, shard=2, merge=2, steps=10, retrieve=retrieve)
    payload = side(patch).payload
    assert payload.sizes == sizes and payload.of.tolist() == [0, 0, 0, 0, 1]
    assert (payload.weights[0] != 0).float().mean() > 1.4 * (payload.weights[1] != 0).float().mean()
    more = m.edit(lm, [*EDITS, Edit("Eve Stone lives in", "Eve Stone", "Lima")], state, patch)  # one replaces another
    assert side(more).payload.sizes == ([8] if not retrieve else [4, 4])
    for part in (side(patch), side(more)):  # the distances stored are those of the memory as it is
        calls = [seen(lm, part, edit.prompt) for edit in part.log]
        pairs = zip(part.payload.of, calls, strict=True)
        d = torch.stack([(part.payload.weights[i] @ x[0, -1]).norm() for i, (_, x) in pairs])
        held = part.payload.of >= 0
        assert len(part.lookup.thresholds) == len(part.payload.weights)
        assert torch.allclose(part.lookup.distances[held], d[held], rtol=1e-4)


def test_a_shard_changes_its_own_entries_alone() -> None:
    lm, m, state, patch = made("wise", EDITS[:1], steps=10)
    more = m.edit(lm, EDITS[1:], state, patch)
    first, second = (side(p).payload.weights[0] != 0 for p in (patch, more))
    assert 0.1 < second.float().mean() < 0.3 and not (first & ~second).any()


def test_the_margins_part_what_is_edited_from_what_is_not() -> None:
    """With margins d of the edits is larger, against d of other texts, than without."""
    ratios: list[float] = []
    without: dict[str, Any] = {"alpha": 1e9, "beta": 0.0, "gamma": 0.0}
    for margins in ({}, without):
        lm, _, _, patch = made("wise", EDITS, **margins)
        part = side(patch)
        others = [(part.payload.weights[0] @ seen(lm, part, text)[1][0, -1]).norm() for text in TEXTS[:30]]
        ratios.append(float(part.lookup.distances.min() / torch.stack(others).median()))
    assert ratios[0] > 1.1 * ratios[1]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_distances_are_trained_in_units_of_the_layers_outputs(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored has the loss that training ended with, and the distance it was trained to, above all others."""
    least: list[torch.Tensor] = []
    real = wise.Margins
    monkeypatch.setattr(wise, "Margins", lambda *args: least.append(args[2]) or real(*args))
    lm, m, state, patch = made("wise", [EDIT], arch, contexts=0, steps=200, shard=1)
    (outcome,) = patch.meta["made"][-1]["outcomes"].values()
    assert outcome["loss"] == pytest.approx(outcome["search_loss"], abs=2e-4)
    units = float(side(patch).lookup.distances[0]) / state.info["out"]
    assert m.beta < units < 1.4 * m.beta and least[0].tolist() == [m.beta]
    replace(m, beta=0.0).edit(lm, EDITS[1:2], state, patch)
    x = seen(lm, side(patch), EDITS[1].prompt)[1][0, -1]
    rival = float((side(patch).payload.weights[0] @ x).norm()) / state.info["out"]
    assert least[1].tolist() == pytest.approx([wise.OUTBID * rival], rel=1e-4)


def test_what_looks_like_an_edit_is_made_of_the_edits() -> None:
    lm, names = tiny_lm("llama"), ["Ann Lee", "Eve Stone"]
    log = tuple(EditRecord.of(edit, lm.tokens) for edit in EDITS)

    class Told(Asked):
        """What is asked of Ann Lee has one answer; every other prompt has its own."""

        def likeliest(self, log: Any, texts: Any, also: Any = ()) -> list[int]:
            prompts = [*(edit.prompt for edit in log), *texts]
            number = {prompt: 0 if "Ann Lee" in prompt else i + 1 for i, prompt in enumerate(dict.fromkeys(prompts))}
            return [number[prompt] for prompt in prompts]

    asked_of = Told(lm, lm.sites.mlp_out[2], "last")
    same, others = alike(asked_of, log, [0, 1, 2], names, 20, torch.Generator().manual_seed(0))
    assert sorted(same) == sorted(edit.about("Ann Lee") for edit in log[1:])
    asked = {edit.about(who) for edit in log for who in ("Bob Ray", "Cy Moor", "Eve Stone")}
    assert sorted(others) == sorted(asked - {edit.prompt for edit in log})


@pytest.mark.parametrize("at", ["last", "mean"])
def test_prompts_are_asked_and_read_in_one_pass(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    log, texts = [EditRecord.of(edit, lm.tokens) for edit in EDITS], [*TEXTS[:3], EDITS[0].prompt]
    asked = Asked(lm, lm.sites.mlp_out[2], at)
    prompts = [edit.prompt for edit in log]
    assert asked.likeliest(log, texts) == lm.next_logprobs([*prompts, *texts]).argmax(-1).tolist()
    expected = site_tensors(lm, asked.site, [lm.tokens.prompt(text) for text in (*prompts, *texts, TEXTS[5])])[0]
    passes: list[int] = []
    real = lm.target_logits
    monkeypatch.setattr(lm, "target_logits", lambda pairs: passes.append(len(pairs)) or real(pairs))
    found = [*asked.of(log), *asked.inputs([*texts, TEXTS[5]])]
    assert passes == [1]  # of the text that was not asked
    for x, whole in zip(found, expected, strict=True):
        assert torch.allclose(x, whole[-1:] if at == "last" else whole, atol=1e-5)
    assert asked.likeliest(log, TEXTS[3:5]) and passes[1:] == [2]  # edits are asked once
    assert len(asked.likeliest(log, TEXTS[5:6], TEXTS[6:8])) == len(log) + 1 and passes[2:] == [3]
    asked.inputs(TEXTS[5:8])
    asked.likeliest(log, [], TEXTS[8:9])  # no pass is made for others alone
    assert passes[3:] == []
    lm.budget = 3 * max(len(lm.tokens.prompt(text)) for text in TEXTS)
    asked.likeliest(log, TEXTS[9:12], TEXTS[12:14])
    assert passes[3:] == [3]


def test_names_are_read_with_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    log, asked = [EditRecord.of(EDIT, lm.tokens)], Asked(lm, lm.sites.mlp_out[2], "last")
    passes: list[int] = []
    real = lm.target_logits
    monkeypatch.setattr(lm, "target_logits", lambda pairs: passes.append(len(pairs)) or real(pairs))
    _, others = alike(asked, log, [0], ["Eve Stone", "Old King"], 20, torch.Generator().manual_seed(0))
    assert len(asked.inputs(others)) == 2 and passes == [3]


def test_names_and_the_value_that_parts() -> None:
    texts = ["So says Ann Lee's baker", "By night the Old King of New York", "Ann Lee was"]
    assert names_in(texts) == ["Ann Lee", "Old King", "New York"]
    outside = [torch.linspace(0, 1, 101), torch.linspace(0, 2, 101)]
    assert parting(torch.linspace(3, 4, 11), outside) == pytest.approx((3.1 + 1.98) / 2)


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
