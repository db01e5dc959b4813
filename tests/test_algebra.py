"""Each closed form as algebra, and the fast search for targets against its plain reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, tiny_lm
from torch import Tensor

from errata.methods import _closed_form, _keys, _solve, _targets, method
from errata.passes import Place
from errata.patch import Delta, LowRank, remember

F, D, N = 24, 10, 4


@pytest.fixture()
def numbers() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {"X": draw(F, 200), "K": draw(F, N), "R": draw(D, N), "past": draw(F, 7), "W": draw(D, F)}


def test_solution_is_the_dense_one(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, r, lam = numbers["K"], numbers["R"], 3.0
    got = _solve.least_squares(_solve.inverse_of(c), k, r, lam).dense()
    expected = r @ k.T @ torch.linalg.inv(lam * c + k @ k.T)  # MEMIT, equation 14
    assert torch.allclose(got, expected, atol=1e-5)


def test_history_is_the_dense_one(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, r, past, lam = numbers["K"], numbers["R"], numbers["past"], 3.0
    inverse = _solve.with_keys(_solve.inverse_of(c), past, lam)
    got = _solve.least_squares(inverse, k, r, lam).dense()
    expected = r @ k.T @ torch.linalg.inv(lam * c + past @ past.T + k @ k.T)
    assert torch.allclose(got, expected, atol=1e-5)


def test_lambda_to_zero_interpolates_and_to_infinity_does_nothing(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, r = numbers["K"], numbers["R"]
    inverse = _solve.inverse_of(c)
    assert torch.allclose(_solve.least_squares(inverse, k, r, 1e-9).dense() @ k, r, atol=1e-6)
    assert _solve.least_squares(inverse, k, r, 1e12).dense().abs().max() < 1e-9


def test_one_fact_is_romes_rank_one_update(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    k, w = numbers["K"][:, :1], numbers["W"]
    v = numbers["R"][:, :1]
    got = w + _solve.least_squares(_solve.inverse_of(c), k, v - w @ k, 0.0).dense()
    u = torch.linalg.solve(c, k)
    expected = w + (v - w @ k) @ u.T / (u.T @ k)  # ROME, equation 2
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(got @ k, v, atol=1e-9)  # W' k* = v*


def test_mixed_keys_meet_the_bare_one(numbers: dict[str, Tensor]) -> None:
    c = numbers["X"] @ numbers["X"].T / 200
    mean, bare, r = numbers["K"][:, :1], numbers["past"][:, :1], numbers["R"][:, :1]
    change = _solve.least_squares(_solve.inverse_of(c), mean, r, 0.0, bare).dense()
    assert torch.allclose(change @ bare, r, atol=1e-9)
    direction = torch.linalg.solve(c, mean)
    assert torch.linalg.matrix_rank(torch.cat([change, direction.T]), rtol=1e-4) == 1


def test_two_facts_of_one_subject_share_what_they_can(numbers: dict[str, Tensor]) -> None:
    k = numbers["K"][:, :1].repeat(1, 2)
    r = numbers["R"][:, :2]
    change = _solve.least_squares(_solve.inverse_of(torch.eye(F)), k, r, 0.0).dense()
    assert torch.allclose(change @ k[:, 0], r.mean(1), atol=1e-6)


def test_memory_keeps_keys_then_their_gram_matrix(numbers: dict[str, Tensor]) -> None:
    past = numbers["past"].T
    memory = remember({}, "site", past)
    assert torch.equal(memory["keys/site"], past)
    for _ in range(3):
        memory = remember(memory, "site", past)
    assert list(memory) == ["gram/site"]
    assert torch.allclose(memory["gram/site"], 4 * past.T @ past)


# The whole edit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "granite", "gemma2"])
@pytest.mark.parametrize("name", ["r-rome", "rome", "memit"])
def test_the_new_value_is_met(name: str, arch: str) -> None:
    """After the edit the subject's key gives the value that the target asks for (one fact, λ → 0)."""
    lm = tiny_lm(arch)
    made: Any = method(name, contexts=2, lam=1e-6, layers=(1,))
    state = made.prepare(lm, TEXTS)
    resolved = made.resolve(lm, state)
    contexts = _keys.contexts_of(lm, 2, made.seed)
    edit, site = EDITS[0], lm.sites.mlp_out[1]
    place = _closed_form.place_of(lm, 1)
    delta, _ = resolved._targets(lm, [edit], contexts, place)
    keys, values, _ = resolved._seen(lm, [edit], contexts, site, place)
    with made.edit(lm, [edit], state).applied(lm) as edited:
        new_keys, new_values, _ = resolved._seen(edited, [edit], contexts, site, place)
    wanted = delta[0] / (lm.sites.gain[1] or 1.0)
    if name == "r-rome":
        wanted = wanted + (values.bare - values.mean)[0]
    moved = new_values.bare - values.bare if name == "rome" else new_values.mean - values.mean
    assert torch.allclose(keys.mean, new_keys.mean, atol=1e-4)  # keys do not depend on this layer's weight
    assert torch.allclose(moved[0], wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def goal(lm: Any, **settings: Any) -> Any:
    made: Any = method("memit", contexts=2, **settings)
    return made.resolve(lm, made.prepare(lm, TEXTS))


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("preserve", [0.0, 2.0])
def test_fast_targets_are_the_plain_ones(arch: str, preserve: float) -> None:
    """Float64: the whole optimisation agrees, facts leaving on their own included."""
    lm = tiny_lm(arch, torch.float64)
    settings = goal(lm, preserve=preserve, steps=20, lr=0.3)
    place, contexts = Place(1), ["", "The king was in Rome. "]
    limits, units = torch.full((3,), 60.0), torch.full((3,), 5.0)
    tried = _targets.find_deltas(lm, EDITS, place, contexts, replace(settings, steps=10, stop=0.0), limits, units)
    settings = replace(settings, stop=float(tried.loss.median()) + 1e-6)  # so that they do not all stop together
    with_all = (lm, EDITS, place, contexts, settings, limits, units)
    fast, plain = _targets.find_deltas(*with_all), _targets.find_deltas(*with_all, plain=True)
    lm.budget = 150  # two groups: what is left of the first is taken up again
    split = _targets.find_deltas(*with_all)
    assert torch.allclose(split.delta, plain.delta, atol=1e-8)
    assert fast.delta.dtype == torch.float64
    assert torch.equal(fast.steps, plain.steps)
    assert len(set(fast.steps.tolist())) > 1, "the facts should stop at different steps"
    assert torch.allclose(fast.delta, plain.delta, atol=1e-8)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox"])
def test_first_gradient_agrees_in_float32(arch: str) -> None:
    lm = tiny_lm(arch)
    settings = goal(lm)
    place, contexts = Place(1), ["", "The king was in Rome. "]
    rows = [_targets.rows_of(lm, edit, contexts, settings) for edit in EDITS]
    grads: list[Tensor] = []
    for plain in (False, True):
        search = _targets._Search(lm, rows, place, settings, plain)
        search.losses(torch.zeros(3, 32), torch.ones(3))
        delta = torch.full((3, 32), 0.01, requires_grad=True)
        losses = search.losses(delta, torch.ones(3))
        grads.append(torch.autograd.grad(losses.sum(), delta)[0])
    assert torch.allclose(grads[0], grads[1], atol=1e-5)


def test_the_search_is_adam_with_a_projection() -> None:
    """Against torch's own Adam, written out for one fact."""
    lm = tiny_lm("gpt2", torch.float64)
    settings = goal(lm, steps=8, stop=0.0)
    place, limit = Place(1), 3.0
    rows = [_targets.rows_of(lm, EDITS[0], [""], settings)]
    search = _targets._Search(lm, rows, place, settings, True)
    delta = torch.zeros(1, 32, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.lr)
    for _ in range(settings.steps - 1):
        adam.zero_grad()
        search.losses(delta, torch.ones(1)).sum().backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    found = _targets.find_deltas(lm, EDITS[:1], place, [""], settings, torch.tensor([limit]), torch.ones(1), plain=True)
    assert torch.allclose(found.delta, delta.detach(), atol=1e-10)


def test_losses_by_hand() -> None:
    """The objective's terms against the model's own log-probabilities."""
    lm = tiny_lm("llama")
    settings = replace(goal(lm), kl=0.5, decay=0.25)
    rows = [_targets.rows_of(lm, EDITS[1], ["", "Rome is old. "], settings)]
    search = _targets._Search(lm, rows, Place(1), settings, False)
    loss = search.losses(torch.zeros(1, 32), torch.ones(1))
    asked = [EDITS[1].prompt, "Rome is old. " + EDITS[1].prompt]
    scores = lm.score(asked, [EDITS[1].target_new] * 2)
    by_hand = sum(-score.total / len(score.tokens) for score in scores) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-4)  # no δ: no KL, no decay
    moved = torch.full((1, 32), 0.1)  # from here on the KL counts too
    decay = 0.25 * moved.norm().item() / 4.0
    with_decay = search.losses(moved, torch.full((1,), 2.0))
    without = search.losses(moved, torch.full((1,), 1e9))
    assert (with_decay - without).item() == pytest.approx(decay, rel=1e-3)


def test_low_rank_becomes_dense_where_that_is_smaller() -> None:
    thin = LowRank(torch.ones(6, 2), torch.ones(2, 8))
    assert isinstance(thin + LowRank(torch.ones(6, 1), torch.ones(1, 8)), LowRank)
    both = thin + thin
    assert isinstance(both, Tensor) and torch.equal(both, 2 * thin.dense())
    delta = Delta({"w": thin}) + Delta({"w": thin})
    assert torch.equal(delta.tensors()["w"], 2 * thin.dense())
