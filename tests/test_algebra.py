"""Each closed form as algebra, and the fast search for targets against its plain reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CASES, EDITS, TEXTS, tiny_lm
from torch import Tensor

from errata.errors import BadInput
from errata.methods.closed_form import anchor, choices, portions, solve
from errata.methods.closed_form.context import EditContext
from errata.methods.closed_form.keys import SubjectRows
from errata.methods.closed_form.objective import rows_of
from errata.methods.closed_form.search import FALL, GroupSearch
from errata.methods.closed_form.symmetric import ROOM, Kept, Symmetric
from errata.methods.closed_form.targets import find_deltas
from errata.methods.closed_form.wanted import measured_at
from errata.methods.registry import method
from errata.model.added import InterventionSite
from errata.model.resources import Resources
from errata.model.texts import contexts_of
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.memory import remember
from errata.patch.patch import EMPTY

F, D, N = 24, 10, 4


@pytest.fixture()
def numbers() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {"X": draw(F, 200), "K": draw(F, N), "R": draw(D, N), "past": draw(F, 7), "W": draw(D, F)}


def whole(matrix: Symmetric) -> Tensor:
    return matrix @ torch.eye(F)


def with_keys(inverse: Tensor | Symmetric, keys: Tensor, lam: float) -> Symmetric:
    return solve.with_keys(Symmetric.of(inverse) if isinstance(inverse, Tensor) else inverse, keys, lam)


def least_squares(
    inverse: solve.Metric, keys: Tensor, residuals: Tensor, lam: float, met_at: Tensor | None = None
) -> LowRank:
    """The change of a single weight."""
    (change,) = solve.least_squares([inverse], [keys], residuals, lam, None if met_at is None else [met_at])
    return change


def test_solution_is_the_dense_one(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, r, lam = numbers["K"], numbers["R"], 3.0
    got = least_squares(solve.inverse_of(c), k, r, lam).dense()
    expected = r @ k.T @ torch.linalg.inv(lam * c + k @ k.T)  # MEMIT, equation 14
    assert torch.allclose(got, expected, atol=1e-5)


def test_history_is_the_dense_one(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, r, past, lam = numbers["K"], numbers["R"], numbers["past"], 3.0
    inverse = with_keys(solve.inverse_of(c), past, lam)
    in_turn = with_keys(with_keys(solve.inverse_of(c), past[:, :3], lam), past[:, 3:], lam)
    assert torch.allclose(whole(inverse), whole(in_turn), atol=1e-9)
    got = least_squares(inverse, k, r, lam).dense()
    expected = r @ k.T @ torch.linalg.inv(lam * c + past @ past.T + k @ k.T)
    assert torch.allclose(got, expected, atol=1e-5)


def test_lambda_to_zero_interpolates_and_to_infinity_does_nothing(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, r = numbers["K"], numbers["R"]
    inverse = solve.inverse_of(c)
    assert torch.allclose(least_squares(inverse, k, r, 1e-9).dense() @ k, r, atol=1e-6)
    assert least_squares(inverse, k, r, 1e12).dense().abs().max() < 1e-9


def test_one_fact_is_romes_rank_one_update(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, w = numbers["K"][:, :1], numbers["W"]
    v = numbers["R"][:, :1]
    got = w + least_squares(solve.inverse_of(c), k, v - w @ k, 0.0).dense()
    u = torch.linalg.solve(c, k)
    expected = w + (v - w @ k) @ u.T / (u.T @ k)  # ROME, equation 2
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(got @ k, v, atol=1e-9)  # W' k* = v*


def test_mixed_keys_meet_the_bare_one(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    mean, bare, r = numbers["K"][:, :1], numbers["past"][:, :1], numbers["R"][:, :1]
    change = least_squares(solve.inverse_of(c), mean, r, 0.0, bare).dense()
    assert torch.allclose(change @ bare, r, atol=1e-9)
    direction = torch.linalg.solve(c, mean)
    assert torch.linalg.matrix_rank(torch.cat([change, direction.T]), rtol=1e-4) == 1


def test_two_facts_of_one_subject_share_what_they_can(numbers: dict[str, Tensor]) -> None:
    k = numbers["K"][:, :1].repeat(1, 2)
    r = numbers["R"][:, :2]
    change = least_squares(solve.inverse_of(torch.eye(F)), k, r, 0.0).dense()
    assert torch.allclose(change @ k[:, 0], r.mean(1), atol=1e-6)


def test_memory_keeps_keys_then_their_gram_matrix(numbers: dict[str, Tensor]) -> None:
    past = numbers["past"].T
    memory = remember({}, "site", past)
    assert torch.equal(memory["keys/site"], past)
    for _ in range(3):
        memory = remember(memory, "site", past)
    assert list(memory) == ["gram/site"]
    assert torch.allclose(memory["gram/site"], 4 * past.T @ past)


def test_the_running_inverse_is_the_one_from_scratch(numbers: dict[str, Tensor]) -> None:
    """Through a sequence that passes from keys to their Gram matrix, a rollback and another λ."""
    start = solve.inverse_of(numbers["X"] @ numbers["X"].T / 200)
    keys, lam = numbers["X"].T[:40].float(), 2.0
    running, memory = solve.RunningInverse(Symmetric.of(start)), {}
    memories = [memory]
    for batch in keys.split(5):
        now = running.after(memory.get("keys/w"), memory.get("gram/w"), lam)
        past = keys[: 5 * (len(memories) - 1)].T
        if past.shape[1]:
            assert torch.allclose(whole(now), whole(with_keys(start, past, lam)), atol=1e-5)
        memory = remember(memory, "w", batch)
        memories.append(memory)
        running.add(batch, memory.get("gram/w", memory.get("keys/w")), lam)
    assert "gram/w" in memory
    from_gram = solve.RunningInverse(Symmetric.of(start)).after(None, memory["gram/w"], lam)
    assert torch.allclose(whole(running.after(None, memory["gram/w"], lam)), whole(from_gram), atol=1e-5)
    back = running.after(memories[2]["keys/w"], None, lam)
    assert torch.allclose(whole(back), whole(with_keys(start, keys[:10].T, lam)), atol=1e-9)
    other = running.after(memories[3]["keys/w"], None, 5.0)
    assert torch.allclose(whole(other), whole(with_keys(start, keys[:15].T, 5.0)), atol=1e-9)
    assert torch.equal(whole(running.after(None, None, lam)), start)


def test_keys_that_coincide_join_the_history(numbers: dict[str, Tensor]) -> None:
    start = solve.inverse_of(numbers["X"] @ numbers["X"].T / 200)
    key = numbers["K"][:, :1]
    twice, exactly = key.repeat(1, 2), with_keys(start, key, 0.0)
    assert (exactly @ key).abs().max() < 1e-9  # λ = 0: nothing may move an earlier key
    assert torch.allclose(whole(with_keys(start, twice, 0.0)), whole(exactly), atol=1e-9)


@pytest.mark.parametrize("f", [1, 5, 32, 33, 100])
def test_half_of_a_symmetric_matrix_acts_as_the_whole(f: int) -> None:
    g = torch.Generator().manual_seed(f)
    x, k = (torch.randn(f, n, generator=g, dtype=torch.float64) for n in (f, 3))
    full = x + x.T
    half = Symmetric.of(full)
    assert torch.allclose(half @ k.float(), full @ k.float().double(), atol=1e-12)
    assert torch.allclose(half.less(k) @ k, (full - k @ k.T) @ k, atol=1e-12)
    assert torch.allclose(half @ k, full @ k, atol=1e-12)  # it is what it was
    assert half.less(k, in_place=True) is half
    assert torch.allclose(half @ k, (full - k @ k.T) @ k, atol=1e-12)
    assert half.nbytes <= 4 * f * f + 8 * f * (f / 64 + 1)


def test_what_was_used_last_is_kept() -> None:
    kept, made = Kept[str](), list[str]()

    def ask(name: str, share: float = 0.4, least: int = 1) -> str:
        return kept.get(name, lambda: made.append(name) or name, int(share * ROOM), least)

    for name in ("a", "b", "a", "c", "a", "b"):
        assert ask(name) == name
    assert made == ["a", "b", "c", "b"]
    assert kept.find("c") is None and kept.find("a") == "a"
    assert ask("small", 0.1) == "small" and kept.find("a") and kept.find("b")  # beside large ones
    assert ask("large", 2.0) == "large" and not any(map(kept.find, ("a", "b", "small")))
    assert ask("another", 2.0, 2) == "another" and kept.find("large")  # two may be held, whatever they take


def test_the_null_space_is_left_alone_by_what_is_known(numbers: dict[str, Tensor]) -> None:
    known = numbers["X"][:, :9]  # rank 9 of 24
    c = known @ known.T / 9
    projector = solve.null_projector(c, 1e-9)
    assert projector.trace().round() == F - 9
    assert torch.allclose(projector @ projector, projector, atol=1e-9)
    k, r, lam = numbers["K"], numbers["R"], 3.0
    change = least_squares(projector, k, r, lam).dense()
    assert (change @ known).abs().max() < 1e-9  # Δ K0 = 0
    expected = r @ k.T @ projector @ torch.linalg.inv(k @ k.T @ projector + lam * torch.eye(F))  # equation 12
    assert torch.allclose(change, expected, atol=1e-9)


# The whole edit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "granite", "gemma2"])
@pytest.mark.parametrize("name", ["r-rome", "rome", "memit"])
def test_the_new_value_is_met(name: str, arch: str) -> None:
    """After the edit the subject's key gives the value that the target asks for (one fact, λ → 0)."""
    lm = tiny_lm(arch)
    made: Any = method(name, contexts=2, lam=1e-6, layers=(1,))
    state = made.prepare(lm, TEXTS)
    resolved = made.resolve(lm, state)
    contexts = contexts_of(lm, 2, made.seed)
    edit, site = EDITS[0], lm.sites.mlp_out[1]
    context = EditContext(lm, [edit], contexts, state, EMPTY, {}, resolved.rows(lm, [edit], contexts))
    delta = resolved._targets(lm, [edit], context, resolved.target_site(lm, 1)).delta
    sites = [(site, "in"), (site, "out")]
    keys, values = resolved._read(lm, context, sites, []).values()
    with made.edit(lm, [edit], state).applied(lm) as edited:
        new_keys, new_values = resolved._read(edited, context, sites, []).values()
    expected = delta[0]
    if name == "r-rome":
        expected = expected + (values.bare - values.mean)[0]
    moved = new_values.bare - values.bare if name == "rome" else new_values.mean - values.mean
    assert torch.allclose(keys.mean, new_keys.mean, atol=1e-4)  # keys do not depend on this layer's weight
    assert torch.allclose(moved[0], expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox"])
def test_emmet_is_memit_in_one_layer_with_alpha_for_lambda(arch: str) -> None:
    """R (KᵀC⁻¹K + αI)⁻¹ KᵀC⁻¹ (equation 5) for a whole batch, with MEMIT's targets, contexts and residual."""
    lm = tiny_lm(arch)
    emmet, memit = method("emmet", lam=0.3, lr=0.1), method("memit", layers=(1,), lam=0.3, lr=0.1)
    state = memit.prepare(lm, TEXTS)
    one, two = (made.edit(lm, EDITS, state).parts[0] for made in (emmet, memit))
    assert isinstance(one, Delta) and isinstance(two, Delta) and one.weights.keys() == two.weights.keys()
    for name, w in one.weights.items():
        assert torch.equal(dense(w), dense(two.weights[name]))


def dense(w: Any) -> Tensor:
    return w if isinstance(w, Tensor) else w.dense()


def test_alphaedit_stays_in_the_null_space() -> None:
    """No change leaves it, so that what it does to known keys is bounded by the cut."""
    lm = tiny_lm("gpt2")
    site = lm.sites.mlp_out[1]
    made: Any = method("alphaedit", layers=(1,), contexts=0)
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, EDITS[:2], state)
    patch = made.edit(lm, EDITS[2:], state, patch)  # with the history of the first two
    delta = dense(patch.parts[0].weights[f"{site}.weight"]).double()
    c = state.tensors[f"C/{site}"].double()
    projector = solve.null_projector(c, made.cut)
    assert 0 < projector.trace() < len(c)
    assert torch.allclose(delta @ projector, delta, atol=1e-5 * float(delta.abs().max()))
    assert (delta @ c * delta).sum() <= made.cut * c.trace() * (delta**2).sum()


