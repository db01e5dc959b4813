"""Keys of subjects, what is kept of them, and λ: worked by hand."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, tiny_lm, tokenizer
from plain import Plain
from tiny import SHARED
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from errata.methods.closed_form import keys as key_readings
from errata.methods.closed_form import solve
from errata.methods.closed_form import targets as target_search
from errata.methods.closed_form.context import Targets
from errata.methods.closed_form.objective import FactRows, continuations_of, rows_of
from errata.methods.closed_form.search import GroupSearch
from errata.methods.registry import method
from errata.methods.state import State
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.resources import Resources
from errata.model.sites import Sites
from errata.model.texts import contexts_of
from errata.types import Edit

CONTEXTS = ["", "The king was in Rome. ", "Paris is a town by night. ", "Bob lives in Oslo and in New York. "]


# Mean keys -----------------------------------------------------------------------------------------


def keys_by_hand(plain: Plain, edit: Edit, path: str, side: str) -> list[Tensor]:
    return [plain.at_subject(context + edit.prompt, edit.subject, path, side) for context in CONTEXTS]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("by_type", [False, True])
def test_the_mean_key_weighs_the_empty_context(by_type: bool, architecture: str) -> None:
    """By type: half for the empty context, the other half for all the others; else each weighs alike."""
    lm = tiny_lm(architecture)
    plain = Plain(lm.model, tokenizer(), architecture)
    sites = [(plain.down(1), "in"), (plain.down(2), "out")]
    block = (plain.block(3), "out")
    found = key_readings.read_at_subjects(lm, EDITS, CONTEXTS, sites, bare=[block], by_context_type=by_type)
    weights = [1 / 2, 1 / 6, 1 / 6, 1 / 6] if by_type else [1 / 4] * 4
    for i, edit in enumerate(EDITS):
        for site in sites:
            keys = keys_by_hand(plain, edit, *site)
            assert torch.allclose(found[site].bare[i], keys[0], atol=1e-5)
            expected = sum(weight * key for weight, key in zip(weights, keys))
            assert torch.allclose(found[site].mean[i], expected, atol=1e-5)
        alone = plain.at_subject(edit.prompt, edit.subject, *block)
        assert torch.allclose(found[block].bare[i], alone, atol=1e-5)
        assert torch.equal(found[block].mean[i], found[block].bare[i])  # read in the bare prompt alone


@pytest.mark.parametrize("by_type", [False, True])
def test_without_other_contexts_the_mean_is_the_bare_key(by_type: bool) -> None:
    lm = tiny_lm("gpt2")
    site = (lm.sites.mlp_out[1], "in")
    readings = key_readings.read_at_subjects(lm, EDITS, [""], [site], by_context_type=by_type)[site]
    assert torch.equal(readings.mean, readings.bare) and len(readings.bare) == len(EDITS)


def test_keys_are_read_some_facts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    site = (lm.sites.mlp_out[1], "in")
    together = key_readings.read_at_subjects(lm, EDITS, CONTEXTS, [site], by_context_type=True)[site]
    monkeypatch.setattr(key_readings, "CHUNK", 2)
    apart = key_readings.read_at_subjects(lm, EDITS, CONTEXTS, [site], by_context_type=True)[site]
    assert torch.allclose(together.bare, apart.bare, atol=1e-6)
    assert torch.allclose(together.mean, apart.mean, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "by_type"), [("memit", True), ("pmet", True), ("alphaedit", True), ("emmet", True), ("r-rome", False)]
)
def test_methods_weigh_contexts_as_their_released_code(name: str, by_type: bool) -> None:
    assert method(name).by_context_type is by_type  # pyright: ignore


def test_contexts_are_the_empty_one_and_first_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    texts = ["Rome is old. Oslo is", "Ann went\n by  night", "Who was it?", "Lima."]
    asked: list[Any] = []

    def sample(prompts: list[str], length: int, *, seed: int) -> list[str]:
        asked.append((prompts, length, seed))
        return texts

    monkeypatch.setattr(lm, "sample", sample)
    monkeypatch.setattr(lm.tokens, "decode", lambda text: text)
    expected = ["", "Rome is old. ", "Ann went by night. ", "Who was it? ", "Lima. "]
    assert contexts_of(lm, 4, 7) == expected
    assert asked == [([""] * 4, 24, 7)]
    assert contexts_of(lm, 0, 7) == [""] and len(asked) == 1


# What is said of the subject -----------------------------------------------------------------------


def settings_of(lm: HFLM, **settings: Any) -> Any:
    made: Any = method("memit", contexts=0, **settings)
    return made.resolve(lm, made.prepare(lm, TEXTS))


def sampling(lm: HFLM, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes ``lm.sample`` give these continuations; what it was asked for is in the list that comes back."""
    asked: list[Any] = []

    def sample(prompts: list[str], length: int, *, seed: list[int]) -> list[list[int]]:
        asked.append((list(prompts), length, seed))
        return [lm.tokens._plain(text) for text in texts]

    monkeypatch.setattr(lm, "sample", sample)
    return asked


