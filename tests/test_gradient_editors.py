"""Editors over gradients against plain autograd: the factors of a gradient, the outer gradient, least squares."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, EDITS, quick, tiny_lm
from torch import Tensor

from errata.errors import BadInput
from errata.methods.registry import method
from errata.methods.trained import objective
from errata.methods.trained.examples import Example, examples_of
from errata.methods.trained.gradient import ultraedit as ultra
from errata.methods.trained.gradient.gradients import token_gradients
from errata.methods.trained.gradient.least_squares import least_squares
from errata.methods.trained.gradient.network import GradientNetwork, Running
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.weights import oriented, weight_shape
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.memory import GRAM, KEYS, forget, freed, remember
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

DOUBLE = torch.float64


def names_of(lm: HFLM) -> list[str]:
    stacks = [lm.sites, *([lm.sites.encoder] if lm.sites.encoder else [])]
    return [f"{path}.weight" for s in stacks for path in (*s.mlp_in[0], s.mlp_out[0], *s.mlp_in[-1], s.mlp_out[-1])]


def pairs_of(lm: HFLM) -> list[Any]:
    return [(lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new)) for e in EDITS]


def plain_gradients(lm: HFLM, pairs: list[Any], names: list[str]) -> dict[str, Tensor]:
    """The gradient of each weight, (out, in), by autograd."""
    params = {name: lm.model.get_parameter(name).detach().clone().requires_grad_() for name in names}
    loss: Any = 0
    for pair in pairs:
        loss = loss + objective.nll(lm.target_logits([pair], params), [pair])[0]
    found = torch.autograd.grad(loss, list(params.values()))
    return {name: oriented(lm.model, name, g) for name, g in zip(names, found, strict=True)}


# Factors of a gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "gemma3_text", "t5"])
@pytest.mark.parametrize("budget", [1, 4096])
def test_the_factors_multiply_to_the_gradient_of_the_weight(arch: str, budget: int) -> None:
    lm = tiny_lm(arch, DOUBLE)
    lm.budget = budget
    pairs, names = pairs_of(lm), names_of(lm)
    with hooks.frozen(lm.model):
        found = token_gradients(lm, pairs, names)
    for name, expected in plain_gradients(lm, pairs, names).items():
        g = found[name]
        assert g.of.tolist() == sorted(g.of.tolist()) and set(g.of.tolist()) == {0, 1, 2}
        assert torch.allclose(g.delta.T @ g.u, expected, atol=1e-9), name
        alone = plain_gradients(lm, pairs[1:2], [name])[name]
        assert torch.allclose(g.only(1).delta.T @ g.only(1).u, alone, atol=1e-9)


def test_gradients_may_be_read_where_answers_are_predicted() -> None:
    lm = tiny_lm("gpt2", DOUBLE)
    pairs, names = pairs_of(lm), names_of(lm)
    with hooks.frozen(lm.model):
        whole, answers = token_gradients(lm, pairs, names), token_gradients(lm, pairs, names, answers_only=True)
    for name in names:
        assert len(answers[name].u) == sum(len(target) for _, target in pairs) < len(whole[name].u) or "3." in name
        rows = answers[name].u[answers[name].of == 0]
        last = whole[name].u[whole[name].of == 0][-len(pairs[0][1]) :]
        assert torch.equal(rows, last), "in a decoder the answer's tokens are the last with a gradient"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_survive_half_precision(dtype: torch.dtype) -> None:
    lm, exact = tiny_lm("llama", dtype), tiny_lm("llama", torch.float32)
    names = names_of(lm)
    with hooks.frozen(lm.model), hooks.frozen(exact.model):
        half, full = token_gradients(lm, pairs_of(lm), names), token_gradients(exact, pairs_of(exact), names)
    for name in names:
        assert half[name].delta.dtype == torch.float32 and len(half[name].delta) == len(full[name].delta)
        off = (half[name].delta - full[name].delta).norm() / full[name].delta.norm()
        assert off < 0.1, name


def test_gradients_at_other_weights_are_those_of_the_changed_model() -> None:
    lm = tiny_lm("gpt2", DOUBLE)
    pairs, names = pairs_of(lm), names_of(lm)[:1]
    change = torch.randn(oriented(lm.model, names[0], lm.model.get_parameter(names[0])).shape, dtype=DOUBLE) * 0.1
    with hooks.frozen(lm.model):
        weights = objective.changed(lm, {names[0]: change})
        found = token_gradients(lm, pairs, names, weights)[names[0]]
        same = token_gradients(lm, pairs, names)[names[0]]
    expected = torch.zeros_like(change)
    for pair in pairs:
        leaf = change.clone().requires_grad_()
        loss = objective.nll(lm.target_logits([pair], objective.changed(lm, {names[0]: leaf})), [pair])[0]
        expected += torch.autograd.grad(loss, leaf)[0]
    assert torch.allclose(found.delta.T @ found.u, expected, atol=1e-9)
    assert not torch.allclose(same.delta.T @ same.u, expected, atol=1e-9)


# The outer gradient --------------------------------------------------------------------------------


def plain_objective(lm: HFLM, changes: Any, examples: list[Example], c_edit: float, c_keep: float) -> Tensor:
    """The objective, each prompt in a pass of its own, in one graph."""
    weights = objective.changed(lm, changes)
    follow = [a.ids(lm) for e in examples for a in (e.asked, *e.follow)]
    keep = [a.ids(lm) for e in examples for a in e.keep]
    edit = torch.stack([objective.nll(lm.target_logits([pair], weights), [pair])[0] for pair in follow]).mean()
    divergences: list[Tensor] = []
    for pair in keep:
        before = lm.target_logits([pair]).log_softmax(-1).detach()
        now = lm.target_logits([pair], weights).log_softmax(-1)
        divergences.append((before.exp() * (before - now)).sum(-1).mean())
    return c_edit * edit + c_keep * torch.stack(divergences).mean()


def trained_network(made: Any, lm: HFLM) -> Any:
    """A network whose parameters are none of the special ones that it begins with."""
    torch.manual_seed(1)
    network = made.network(lm).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return network


@pytest.mark.parametrize("name", ["mend", "malmen"])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "t5"])
def test_the_two_stages_give_the_gradient_of_autograd_through_everything(name: str, arch: str) -> None:
    lm = tiny_lm(arch, DOUBLE)
    lm.budget = 16  # several batches
    made: Any = method(name, rank=4, batch=3).resolve(lm, None)  # type: ignore[arg-type]
    examples, network = examples_of(lm, name, CASES)[:3], trained_network(made, lm)
    rng, again = Random(0), Random(0)
    with hooks.frozen(lm.model):
        losses = made.backward(lm, network, examples, rng)
        two_stages = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        some = [e.sampled(again, made.follow, made.keep) for e in examples]
        gradients = made.gradients(lm, some)
        groups = [(gradients, some)]
        if not made.together:
            groups = [({n: g.only(i) for n, g in gradients.items()}, [e]) for i, e in enumerate(some)]
        total: Any = 0
        for g, of in groups:
            changes = {n: w.dense() if isinstance(w, LowRank) else w for n, w in made.changes(network, g).items()}
            total = total + plain_objective(lm, changes, of, made.c_edit, made.c_keep) / len(groups)
        total.backward()
    assert losses["loss"] == pytest.approx(total.item(), rel=1e-9)
    assert any(bool(g.any()) for g in two_stages)
    precise = 1e-8 if arch == "gpt2" else 1e-6  # the norms of the others compute in float32, whatever comes in
    for one, p in zip(two_stages, network.parameters(), strict=True):
        assert p.grad is not None and torch.allclose(one, p.grad, atol=precise)


def test_the_gradient_of_mend_is_right_by_finite_differences() -> None:
    lm = tiny_lm("gpt2", DOUBLE)
    made: Any = method("mend", layers=(1,), rank=2).resolve(lm, None)  # type: ignore[arg-type]
    example = examples_of(lm, "mend", CASES)[0]
    network = trained_network(made, lm)
    with hooks.frozen(lm.model):
        gradients = made.gradients(lm, [example])

        def loss(step: Tensor, up: Tensor) -> Tensor:
            parameters = {"log_step.0": step, "blocks.0.0.up": up}
            changes = torch.func.functional_call(_Changes(made, network, gradients), parameters, ())
            return plain_objective(lm, changes, [example], 1.0, 1.0)

        names = dict(network.named_parameters())
        inputs = tuple(names[n].detach().clone().requires_grad_() for n in ("log_step.0", "blocks.0.0.up"))
        assert torch.autograd.gradcheck(loss, (inputs[0], inputs[1]), fast_mode=True, atol=1e-6)


class _Changes(torch.nn.Module):
    """A network's changes of weights as the output of a module, for ``functional_call``."""

    def __init__(self, made: Any, network: Any, gradients: Any) -> None:
        super().__init__()
        self.log_step, self.blocks = network.log_step, network.blocks
        self.rest = (made, network, gradients)

    def forward(self) -> dict[str, Tensor]:
        made, network, gradients = self.rest
        return {name: change.dense() for name, change in made.changes(network, gradients).items()}