@pytest.mark.parametrize("name", ["memit", "alphaedit", "pmet"])
def test_blue_edits_the_first_and_the_last_layer_for_themselves(name: str) -> None:
    lm = tiny_lm("gpt2")
    made: Any = method(name, layers=(0, 1, 2), blue=True, contexts=0, lam=1e-6)
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, EDITS[:1], state)
    assert sorted(patch.parts[0].weights) == [f"{lm.sites.mlp_out[layer]}.weight" for layer in (0, 2)]
    alone: Any = method(name, layers=(0,), contexts=0, lam=1e-6, lr=made.resolve(lm, state).lr)
    rate = state.info["norms"][measured_at(lm, 0)] / state.info["norms"][measured_at(lm, 2)]
    first = replace(alone, lr=alone.lr * rate).edit(lm, EDITS[:1], state)
    for w, expected in zip(patch.parts[0].weights.values(), first.parts[0].weights.values()):
        assert torch.allclose(dense(w), dense(expected), atol=1e-5)  # whole residual, not a half of it
        break


def test_facts_in_turn_are_a_fold_of_changes_of_rank_one(numbers: dict[str, Tensor]) -> None:
    """Each takes what those before it did to its value into account, and is met when its turn comes."""
    k, r, inverse = numbers["K"], numbers["R"], torch.linalg.inv(numbers["X"] @ numbers["X"].T / 200)
    met = k + 0.1 * k.roll(1, 0)
    (found,) = solve.least_squares([inverse], [k], r, 0.0, [met], in_turn=True)
    whole = torch.zeros(len(r), len(k)).to(k)
    for i in range(k.shape[1]):
        x = inverse @ k[:, i]
        whole = whole + torch.outer(r[:, i] - whole @ met[:, i], x) / (x @ met[:, i])
        assert torch.allclose(whole @ met[:, i], r[:, i], atol=1e-9)
    assert torch.allclose(found.dense(), whole, atol=1e-9)
    assert not torch.allclose(whole @ met[:, 0], r[:, 0], atol=1e-4), "a later fact moves an earlier one's value"