def test_preserve_leaves_out_continuations_with_the_old_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    settings = settings_of(lm, preserve=3.0, preserve_samples=4, preserve_tokens=5, seed=11)
    edit = Edit("Ann Lee was born in", "Ann Lee", "Oslo", "Rome")
    texts = [" lives in New York", " was born in Rome", " is the mayor of ROME", " went by night"]
    asked = sampling(lm, texts, monkeypatch)
    (continuations,) = continuations_of(lm, [edit], settings)
    rows = rows_of(lm, edit, [""], settings, continuations)
    assert asked == [(["Ann Lee"] * 4, 5, [11, 12, 13, 14])]
    subject = lm.tokens.prompt("Ann Lee")
    kept = [lm.tokens._plain(text) for text in (texts[0], texts[3])]
    assert rows.ids[2:] == [subject + ids[:-1] for ids in kept]  # behind the prompt's row and that of "{} is a"
    assert rows.positions[2:] == [len(subject) - 1] * 2
    assert rows.columns[2:] == [list(range(len(ids))) for ids in kept]
    n, m = map(len, kept)
    assert rows.targets[-n - m :] == [-1] * (n + m)
    assert rows.weights[-n - m :] == pytest.approx([3.0 / 2 / n] * n + [3.0 / 2 / m] * m)
    assert rows.forward == [False] * (len(rows.forward) - n - m) + [True] * (n + m)


def test_preserve_asks_the_model_for_an_old_answer_that_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    settings = settings_of(lm, preserve=1.0, preserve_samples=2)
    texts = [" was born in Lima", " lives in Paris"]
    sampling(lm, [*texts, *texts], monkeypatch)
    monkeypatch.setattr(lm, "generate", lambda prompts, n, until_answer: [" Lima.\n"])
    known = Edit("Ann Lee was born in", "Ann Lee", "Oslo", "Paris")
    kept = continuations_of(lm, [known, Edit("Ann Lee was born in", "Ann Lee", "Oslo")], settings)
    assert kept == [[lm.tokens._plain(text)] for text in texts]


def test_what_is_written_of_a_subject_does_not_depend_on_the_other_edits() -> None:
    lm = tiny_lm("llama")
    settings = settings_of(lm, preserve=1.0, preserve_samples=3, preserve_tokens=4, seed=5)
    together = continuations_of(lm, EDITS, settings)
    assert together == [continuations_of(lm, [edit], settings)[0] for edit in EDITS]
    assert len({tuple(ids) for ids in together[0]}) > 1 and together != continuations_of(
        lm, EDITS, replace(settings, seed=50)
    )


