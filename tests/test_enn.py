"""ENN: the editor's steps, the gradient through them, the base in the patch."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, EDITS, quick, tiny_lm

from errata.errors import BadInput, Unsupported
from errata.methods.registry import method
from errata.methods.state import State
from errata.methods.trained.enn import MARK, Editable, hinge, whole
from errata.methods.trained.examples import Asked, examples_of
from errata.methods.trained.objective import changed, kl, nll, right
from errata.model import hooks
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.patch import Patch


def made(arch: str = "gpt2", dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """The method, a model, its network in the model's precision, and examples."""
    lm = tiny_lm(arch, dtype)
    resolved: Any = method("enn", **{"layers": (1, 2), **settings}).resolve(lm, State())
    return resolved, lm, resolved.network(lm).to(dtype), examples_of(lm, "enn", CASES)


def pairs_of(lm: HFLM, count: int) -> list[Any]:
    return [Asked(e.prompt, e.target_new).ids(lm) for e in EDITS[:count]]


def test_the_loss_of_an_edit_is_zero_once_it_is_answered() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 5.0]])
    pairs = [([0], [0, 2]), ([0], [2])]
    assert hinge(logits, pairs, 0.0).tolist() == [2.0, 0.0]
    assert hinge(logits, pairs, 1.5).tolist() == [0.5 + 3.5, 0.0]


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3_text", "t5", "bart"])
def test_steps_are_those_of_rmsprop_and_end_once_answered(arch: str) -> None:
    enn, lm, network, _ = made(arch, torch.float32, k=60)
    pairs = pairs_of(lm, 2)
    with hooks.frozen(lm.model):
        found = enn.stepped(lm, network, network.change(), pairs)
        assert all(right(lm, pairs, changed(lm, found)))
        now = {name: torch.zeros_like(c) for name, c in found.items()}
        square = dict(now)
        steps = 0
        while steps < 60:
            leaves = {name: c.requires_grad_() for name, c in now.items()}
            loss = hinge(lm.target_logits(pairs, changed(lm, leaves)), pairs, 0.0).sum()
            if not float(loss.detach()):
                break
            steps += 1
            for name, g in zip(now, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                square[name] = (square[name] + g.square()) / 2
                size = enn.rate * lm.model.get_parameter(name).detach().square().mean().sqrt()
                now[name] = now[name].detach() - size * g / (square[name] + 0.01 * square[name].mean()).sqrt()
    assert 0 < steps < 60
    for name, change in now.items():
        assert torch.allclose(found[name], change, rtol=1e-2, atol=1e-5), name


def test_facts_at_once_do_not_depend_on_the_batches() -> None:
    enn, lm, network, _ = made(k=3)
    with hooks.frozen(lm.model):
        together = enn.stepped(lm, network, network.change(), pairs_of(lm, 3))
        lm.budget = 1
        alone = enn.stepped(lm, network, network.change(), pairs_of(lm, 3))
    for name, change in together.items():
        assert torch.allclose(change, alone[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "bart"])
def test_the_gradient_through_the_steps_is_that_of_finite_differences(arch: str) -> None:
    enn, lm, network, examples = made(arch, k=2, batch=1, follow=5, keep=9, rate=0.01, damping=1.0, c_edit=0.7)
    torch.manual_seed(0)
    with torch.no_grad():
        for base in network.base:
            base.normal_(std=0.05)
        network.decay.fill_(0.3)
    batch = examples[:1]
    with hooks.frozen(lm.model):
        losses = enn.backward(lm, network, batch, Random(0))
        value = objective(enn, lm, network, batch)
        assert losses["loss"] == pytest.approx(float(value().detach()), rel=1e-6)
        for parameter in (network.decay, *network.base):
            direction = torch.randn_like(parameter)
            expected = float((parameter.grad * direction).sum())
            values: list[float] = []
            with torch.no_grad():
                for sign in (1, -1):
                    parameter.add_(sign * 1e-5 * direction)
                    values.append(float(value()))
                    parameter.add_(-sign * 1e-5 * direction)
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-4, abs=1e-9)