def test_rome_reads_and_searches_facts_of_different_subjects_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    made: Any = method("r-rome", contexts=1, steps=3, together=2)
    state, searched = made.prepare(lm, TEXTS), list[list[str]]()
    find = choices.find_deltas

    def counted(lm: Any, edits: Any, *args: Any, **more: Any) -> Any:
        searched.append([edit.subject for edit in edits])
        return find(lm, edits, *args, **more)

    monkeypatch.setattr(choices, "find_deltas", counted)
    again = replace(EDITS[0], target_new="Oslo", id="")
    facts = [EDITS[0], again, *EDITS[1:]]
    a, b, c = (edit.subject for edit in EDITS)
    together = made.edit(lm, facts, state)
    assert searched == [[a], [a, b], [c]] and together.parts[0].weights
    patch = EMPTY
    for part in (facts[:1], facts[1:3], facts[3:]):
        patch = made.edit(lm, part, state, patch)
    for name, w in patch.parts[0].weights.items():
        assert torch.allclose(dense(w), dense(together.parts[0].weights[name]), atol=1e-6)


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_each_fact_of_a_part_has_the_value_that_its_search_found(name: str) -> None:
    """The last one, which nothing comes after: W' k = v + δ, whatever those before it did."""
    lm = tiny_lm("llama", torch.float64)
    made: Any = method(name, contexts=2, layers=(1,), steps=4)
    state = made.prepare(lm, TEXTS)
    alone, all_three = (made.edit(lm, edits, state) for edits in (EDITS[2:], EDITS))
    site = (lm.sites.mlp_out[1], "out")
    rows = SubjectRows.of(lm, EDITS[2:], contexts_of(lm, 2, made.seed))
    values: list[Tensor] = []
    for patch in (alone, all_three):
        with patch.applied(lm) as edited:
            read = rows.read(edited, [site])[site]
            values.append(read.bare if name == "rome" else read.mean)
    assert torch.allclose(*values, atol=1e-5 * float(values[0].norm()))


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_rome_edits_one_layer_at_a_time(name: str) -> None:
    with pytest.raises(BadInput, match=rf"{name} gives one layer the whole new value, which \(1, 2\) would all add"):
        method(name, layers=(1, 2))
    assert method(name, layers=(1, 2), blue=True) != method(name, layers=(1,))  # each with a value of its own