def test_continuations_take_turns_and_weigh_as_much_as_all() -> None:
    """Each step looks at some of a fact's continuations, the next at the next ones; answers are always asked."""
    lm = tiny_lm("gpt2")
    settings = settings_of(lm, preserve=3.0, preserve_at_once=2)
    edits = [Edit("Ann Lee was born in", "Ann Lee", "Oslo"), Edit("Bob Ray lives in", "Bob Ray", "Lima")]
    continuations = [[[5, 6, 7], [8], [9, 10]], [[11]]]
    rows = [rows_of(lm, edit, [""], settings, some) for edit, some in zip(edits, continuations, strict=True)]
    search = GroupSearch(lm, rows, settings.target_site(lm, 1), settings, False)
    n, seen = len(search.batch.columns), list[set[int]]()
    for turn in range(3):
        batch = search._some([turn, 5])
        forward = batch.entries.forward
        assert batch.entries.per_fact(forward, torch.ones(int(forward.sum())), 2).tolist() == pytest.approx([3.0, 3.0])
        assert batch.base is not None and len(batch.base) == int(batch.entries.anchored.sum())
        assert len(batch.columns) == n - 1 and batch.entries.anchored.logical_not().sum() == 2
        seen.append({len(c) for c, fact in zip(batch.columns[2:], batch.row_fact[2:], strict=True) if fact == 0})
    assert len({frozenset(lengths) for lengths in seen}) == 3
    everything = replace(settings, preserve_at_once=3)
    search = GroupSearch(lm, rows, settings.target_site(lm, 1), everything, False)
    assert search._some([1, 1]) is search.batch


def test_preserve_keeps_what_the_model_says_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """weight x the mean over continuations, and over their tokens, of KL(P ‖ P_δ)."""
    lm = tiny_lm("gpt2", torch.float64)
    plain = Plain(lm.model, tokenizer(), "gpt2")
    edit, texts = EDITS[0], [" lives in New York", " went by night to Paris"]
    sampling(lm, texts, monkeypatch)
    delta = torch.randn(1, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    losses: list[float] = []
    for preserve in (0.0, 3.0):
        settings = settings_of(lm, preserve=preserve, preserve_samples=2, preserve_at_once=2)
        (kept,) = continuations_of(lm, [edit], settings)
        search = GroupSearch(lm, [rows_of(lm, edit, [""], settings, kept)], InterventionSite(1), settings, False)
        search.losses(torch.zeros(1, 32, dtype=torch.float64), torch.ones(1, 1))
        losses.append(search.losses(delta, torch.ones(1, 1)).item())
    column, expected = len(plain.ids("Ann Lee")) - 1, 0.0
    for text in texts:
        ids = plain.ids("Ann Lee" + text)
        was, now = (
            plain.logits(ids[:-1], moved)[column:].log_softmax(-1)
            for moved in ([], [(plain.block(1), column, delta[0])])
        )
        expected += 3.0 / 2 * (was.exp() * (was - now)).sum(-1).mean().item()
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-6)


def test_the_essence_is_kept_backward_and_each_fact_has_its_own_terms() -> None:
    """−log P of the answer, kl x KL(P_δ ‖ P) behind "{} is a" and decay x ‖δ‖ / ‖v‖², for each of two facts."""
    lm = tiny_lm("gpt2", torch.float64)
    plain = Plain(lm.model, tokenizer(), "gpt2")
    settings = replace(settings_of(lm), kl=0.5, decay=0.25)
    edits, contexts = EDITS[1:], ["", "Rome is old. "]
    rows = [rows_of(lm, edit, contexts, settings) for edit in edits]
    search = GroupSearch(lm, rows, InterventionSite(2), settings, False)
    search.losses(torch.zeros(2, 32, dtype=torch.float64), torch.ones(2, 1))
    delta = torch.randn(2, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lengths = torch.tensor([2.0, 3.0], dtype=torch.float64)
    found = search.losses(delta, lengths[:, None])
    for edit, d, length, loss in zip(edits, delta, lengths, found):
        expected = 0.25 * d.norm() / length**2
        for context in contexts:
            prompt = context + edit.prompt
            ids, target = plain.ids(prompt), plain.target(prompt, edit.target_new)
            at = [(plain.block(2), plain.subject_column(prompt, edit.subject), d)]
            logp = plain.logits([*ids, *target[:-1]], at)[len(ids) - 1 :].log_softmax(-1)
            expected = expected - logp[range(len(target)), target].mean() / 2
        essence = f"{edit.subject} is a"
        at = [(plain.block(2), plain.subject_column(essence, edit.subject), d)]
        was, now = (plain.logits(plain.ids(essence), moved)[-1].log_softmax(-1) for moved in ([], at))
        expected = expected + 0.5 * (now.exp() * (now - was)).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("keys", "direction", "at"), [("mixed", 1, 0), ("averaged", 1, 1), ("bare", 0, 0)])