def objective(enn: Any, lm: HFLM, network: Editable, batch: Any) -> Any:
    """The objective as a function, whose reference for what must stay is the base of now."""
    copy = Editable(lm, network.names).to(network.units.dtype)
    copy.load_state_dict(network.state_dict())
    fixed = {name: change.detach() for name, change in copy.change().items()}

    def loss_of() -> torch.Tensor:
        base = network.change()
        with torch.enable_grad():
            edited = enn.stepped(lm, network, base, [e.asked.ids(lm) for e in batch])
        asked = [a.ids(lm) for e in batch for a in (e.asked, *e.follow)]
        kept = [a.ids(lm) for e in batch for a in e.keep]
        rows = [whole(lm, a) for e in batch for a in (*e.keep, *e.old)]
        stay = lm.target_logits(kept, changed(lm, fixed)).log_softmax(-1)
        own = lm.target_logits(rows).log_softmax(-1)
        loss = enn.c_edit * nll(lm.target_logits(asked, changed(lm, edited)), asked).mean()
        loss = loss + enn.c_keep * kl(stay, lm.target_logits(kept, changed(lm, edited)), kept).mean()
        return loss + enn.c_base * kl(own, lm.target_logits(rows, changed(lm, base)), rows).mean()

    return loss_of


@pytest.mark.parametrize("part", ["c_edit", "c_keep", "c_base"])
def test_each_term_has_a_gradient_of_its_own(part: str) -> None:
    terms = {name: 1.0 if name == part else 0.0 for name in ("c_edit", "c_keep", "c_base")}
    enn, lm, network, examples = made(k=2, **terms)
    with torch.no_grad():
        for base in network.base:
            base.normal_(std=0.05)
    with hooks.frozen(lm.model):
        enn.backward(lm, network, examples[:2], Random(0))
    assert all(bool(base.grad.any()) for base in network.base)


def test_training_makes_edits_of_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    enn, lm, network, examples = made(k=1)
    sizes: set[int] = set()
    through = type(enn)._through_steps
    monkeypatch.setattr(type(enn), "_through_steps", lambda self, *a: sizes.add(len(a[-1])) or through(self, *a))
    with hooks.frozen(lm.model):
        for seed in range(12):
            enn.backward(lm, network, examples[:5], Random(seed))
    assert sizes == {1, 2, 4}


# The patch


@pytest.fixture(scope="module")
def trained() -> Any:
    lm, enn = tiny_lm("gpt2"), replace(quick("enn"), lr=0.05)
    return enn, lm, enn.prepare(lm, CASES)


def base_of(enn: Any, lm: HFLM, state: State) -> dict[str, torch.Tensor]:
    return enn.resolve(lm, state).loaded(lm, state).change()


def test_the_base_is_in_the_patch_once(trained: Any) -> None:
    enn, lm, state = trained
    base = base_of(enn, lm, state)
    assert all(bool(change.any()) for change in base.values())
    first = enn.edit(lm, [EDIT], state)
    assert first.meta["made"][0]["outcomes"][EDIT.id]["met"]
    again = enn.edit(lm, [replace(EDIT, id="again")], state, first)  # answered already: nothing is added
    (one,), (two,) = first.of_kind(Delta), again.of_kind(Delta)
    for name, change in one.weights.items():
        assert torch.equal(change, two.weights[name])
        assert not torch.equal(change, base[name])


def test_the_base_comes_behind_other_changes(trained: Any) -> None:
    enn, lm, state = trained
    name = f"{lm.sites.mlp_out[0]}.weight"
    prior = Patch((Delta({name: torch.full((32, 64), 0.01)}),))
    patch = enn.edit(lm, [EDIT], state, prior)
    (delta,) = patch.of_kind(Delta)
    assert {name, *base_of(enn, lm, state)} == set(delta.weights)
    assert MARK in patch.memory


def test_another_base_is_refused(trained: Any, tmp_path: Path) -> None:
    enn, lm, state = trained
    first = enn.edit(lm, [EDIT], state)
    other = replace(enn, seed=1)
    with pytest.raises(BadInput, match="another state of enn"):
        other.edit(lm, EDITS[1:], other.prepare(lm, CASES), first)
    forgot = Patch.load(first.save(tmp_path / "patch.safetensors", memory=False))
    with pytest.raises(BadInput, match="memory=True"):
        enn.edit(lm, EDITS[1:], state, forgot)
    with pytest.raises(Unsupported, match="make the second one on the first"):
        first + enn.edit(lm, EDITS[1:], state)


@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_encoder_decoders_are_edited_in_both_stacks(arch: str) -> None:
    lm, enn = tiny_lm(arch), quick("enn")
    patch = enn.edit(lm, [EDIT], enn.prepare(lm, CASES))
    (delta,) = patch.of_kind(Delta)
    assert any("encoder" in n for n in delta.weights) and any("decoder" in n for n in delta.weights)
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before