def test_nas_gives_new_values_one_length() -> None:
    """That of the model's training cases on the unedited model, whatever is edited; without the longest."""
    lm = tiny_lm("gpt2")
    lm.resources = Resources(cases=lambda: CASES)
    made: Any = method("memit", layers=(1,), nas=True, contexts=0)
    state = made.prepare(lm, TEXTS)
    resolved, site = made.resolve(lm, state), InterventionSite(1)
    context = EditContext(lm, EDITS, [""], state, EMPTY, {}, resolved.rows(lm, EDITS, [""]))
    free = resolved._targets(lm, EDITS, context, site)
    anchored = resolved._anchored(context, free, site)
    c = context.memory["anchor/" + lm.sites.mlp_out[1]].item()
    others = resolved._targets(lm, [edit for case in CASES for edit in case.edits], context, site)
    kept = (others.value + others.delta).norm(dim=-1).sort().values[:-1]
    assert c == pytest.approx(kept.mean().item(), rel=1e-5)
    assert torch.allclose((free.value + anchored.delta).norm(dim=-1), torch.full((3,), c), rtol=1e-5)
    far = resolved._anchored(context, replace(free, delta=free.delta * 100), site)
    assert not far.delta.any(), "a value of more than twice the length makes no edit"
    patch = made.edit(lm, EDITS, state)
    again = made.edit(lm, EDITS[:1], state, patch)
    assert torch.equal(again.memory["anchor/" + lm.sites.mlp_out[1]], patch.memory["anchor/" + lm.sites.mlp_out[1]])