def test_what_stays_pulls_as_well() -> None:
    """A penalty that is logged has a gradient."""
    lm = tiny_lm("gpt2", DOUBLE)
    name = names_of(lm)[0]
    keep = [a for e in examples_of(lm, "mend", CASES) for a in e.keep]
    change = torch.randn(oriented(lm.model, name, lm.model.get_parameter(name)).shape, dtype=DOUBLE) * 0.1
    with hooks.frozen(lm.model):
        losses, gradient = objective.outer_gradient(lm, {name: change}, [], keep, c_edit=1.0, c_keep=1.0)
        nothing = objective.outer_gradient(lm, {name: 0 * change}, [], keep, c_edit=1.0, c_keep=1.0)
    assert losses["keep"] > 0 and bool(gradient[name].any())
    assert nothing[0]["keep"] == pytest.approx(0, abs=1e-12)


def test_outcomes_count_what_was_known(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    examples = examples_of(lm, "mend", CASES)[:2]
    # of the edits, of what follows (a paraphrase and a question of each), of what is to stay: before, and of that known
    told = iter([[True, False], [True, True, True, False], [True, False, True, True], [True, True, False]])
    asked: list[int] = []

    def right(lm: HFLM, pairs: Any, weights: Any = None) -> list[bool]:
        asked.append(len(pairs))
        return next(told)

    monkeypatch.setattr(objective, "right", right)
    found = objective.outcome(lm, {}, examples)
    assert asked == [2, 4, 4, 3], "what the model did not know cannot be kept"
    assert found == {
        "score": pytest.approx((0.75 + 2 / 3) / 2),
        "edit": 0.5,
        "follow": 0.75,
        "keep": pytest.approx(2 / 3),
    }


# The network ---------------------------------------------------------------------------------------


def test_running_statistics_are_those_of_all_vectors_whatever_the_batches() -> None:
    x = torch.randn(50, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    running = Running(3)
    assert torch.equal(running(x), x)
    for part in x.split([1, 20, 0, 29]):
        running.add(part)
    assert torch.allclose(running(x), (x - x.mean(0)) / x.std(0), atol=1e-4)


def test_a_fresh_network_rewrites_nothing_and_can_learn() -> None:
    lm = tiny_lm("llama")
    names = names_of(lm)
    for after in (False, True):
        network = GradientNetwork({n: weight_shape(lm.model, n) for n in names}, rank=4, blocks=2, after=after)
        for name in names:
            out, into = lm.model.get_parameter(name).shape
            u, delta = torch.randn(5, into), torch.randn(5, out)
            new_u, new_delta = network(name, u, delta)
            assert torch.equal(new_u, u) and torch.equal(new_delta, delta)
            (new_u.sum() + new_delta.sum()).backward()
        learning = {
            name.rsplit(".", 1)[1] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert {"up", "bias", "shift"} <= learning, "a maximum with 0 that begins at 0 must pass gradients on"


# Least squares -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 6, 20])
def test_least_squares_solves_the_normal_equations(n: int) -> None:
    k, v, ridge = torch.randn(n, 6, dtype=DOUBLE), torch.randn(n, 4, dtype=DOUBLE), 0.3
    past = torch.randn(9, 6, dtype=DOUBLE)
    for gram in (None, past.T @ past):
        found = least_squares(k, v, ridge, gram)
        delta = found.dense() if isinstance(found, LowRank) else found
        system = k.T @ k + ridge * torch.eye(6) + (0 if gram is None else gram)
        assert torch.allclose(delta @ system, v.T @ k)
        assert isinstance(found, LowRank) == (n < 6 and gram is None)


def test_forgotten_keys_leave_the_rest() -> None:
    keys = torch.randn(6, 4)
    for count in (3, 6):  # as vectors, and as their Gram matrix
        memory = remember({}, "s", keys[:count])
        left = forget(memory, "s", keys[1:2] + 1e-6)
        kept = keys[:count][[i for i in range(count) if i != 1]]
        if KEYS + "s" in memory:
            assert torch.equal(left[KEYS + "s"], kept)
        else:
            assert torch.allclose(left[GRAM + "s"], kept.T @ kept, atol=1e-4)
        assert forget(memory, "other", keys) == memory


# UltraEdit -----------------------------------------------------------------------------------------


def ultraedit(**settings: Any) -> Any:
    return method("ultraedit", **{"layers": (0, 1), **settings})


def changes_of(lm: HFLM, patch: Patch) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for part in patch.parts:
        for name, w in part.weights.items():  # type: ignore[attr-defined]
            dense = w.dense() if isinstance(w, LowRank) else w
            total[name] = total.get(name, torch.zeros_like(dense)) + dense
    return total


@pytest.mark.parametrize("arch", ["gpt2", "llama", "t5"])
def test_batches_with_statistics_that_stand_still_are_one_batch(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, made = tiny_lm(arch, DOUBLE), ultraedit(eta=0.05)
    first = made.edit(lm, EDITS[1:])
    start = Patch((), {key: value for key, value in first.memory.items() if key.startswith("ultraedit/")})
    monkeypatch.setattr(Running, "add", lambda self, x: None)
    together = made.edit(lm, EDITS, prior=start)
    fold = start
    for edit in EDITS:
        fold = made.edit(lm, [edit], prior=fold)
    one, other = changes_of(lm, together), changes_of(lm, fold)
    for name in one:
        assert torch.allclose(one[name], other[name], atol=1e-7) and bool(one[name].any())
    alone = EMPTY
    for edit in EDITS:
        alone = replace(made, history=False).edit(lm, [edit], prior=alone or start)
    assert not all(torch.allclose(one[name], w, atol=1e-7) for name, w in changes_of(lm, alone).items())


def test_ultraedit_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ultra, "FEWEST", 0)
    lm, made = tiny_lm("llama", DOUBLE), ultraedit(eta=0.01, ridge=2.0)
    patch = made.edit(lm, EDITS)
    names = made.names(lm)
    with hooks.frozen(lm.model):
        g = token_gradients(lm, pairs_of(lm), names, answers_only=True)
    every = torch.cat([torch.cat([g[name].u, g[name].delta], -1) for name in names])  # linears of one shape
    for name in names:
        h, delta = ((torch.cat([g[name].u, g[name].delta], -1) - every.mean(0)) / every.std(0)).split(
            [g[name].u.shape[1], g[name].delta.shape[1]], -1
        )
        values = -0.01 * h.square().sum(-1, keepdim=True) * delta
        k = g[name].u
        expected = values.T @ k @ torch.linalg.inv(k.T @ k + 2.0 * torch.eye(k.shape[1], dtype=DOUBLE))
        assert torch.allclose(changes_of(lm, patch)[name].double(), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("history", [True, False])
def test_the_newest_of_two_answers_to_a_prompt_wins(history: bool) -> None:
    lm, made = tiny_lm("gpt2"), ultraedit(history=history)
    newer = Edit(EDIT.prompt, EDIT.subject, "Rome")
    patch = made.edit(lm, EDITS)
    updated = made.edit(lm, [newer], prior=patch)
    with patch.applied(lm) as edited:
        before = [sum(s.logprobs) for s in edited.score([EDIT.prompt] * 2, ["Oslo", "Rome"])]
    with updated.applied(lm) as edited:
        after = [sum(s.logprobs) for s in edited.score([EDIT.prompt] * 2, ["Oslo", "Rome"])]
    assert after[1] > before[1] and after[0] < before[0]
    keys = {name: value for name, value in updated.memory.items() if name.startswith(KEYS)}
    assert all(len(value) == len(patch.memory[name]) for name, value in keys.items())


def test_statistics_that_are_none_are_named() -> None:
    lm, made = tiny_lm("gpt2"), ultraedit()
    patch = made.edit(lm, [EDIT])
    name = next(name for name in patch.memory if name.endswith("count"))
    for lie in (patch.memory[name][:1], -patch.memory[name], patch.memory[name].float()):
        with pytest.raises(BadInput, match=r"holds no whole ultraedit/.*count"):
            made.edit(lm, [EDIT], prior=replace(patch, memory={**patch.memory, name: lie}))
    with pytest.raises(BadInput, match=r"holds no whole ultraedit/.*mean"):
        rest = {key: value for key, value in patch.memory.items() if not key.endswith("mean")}
        made.edit(lm, [EDIT], prior=replace(patch, memory=rest))


def test_which_layers_are_changed_by_default() -> None:
    lm = tiny_lm("gpt2")
    depth = lm.sites.depth
    assert ultraedit(layers=None).resolve(lm, None).layers == tuple(range(5 * depth // 8, depth))
    with pytest.raises(BadInput, match=rf"ultraedit's layers lie within 0 to {depth - 1}; found \[9\]"):
        ultraedit(layers=(9,)).edit(lm, [EDIT])


def test_a_patch_without_its_memory_or_of_other_layers_is_not_gone_on_from() -> None:
    lm, made = tiny_lm("gpt2"), ultraedit()
    patch = made.edit(lm, [EDIT])
    with pytest.raises(BadInput, match="saved without its memory, which UltraEdit goes on from"):
        made.edit(lm, [EDIT], prior=replace(patch, memory={}))
    with pytest.raises(BadInput, match="remembers UltraEdit's edits of other layers"):
        ultraedit(layers=(1,)).edit(lm, [EDIT], prior=patch)
    with pytest.raises(BadInput, match=r"layers lie within 0 to \d; found \[-1\]"):
        ultraedit(layers=(-1,)).edit(lm, [EDIT])


def test_one_token_is_normalised_by_its_own_size() -> None:
    lm = tiny_lm("gpt2")
    one = [edit for edit in EDITS if len(lm.tokens.target(edit.prompt, edit.target_new)) == 1][:1] or [EDIT]
    name = ultraedit(layers=(1,)).names(lm)[0]
    alone, beside = (
        changes_of(lm, ultraedit(layers=layers, eta=0.01).edit(lm, one))[name] for layers in ((1,), (0, 1))
    )
    assert 0.2 < float(alone.norm() / beside.norm()) < 5


# Keys of earlier turns ---------------------------------------------------------------------------------


def moved(lm: HFLM, patch: Patch, earlier: Patch, keys: dict[str, Tensor]) -> float:
    """How far the change from ``earlier`` to ``patch`` moves what weights make of some keys: the length of all Δk."""
    total = 0.0
    for name, k in keys.items():
        new, old = (sum(d.weights[name].dense() if isinstance(d.weights[name], LowRank) else d.weights[name]
                        for d in p.of_kind(Delta)) for p in (patch, earlier))  # fmt: skip
        total += float((k @ (new - old).T).square().sum())
    return total**0.5


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_turn_leaves_the_keys_of_earlier_ones_alone(arch: str) -> None:
    lm = tiny_lm(arch)
    lengths: dict[bool, float] = {}
    for history in (True, False):
        made = replace(quick("rledit"), history=history)
        state = made.prepare(lm, CASES)
        first = made.edit(lm, EDITS[:1], state)
        keys = {name: g.u for name, g in made.resolve(lm, state).gradients_of(lm, EDITS[:1], EMPTY).items()}
        lengths[history] = moved(lm, made.edit(lm, EDITS[1:2], state, first), first, keys)
    assert lengths[True] < 0.7 * lengths[False]


def test_a_prompt_that_is_edited_again_may_move_its_own_keys() -> None:
    lm, made = tiny_lm("llama"), quick("rledit")
    state = made.prepare(lm, CASES)
    first = made.edit(lm, [EDIT], state)
    again = replace(EDIT, target_new="Lima")
    second = made.edit(lm, [again], state, first)
    one, two = (lm_score(lm, patch, again) for patch in (first, second))
    assert two > one
    keys = next(iter(first.memory.values()))
    site = next(name for name in first.memory if name.startswith(KEYS)).removeprefix(KEYS)
    assert freed(first.memory, site, keys)[KEYS + site].abs().max() < 1e-4 * keys.abs().max()
    gram = {GRAM + site: keys.T @ keys}
    assert freed(gram, site, keys)[GRAM + site].abs().max() < 1e-4 * gram[GRAM + site].abs().max()


def lm_score(lm: HFLM, patch: Patch, edit: Edit) -> float:
    with patch.applied(lm) as edited:
        return edited.score([edit.prompt], [edit.target_new])[0].total