def test_romes_update_has_the_direction_of_one_key_and_is_met_at_another(keys: str, direction: int, at: int) -> None:
    """Δ = r (C⁻¹ k)ᵀ / ((C⁻¹ k)ᵀ k'), for the bare key (0) or the mean of keys (1)."""
    g = torch.Generator().manual_seed(0)
    x, bare, mean, r = (torch.randn(*shape, generator=g).double() for shape in ((6, 20), (1, 6), (1, 6), (1, 4)))
    made: Any = method("rome", keys=keys, lam=0.0)
    (found,) = made.change([torch.linalg.inv(x @ x.T)], [key_readings.SubjectReadings(bare, mean)], r)
    change = found.dense()
    u = torch.linalg.solve(x @ x.T, (bare, mean)[direction][0])
    assert torch.allclose(change, torch.outer(r[0], u) / (u @ (bare, mean)[at][0]), atol=1e-8)
    values = key_readings.SubjectReadings(2 * r, 5 * r)
    missing = -3 * r if keys == "averaged" else 0 * r  # v* is the value of the bare prompt and δ
    assert torch.allclose(made.residual(Targets(r, 8 * r, r, r), 9 * r, values), r + missing)


# The search ------------------------------------------------------------------------------------------


def answers_at(lm: HFLM, prompts: list[str], targets: list[list[int]], weight: float) -> FactRows:
    """One fact's rows: what each prompt's next token shall be (or -1: as it was)."""
    rows = FactRows()
    for prompt, target in zip(prompts, targets, strict=True):
        ids = lm.tokens.prompt(prompt)
        rows.add(ids, len(ids) - 2, [len(ids) - 1], target, weight)
    return rows