def test_without_cases_nas_measures_on_many_facts_made_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    lm.resources = Resources(texts=lambda: iter(TEXTS))
    facts = anchor.invented_facts(lm, 12, 0)
    assert len(facts) > 8 and facts == anchor.invented_facts(lm, 12, 0)
    for fact in facts:
        assert fact.prompt.startswith(fact.subject) and len(fact.subject) < len(fact.prompt)
        assert any(fact.target_new in text and not text.startswith(fact.prompt) for text in TEXTS)
    monkeypatch.setattr(anchor, "ANCHOR_FACTS", 12)
    made: Any = method("memit", layers=(1,), nas=True, contexts=0, steps=3)
    state = made.prepare(lm, TEXTS)
    one, all_three = (made.edit(lm, edits, state).memory for edits in (EDITS[:1], EDITS))
    lengths = [name for name in one if name.startswith(anchor.ANCHOR)]
    assert lengths and [one[name] for name in lengths] == [all_three[name] for name in lengths]


def resolved_for(lm: Any, name: str = "memit", **settings: Any) -> Any:
    made: Any = method(name, contexts=2, **settings)
    return made.resolve(lm, made.prepare(lm, TEXTS))


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("kind", ["memit", "preserve", "pmet"])
@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.3), ("normalised", 0.8)])
def test_fast_targets_are_the_plain_ones(arch: str, kind: str, optimizer: str, lr: float) -> None:
    """Float64: the whole optimisation agrees, facts leaving on their own included."""
    lm = tiny_lm(arch, torch.float64)
    name = "pmet" if kind == "pmet" else "memit"
    preserve = 2.0 if kind == "preserve" else 0.0
    settings = resolved_for(lm, name, preserve=preserve, steps=20, optimizer=optimizer, lr=lr)
    site, contexts = settings.target_site(lm, 1), ["", "The king was in Rome. "]
    paths = len(site.paths(lm.sites))
    assert paths == (2 if kind == "pmet" else 1)
    limits, units = torch.full((3, paths), 60.0), torch.full((3, paths), 5.0)
    tried = find_deltas(lm, EDITS, site, contexts, replace(settings, steps=10, stop=0.0), limits, units)
    settings = replace(settings, stop=float(tried.final_loss.median()) + 1e-6)  # so that they do not all stop together
    with_all = (lm, EDITS, site, contexts, settings, limits, units)
    fast, plain = find_deltas(*with_all), find_deltas(*with_all, plain=True)
    lm.budget = 150  # two groups: what is left of the first is taken up again
    split = find_deltas(*with_all)
    assert torch.allclose(split.delta, plain.delta, atol=1e-8)
    assert fast.delta.dtype == torch.float64
    assert torch.equal(fast.steps, plain.steps)
    assert len(set(fast.steps.tolist())) > 1, "the facts should stop at different steps"
    assert torch.allclose(fast.delta, plain.delta, atol=1e-8)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox"])
def test_first_gradient_agrees_in_float32(arch: str) -> None:
    lm = tiny_lm(arch)
    settings = resolved_for(lm)
    site, contexts = InterventionSite(1), ["", "The king was in Rome. "]
    rows = [rows_of(lm, edit, contexts, settings) for edit in EDITS]
    grads: list[Tensor] = []
    for plain in (False, True):
        search = GroupSearch(lm, rows, site, settings, plain)
        search.losses(torch.zeros(3, 32), torch.ones(3, 1))
        delta = torch.full((3, 32), 0.01, requires_grad=True)
        losses = search.losses(delta, torch.ones(3, 1))
        grads.append(torch.autograd.grad(losses.sum(), delta)[0])
    assert torch.allclose(grads[0], grads[1], atol=1e-5)


@pytest.mark.parametrize("steps", [3, 12])
@pytest.mark.parametrize("optimizer", ["normalised", "adam"])
@pytest.mark.parametrize("name", ["memit", "pmet"])
def test_asking_without_a_graph_first_changes_no_result(
    name: str, optimizer: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts near their end are asked so, or none is: the same δ, losses and looks, from fewer gradients."""
    lm = tiny_lm("llama", torch.float64)
    settings = resolved_for(lm, name, steps=steps, stop=0.0, optimizer=optimizer, lr=0.8)
    site, grad = settings.target_site(lm, 1), torch.autograd.grad
    paths = len(site.paths(lm.sites))
    limits, units = torch.full((3, paths), 60.0), torch.full((3, paths), 5.0)
    with_all = (lm, EDITS, site, ["", "The king was in Rome. "])
    tried = find_deltas(*with_all, settings, limits, units)
    settings = replace(settings, stop=float(tried.final_loss.median()) + 1e-6)
    gradients: list[int] = []

    def counted(loss: Tensor, delta: Tensor) -> Any:
        gradients[-1] += len(delta)
        return grad(loss, delta)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    found: list[Any] = []
    for near in (1e9, 0):
        monkeypatch.setattr("errata.methods.closed_form.search.NEAR", near)
        gradients.append(0)
        found.append(find_deltas(*with_all, settings, limits, units))
    fast, slow = found
    assert fast.finished.all()
    assert torch.allclose(fast.delta, slow.delta, atol=1e-10)
    assert torch.equal(fast.steps, slow.steps)
    assert torch.equal(fast.met, slow.met)
    assert torch.allclose(fast.final_loss, slow.final_loss)
    assert fast.met.any()
    fewer = (name, optimizer, steps) == ("memit", "normalised", 12)  # the others are met at their last look
    assert gradients[0] < gradients[1] if fewer else gradients[0] <= gradients[1]


def test_the_search_is_adam_with_a_projection() -> None:
    """Against torch's own Adam, written out for one fact."""
    lm = tiny_lm("gpt2", torch.float64)
    settings = resolved_for(lm, steps=8, stop=0.0, optimizer="adam")
    site, limit = InterventionSite(1), 3.0
    rows = [rows_of(lm, EDITS[0], [""], settings)]
    search = GroupSearch(lm, rows, site, settings, True)
    delta = torch.zeros(1, 32, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.lr)
    for _ in range(settings.steps - 1):
        adam.zero_grad()
        search.losses(delta, torch.ones(1, 1)).sum().backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    limits, units = torch.tensor([[limit]]), torch.ones(1, 1)
    result = find_deltas(lm, EDITS[:1], site, [""], settings, limits, units, plain=True)
    assert torch.allclose(result.delta, delta.detach(), atol=1e-10)


def test_normalised_steps_fall_and_the_first_looks_at_the_bare_prompt() -> None:
    """Steps of lr √d, lr √d FALL … along the gradient: first of the bare prompt's loss, then of all rows."""
    lm = tiny_lm("llama", torch.float64)
    settings = replace(resolved_for(lm, steps=4, stop=0.0, lr=0.2), search_contexts=1)
    site, contexts = InterventionSite(1), ["", "The king was in Rome. ", "She saw Paris. "]
    bare, both = (
        GroupSearch(lm, [rows_of(lm, EDITS[0], some, settings)], site, settings, True)
        for some in (contexts[:1], contexts[:2])
    )
    delta = torch.zeros(1, 32, dtype=torch.float64)
    for step, search in enumerate((bare, both, both)):
        moved = delta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(search.losses(moved, torch.ones(1, 1)).sum(), moved)
        delta = delta - 0.2 * 32**0.5 * FALL**step * gradient / gradient.norm()
    result = find_deltas(lm, EDITS[:1], site, contexts, settings, torch.full((1, 1), 1e9), torch.ones(1, 1))
    assert torch.allclose(result.delta, delta, atol=1e-8)


@pytest.mark.parametrize(
    ("optimizer", "stop", "floor", "still"),
    [
        ("normalised", 0.05, 1.2, True),
        ("normalised", 0.05, 3, False),
        ("normalised", 2, 1.2, False),
        ("adam", 0.05, 1.2, False),
    ],
)
def test_a_search_ends_where_its_loss_hardly_falls_near_its_end(
    optimizer: str, stop: float, floor: float, still: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no step can bring a small loss below 1.2 times the one that ends the search, none is taken in vain."""
    settings = resolved_for(tiny_lm("gpt2"), steps=25, stop=stop, lr=0.1, optimizer=optimizer)
    asked: list[bool] = []

    def losses(search: GroupSearch, delta: Tensor, *rest: Any) -> Tensor:
        asked.append(delta.requires_grad)
        return settings.stop * floor * (1 + (-2 * delta[:, 0]).exp())

    monkeypatch.setattr(GroupSearch, "losses", losses)
    lm, limits, units = tiny_lm("gpt2"), torch.full((1, 1), 1e9), torch.ones(1, 1)
    result = find_deltas(lm, EDITS[:1], InterventionSite(1), [""], settings, limits, units)
    assert result.finished.all() and not result.met.any()
    assert (result.steps.item() < 10) == still
    assert result.final_loss.item() < settings.stop * (2 if still else 4)
    assert asked.count(False) <= 3, "no look without a graph where it would end nothing"


def test_an_answer_that_the_model_gives_already_is_no_reason_to_move() -> None:
    """Not even where only the bare prompt was asked so far: a second look, at all rows, ends the search at δ = 0."""
    lm = tiny_lm("gpt2", torch.float64)
    settings = resolved_for(lm, steps=5, stop=1e9)
    limits, units = torch.ones(3, 1), torch.ones(3, 1)
    result = find_deltas(lm, EDITS, InterventionSite(1), ["", "She saw Paris. "], settings, limits, units)
    assert result.steps.tolist() == [2.0] * 3 and result.met.all() and not result.delta.any()


def test_a_search_of_one_step_is_judged_by_all_rows() -> None:
    lm = tiny_lm("gpt2", torch.float64)
    settings = resolved_for(lm, steps=1, stop=0.0)
    contexts, site = ["", "She saw Paris. "], InterventionSite(1)
    result = find_deltas(lm, EDITS[:1], site, contexts, settings, torch.ones(1, 1), torch.ones(1, 1))
    bare, both = (
        GroupSearch(lm, [rows_of(lm, EDITS[0], some, settings)], site, settings, True)
        .losses(torch.zeros(1, 32, dtype=torch.float64), torch.ones(1, 1))
        .item()
        for some in (contexts[:1], contexts)
    )
    assert result.final_loss.item() == pytest.approx(both, abs=1e-8) and bare != pytest.approx(both, abs=1e-4)


def test_losses_by_hand() -> None:
    """The objective's terms against the model's own log-probabilities."""
    lm = tiny_lm("llama")
    settings = replace(resolved_for(lm), kl=0.5, decay=0.25)
    rows = [rows_of(lm, EDITS[1], ["", "Rome is old. "], settings)]
    search = GroupSearch(lm, rows, InterventionSite(1), settings, False)
    loss = search.losses(torch.zeros(1, 32), torch.ones(1, 1))
    prompts = [EDITS[1].prompt, "Rome is old. " + EDITS[1].prompt]
    scores = lm.score(prompts, [EDITS[1].target_new] * 2)
    by_hand = sum(-score.total / len(score.tokens) for score in scores) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-4)  # no δ: no KL, no decay
    moved = torch.full((1, 32), 0.1)  # from here on the KL counts too
    decay = 0.25 * moved.norm().item() / 4.0
    with_decay = search.losses(moved, torch.full((1, 1), 2.0))
    without = search.losses(moved, torch.full((1, 1), 1e9))
    assert (with_decay - without).item() == pytest.approx(decay, rel=1e-3)


def test_low_rank_becomes_dense_where_that_is_smaller() -> None:
    thin = LowRank(torch.ones(6, 2), torch.ones(2, 8))
    assert isinstance(thin + LowRank(torch.ones(6, 1), torch.ones(1, 8)), LowRank)
    both = thin + thin
    assert isinstance(both, Tensor) and torch.equal(both, 2 * thin.dense())
    delta = Delta({"w": thin}) + Delta({"w": thin})
    assert torch.equal(delta.tensors()["w"], 2 * thin.dense())


# More facts than directions -----------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["inverse", "projector"])
@pytest.mark.parametrize("n", [F // 2 + 1, F, 3 * F + 1])
def test_facts_in_portions_have_the_change_of_all_together(metric: str, n: int, numbers: dict[str, Tensor]) -> None:
    """n x n at once (Woodbury), and a portion after another: one least-squares problem."""
    c = numbers["X"] @ numbers["X"].T / 200
    m = Symmetric.of(solve.inverse_of(c) if metric == "inverse" else solve.scaled_null_projector(c, 0.3))
    before = whole(m).clone()
    g = torch.Generator().manual_seed(2)
    k, r = (torch.randn(rows, n, generator=g, dtype=torch.float64) for rows in (F, D))
    k[:, 1] = k[:, 0]  # two facts of one subject
    assert portions.pays(k, 0.5) and not portions.pays(k, 0.0) and not portions.pays(k[:, : F // 2], 0.5)
    got = portions.least_squares(m, k, r, 0.5)
    (together,) = solve.least_squares([m], [k], r, 0.5)
    assert isinstance(got, Tensor) and torch.allclose(got, together.dense(), atol=1e-9)
    assert torch.equal(whole(m), before)


def test_portions_give_way_where_rounding_leaves_no_factor(
    numbers: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    k, r = torch.randn(F, 2 * F, dtype=torch.float64), torch.randn(D, 2 * F, dtype=torch.float64)
    m = Symmetric.of(torch.eye(F, dtype=torch.float64))
    (together,) = solve.least_squares([m], [k], r, 0.5)
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda x: (factor(x)[0], torch.ones((), dtype=torch.int)))
    got: Any = portions.least_squares(m, k, r, 0.5)
    assert torch.equal(got.dense(), together.dense())


def test_many_keys_join_an_inverse_as_all_at_once(numbers: dict[str, Tensor]) -> None:
    keys = torch.randn(2 * F, F, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    running = solve.RunningInverse(Symmetric.of(torch.eye(F, dtype=torch.float64)))
    joined = running.after(keys, None, 0.7)
    assert torch.allclose(whole(joined), torch.linalg.inv(torch.eye(F, dtype=torch.float64) + keys.T @ keys / 0.7))
    again = solve.RunningInverse(running.initial).after(None, keys.T @ keys, 0.7)
    assert torch.allclose(whole(again), whole(joined))


@pytest.mark.parametrize("name", ["memit", "alphaedit", "emmet", "pmet"])
def test_an_edit_of_more_facts_than_directions_is_the_one_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    made = method(name, **({"cut": 0.3} if name == "alphaedit" else {}), layers=(1,), contexts=0, steps=1)
    state = made.prepare(lm, TEXTS)
    facts = [replace(EDITS[0], prompt=f"Ann {i} Lee was born in", subject=f"Ann {i} Lee", id="") for i in range(40)]
    patch: Any = made.edit(lm, facts, state)
    monkeypatch.setattr(portions, "pays", lambda *_: False)
    for weight, change in made.edit(lm, facts, state).parts[0].weights.items():  # pyright: ignore
        assert torch.allclose(dense(change), dense(patch.parts[0].weights[weight]), atol=1e-5, rtol=1e-3)