def test_pmet_eases_an_answer_that_is_the_arg_max_and_ends_there() -> None:
    """A tenth of the likelihood; only where every answer of the fact is right, and the KL small."""
    lm = tiny_lm("gpt2", torch.float64)
    made: Any = method("pmet", contexts=0)
    settings = made.resolve(lm, made.prepare(lm, TEXTS))
    prompts = ["Ann Lee was born in", "Bob Ray lives in"]
    logp = torch.tensor(lm.next_logprobs(prompts)).double()
    best, worst = logp.argmax(-1).tolist(), logp.argmin(-1).tolist()
    right = answers_at(lm, prompts, [[best[0]], [best[1]]], 0.5)
    half = answers_at(lm, prompts, [[best[0]], [worst[1]]], 0.5)
    search = GroupSearch(lm, [right, half], settings.target_site(lm, 1), settings, False)
    zeros = torch.zeros(2, 64, dtype=torch.float64)
    losses = search.losses(zeros, torch.ones(2, 2))
    expected = [-0.1 * logp[[0, 1], best].mean(), -(logp[0, best[0]] + logp[1, worst[1]]) / 2]
    assert torch.allclose(losses.detach(), torch.stack(expected), atol=1e-6)
    assert search.reached is not None and search.reached.tolist() == [True, False]
    assert search._missed(torch.tensor([9.0, 9.0])).tolist() == [False, True]
    moved, ids = answers_at(lm, prompts[:1], [[best[0]]], 1.0), lm.tokens.prompt("Rome is a")
    moved.add(ids, len(ids) - 2, [len(ids) - 1], [-1], 1e4)  # a KL that weighs much
    search = GroupSearch(lm, [moved], settings.target_site(lm, 1), settings, False)
    step = torch.randn(1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for part, expected_reached in ((0.0, True), (0.05, False), (0.0, True)):
        search.losses(part * step, torch.ones(1, 2))
        assert search.reached is not None and search.reached.tolist() == [expected_reached]


def test_each_part_of_delta_has_its_own_limit_and_decay() -> None:
    """PMET: ‖δ‖ / ‖v‖² for the MLP's part by the MLP's output, for attention's by attention's."""
    lm = tiny_lm("gpt2", torch.float64)
    made: Any = method("pmet", contexts=0, decay=0.25, kl=0.0)
    settings = made.resolve(lm, made.prepare(lm, TEXTS))
    rows = [rows_of(lm, edit, [""], settings) for edit in EDITS[:2]]
    search = GroupSearch(lm, rows, settings.target_site(lm, 1), settings, False)
    delta = torch.randn(2, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    near, far = (search.losses(delta, torch.tensor(u)) for u in ([[2.0, 3.0], [4.0, 5.0]], [[1e9, 1e9]] * 2))
    mlp, attention = delta[:, :32].norm(dim=-1), delta[:, 32:].norm(dim=-1)
    expected = 0.25 * torch.stack([mlp[0] / 4 + attention[0] / 9, mlp[1] / 16 + attention[1] / 25])
    assert torch.allclose(near - far, expected, rtol=1e-6)
    within = search._within(delta, torch.tensor([[0.1, 1e9], [1e9, 0.2]]))
    assert within[0, :32].norm() == pytest.approx(0.1) and within[1, 32:].norm() == pytest.approx(0.2)
    assert torch.allclose(within[0, 32:], delta[0, 32:]) and torch.allclose(within[1, :32], delta[1, :32])


@pytest.mark.parametrize(("part", "steps"), [(1.001, 1), (0.999, 2)])
def test_a_search_ends_where_its_loss_is_below_the_stop(part: float, steps: int) -> None:
    lm = tiny_lm("gpt2", torch.float64)
    settings = settings_of(lm, lr=1e-6, steps=2)
    (score,) = lm.score([EDITS[0].prompt], [EDITS[0].target_new])
    stop = -part * score.total / len(score.tokens)
    found = target_search.find_deltas(
        lm, EDITS[:1], InterventionSite(1), [""], replace(settings, stop=stop), torch.ones(1, 1), torch.ones(1, 1)
    )
    assert found.steps.tolist() == [steps] and found.finished.all()
    assert bool(found.delta.any()) is (steps == 2)
    assert found.final_loss.item() == pytest.approx(stop / part, rel=1e-3)


def test_facts_are_searched_in_groups_within_the_budget() -> None:
    lm = tiny_lm("gpt2")
    settings = settings_of(lm)
    rows = [rows_of(lm, edit, CONTEXTS, settings) for edit in EDITS * 3]
    cost = rows[0].cost
    groups = list(target_search._groups(rows, range(9), 2 * cost + 10))
    assert sorted(i for group in groups for i in group) == list(range(9)) and len(groups) > 2
    assert all(len(group) == 1 or sum(rows[i].cost for i in group) <= 2 * cost + 10 for group in groups)
    suffixes = [rows[i].suffix for group in groups for i in group]
    assert suffixes == sorted(suffixes)
    assert list(target_search._groups(rows, [4, 2], 10**6)) in ([[4, 2]], [[2, 4]])


# What is measured once -------------------------------------------------------------------------------


def test_a_corpus_is_read_until_there_are_enough_tokens() -> None:
    lm = tiny_lm("gpt2")
    lm.resources = Resources(texts=lambda: iter(TEXTS * 20))
    state = method("memit", layers=(1,)).prepare(lm)
    longest = max(len(lm.tokenizer(text)["input_ids"]) for text in TEXTS)
    assert 40 * 64 <= state.info["tokens"] < 40 * 64 + longest and state.info["source"] == "corpus"
    given = method("memit", layers=(1,)).prepare(lm, TEXTS * 5)
    assert given.info["tokens"] == 5 * sum(len(lm.tokenizer(text)["input_ids"]) for text in TEXTS)


def test_typical_lengths_are_medians_over_tokens() -> None:
    lm = tiny_lm("llama")
    plain = Plain(lm.model, tokenizer(), "llama")
    state = method("memit", layers=(0, 2)).prepare(lm, TEXTS[:9])
    for layer in (0, 2):
        for path in (plain.block(layer), plain.down(layer)):
            lengths = torch.cat([plain.flow(plain.ids(text), path, "out").norm(dim=-1) for text in TEXTS[:9]])
            assert state.info["norms"][path] == pytest.approx(lengths.median().item(), rel=1e-4)


# λ and layers on the papers' models ----------------------------------------------------------------

PAPERS = {
    "GPT-J": ("gptj", {"n_layer": 28, "n_embd": 4096, "n_head": 16, "rotary_dim": 64}),
    "GPT-2 XL": ("gpt2", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
}


def shape_of(paper_model: str) -> tuple[HFLM, State]:
    """The model in its own shape, with no numbers in it, and a state that knows lengths of 1."""
    kind, sizes = PAPERS[paper_model]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    small = tiny_lm_sites(kind)
    depth = sizes["n_layer"]

    def all_layers(path: str) -> tuple[str, ...]:
        return tuple(path.replace(".0.", f".{i}.") if ".0." in path else path[:-1] + str(i) for i in range(depth))

    sites = replace(
        small,
        layer=all_layers(small.layer[0]),
        mlp_in=tuple((path,) for path in all_layers(small.mlp_in[0][0])),
        mlp_out=all_layers(small.mlp_out[0]),
        attn_out=all_layers(small.attn_out[0]),
        gain=(1.0,) * depth,
    )
    norms = dict.fromkeys((*sites.layer, *sites.mlp_out), 1.0)
    state = State({}, {"layers": list(range(depth)), "norms": norms})
    return HFLM(model, tokenizer(), sites=sites), state


def tiny_lm_sites(kind: str) -> Sites:
    return tiny_lm(kind).sites


@pytest.mark.parametrize(
    ("name", "paper_model", "published", "layers"),
    [
        ("memit", "GPT-J", 15_000, (3, 4, 5, 6, 7, 8)),
        ("memit", "GPT-2 XL", 20_000 / 3.4, (13, 14, 15, 16, 17)),  # it says why: in units of d_ff they differ
        ("pmet", "GPT-J", 6_000, (3, 4, 5, 6, 7, 8)),
        ("alphaedit", "GPT-J", 15_000, (3, 4, 5, 6, 7, 8)),  # MEMIT's, as P is brought to C⁻¹'s scale
        ("emmet", "GPT-2 XL", 100, (17,)),  # 0.1 beside a C that the released code has scaled by 1,000
        ("rome", "GPT-2 XL", 0.0, (17,)),
    ],
)
def test_lambda_and_layers_are_the_papers(
    name: str, paper_model: str, published: float, layers: tuple[int, ...]
) -> None:
    lm, state = shape_of(paper_model)
    made: Any = method(name)
    resolved = made.resolve(lm, state)
    assert resolved.lam == pytest.approx(published, rel=0.02)
    assert resolved.layers == layers


RATES = {
    "memit": (0.4, 0.19),
    "pmet": (0.2, 0.076),
    "alphaedit": (0.4, 0.19),
    "rome": (0.4, 0.4),
    "emmet": (0.35, 0.19),
}


@pytest.mark.parametrize("name", RATES)
def test_a_step_moves_a_share_of_the_hidden_states_length(name: str) -> None:
    """Of √d coordinates that move by ``lr`` each: by the optimizer's rate x a length of 1, at first."""
    lm, state = shape_of("GPT-2 XL")
    for optimizer, rate in zip(("normalised", "adam"), RATES[name], strict=True):
        made: Any = method(name, optimizer=optimizer)
        assert made.resolve(lm, state).lr == pytest.approx(rate / 40)  # √1600


PUBLISHED = {  # what does not depend on the model
    "memit": {"steps": 25, "clamp": 0.75, "kl": 0.0625, "decay": 0.5, "stop": 0.05, "contexts": 5, "history": False},
    "pmet": {
        "steps": 30,
        "clamp": 0.75,
        "kl": 1.0,
        "decay": 0.5,
        "argmax_weight": 0.1,
        "kl_stop": 0.01,
        "history": False,
    },
    "alphaedit": {"steps": 25, "clamp": 0.75, "kl": 0.0625, "cut": 0.02, "history": True},
    "rome": {"steps": 20, "kl": 0.0625, "decay": 0.5, "stop": 0.05, "contexts": 20, "keys": "mixed"},
    "r-rome": {"steps": 20, "contexts": 20, "keys": "averaged"},
    "emmet": {"steps": 25, "clamp": 0.75, "kl": 0.0625, "decay": 0.5, "contexts": 5, "history": False},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_does_not_depend_on_the_model_is_as_published(name: str) -> None:
    made = method(name)
    assert {setting: getattr(made, setting) for setting in PUBLISHED[name]} == PUBLISHED[name]
    assert made.preserve == 0.0 and made.ridge <= 1e-6  # pyright: ignore
    assert made.nas is False and made.blue is False  # pyright: ignore


def test_settings_that_are_given_stay() -> None:
    lm, state = shape_of("GPT-J")
    made: Any = method("memit", lam=7.0, lr=0.5, layers=(2, 3))
    resolved = made.resolve(lm, state)
    assert (resolved.lam, resolved.lr, resolved.layers) == (7.0, 0.5, (2, 3))


@pytest.mark.parametrize("dimensions", [4, 16])
def test_lambda_of_the_null_space_is_in_the_units_of_the_inverses(dimensions: int) -> None:
    """E[kᵀ M k] over the keys of C is the keys' width, be M C⁻¹ or AlphaEdit's projector."""
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(dimensions, 200, generator=g, dtype=torch.float64) * torch.arange(1, dimensions + 1)[:, None]
    c = keys @ keys.T / 200
    for made in (method("memit", ridge=0.0), method("alphaedit", cut=0.5)):
        metric: Tensor = made.metric(c)  # pyright: ignore
        mean = torch.einsum("fn,fg,gn->n", keys, metric, keys).mean()
        assert mean.item() == pytest.approx(dimensions, rel=1e-6)


def test_the_ridge_is_a_share_of_the_mean_eigenvalue() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 20, generator=g, dtype=torch.float64)
    c = x @ x.T
    expected = torch.linalg.inv(c + 0.1 * torch.linalg.eigvalsh(c).mean() * torch.eye(6))
    assert torch.allclose(solve.inverse_of(c, 0.1), expected, atol=1e-10)


def test_a_second_moment_that_rounding_made_indefinite_still_has_an_inverse(caplog: pytest.LogCaptureFixture) -> None:
    c = torch.diag(torch.tensor([1.0, 1.0, -1e-7]))
    with caplog.at_level(logging.WARNING, "errata"):
        solve.inverse_of(torch.eye(3))
        assert not caplog.records
        inverse = solve.inverse_of(c)
    assert "ridge=1e-09, so 1e-06 is taken" in caplog.text and "too few tokens" in caplog.text
    assert torch.linalg.eigvalsh(inverse).min() > 0
    assert torch.allclose(inverse.diagonal()[:2], torch.ones(2).double(), atol=1e-5)


def test_the_sizes_of_the_tiny_models_are_not_the_papers() -> None:
    lm = tiny_lm("gpt2")
    assert settings_of(lm).lam == pytest.approx(0.92 * SHARED["intermediate_size"])
