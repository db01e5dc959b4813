"""KE and SLAG: the formula, the gradient of training, the constraint, steps and sequences."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, EDITS, quick, tiny_lm

from errata.methods.isolation import frozen_rng
from errata.methods.registry import method
from errata.methods.state import State
from errata.methods.trained.examples import Asked, Example, examples_of
from errata.methods.trained.gradient.changes import dense
from errata.methods.trained.gradient.conditioned import TextEditor, TextNetwork, text_of
from errata.methods.trained.gradient.gradients import only
from errata.methods.trained.objective import changed, kl, nll, right
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.weights import oriented
from errata.patch.delta import Delta
from errata.types import Edit

SMALL: dict[str, Any] = {"layers": (1, 2), "lstm": 3, "condition": 5, "hidden": 4}


def made(name: str, arch: str = "gpt2", dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """The method, a model, its network in the model's precision, and examples."""
    lm = tiny_lm(arch, dtype)
    resolved: Any = method(name, **SMALL, **settings).resolve(lm, State())
    with frozen_rng(0):
        network = resolved.network(lm).to(dtype)
    return resolved, lm, network, examples_of(lm, name, CASES)


def gradients_of(network: TextNetwork) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arch", ["gpt2", "llama", "t5"])
def test_the_change_is_the_papers_formula(arch: str) -> None:
    ke, lm, network, _ = made("ke", arch)
    weights = {name: lm.model.get_parameter(name) for name in ke.names(lm)}
    with torch.enable_grad():
        pairs = [Asked(EDIT.prompt, EDIT.target_new).ids(lm)]
        loss = nll(lm.target_logits(pairs), pairs).sum()
        gradient = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    with hooks.frozen(lm.model):
        changes = ke.edited(lm, network, [EDIT])
    condition = network.condition(lm, EDIT)
    for name, w in weights.items():
        head, grad = network.head(name), oriented(lm.model, name, gradient[name])
        out, into = grad.shape
        parts = head.outer(head.inner(condition).tanh())
        alpha, gamma, beta, delta, eta = parts.split([into, out, into, out, 1])
        mask = torch.outer(gamma.softmax(-1) * out, alpha - 1)
        free = torch.outer(delta.softmax(-1) * out**0.5, beta / into**0.5)
        expected = 2 * eta.sigmoid() * ke.share * w.norm() * (grad * mask + free)
        assert torch.allclose(dense(changes)[name], expected, atol=1e-6)  # δ and u are float64, embeddings are not


def test_gradients_are_in_units_of_those_seen() -> None:
    ke, lm, network, _ = made("ke")
    name = ke.names(lm)[0]
    with hooks.frozen(lm.model):
        g = only(ke.gradients(lm, [EDIT]), 0)
    length = float((g[name].delta.T @ g[name].u).norm())
    before = ke.changes(lm, network, EDIT, g)[name].dense()
    for factor in (0.5, 1.5):
        network.head(name).observe(factor * length)
    after = ke.changes(lm, network, EDIT, g)[name]
    masked = after.a[:, :-1] @ after.b[:-1]
    free = after.a[:, -1:] @ after.b[-1:]
    assert torch.allclose(masked * length + free, before)


def test_an_untrained_network_descends() -> None:
    for arch in ("gpt2", "llama", "gpt_neox", "gemma3_text", "t5", "bart"):
        ke, lm, network, _ = made("ke", arch, torch.float32)
        with hooks.frozen(lm.model), torch.no_grad():
            ke.observe(network, only(ke.gradients(lm, [EDIT]), 0))
            changes = dense(ke.edited(lm, network, [EDIT]))
            pairs = [Asked(EDIT.prompt, EDIT.target_new).ids(lm)]
            before, after = (nll(lm.target_logits(pairs, w), pairs) for w in (None, changed(lm, changes)))
        assert float(after) < float(before), arch


def plain_loss(ke: Any, lm: HFLM, network: TextNetwork, example: Example, multiplier: float) -> torch.Tensor:
    """The objective in one graph, from the network's parameters to the logits."""
    changes = dense(ke.changes(lm, network, example.edit, only(ke.gradients(lm, [example.edit]), 0)))
    weights = changed(lm, changes)
    asked = [one.ids(lm) for one in (example.asked, *example.follow)]
    kept = [one.ids(lm) for one in example.keep]
    before = lm.target_logits(kept).log_softmax(-1)
    answered = nll(lm.target_logits(asked, weights), asked).mean()
    return ke.c_edit * answered + multiplier * kl(before, lm.target_logits(kept, weights), kept).mean()


@pytest.mark.parametrize("arch", ["gpt2", "t5"])
def test_the_gradient_is_that_of_one_graph(arch: str) -> None:
    ke, lm, network, examples = made("ke", arch, follow=5, keep=9, c_keep=1.0)  # all prompts: nothing is drawn
    batch = examples[:3]
    with hooks.frozen(lm.model):
        for head in network.heads:
            head.lengths[:] = torch.tensor([2.0, 3.0])
        with torch.enable_grad():
            (sum(plain_loss(ke, lm, network, e, 1.0) for e in batch) / 3).backward()
        expected = gradients_of(network)
        network.zero_grad()
        for head in network.heads:
            head.observe = lambda length: None  # the lengths are constants to the gradient
        losses = ke.backward(lm, network, batch, Random(0))
    found = gradients_of(network)
    assert found.keys() == expected.keys() == dict(network.named_parameters()).keys()
    for name, gradient in expected.items():
        exact = {"rtol": 1e-6, "atol": 1e-12} if arch == "gpt2" else {"rtol": 1e-3, "atol": 1e-7}  # float32 inside
        assert torch.allclose(found[name], gradient, **exact), name
    assert losses["loss"] == pytest.approx(losses["edit"] + losses["keep"])


def test_what_must_stay_has_a_gradient_of_its_own() -> None:
    ke, lm, network, examples = made("ke", c_edit=0.0)
    with hooks.frozen(lm.model):
        ke.backward(lm, network, examples[:1], Random(0))
    assert all(bool(g.any()) for g in gradients_of(network).values())


def test_the_multiplier_rises_while_the_constraint_is_broken() -> None:
    ke, lm, network, examples = made("ke", margin=1e-9, rise=0.5, share=0.1, c_keep=1.0)
    with hooks.frozen(lm.model):
        losses = ke.backward(lm, network, examples[:2], Random(0))
        assert losses["multiplier"] == pytest.approx(1 + 0.5 * (losses["keep"] - 1e-9))
        network.margin.fill_(1e9)
        assert ke.backward(lm, network, examples[:2], Random(0))["multiplier"] == 0
        fixed = replace(ke, rise=0.0)
        assert fixed.backward(lm, network, examples[:2], Random(0))["multiplier"] == 0


def test_the_margin_is_tightened_once_edits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    ke, lm, network, examples = made("ke", margin=0.1, least=0.07)
    seen: list[float] = []
    for edit in (0.9, 0.95, 1.0, 1.0):
        monkeypatch.setattr(TextEditor, "score", lambda *_, edit=edit: {"score": edit, "edit": edit})
        ke.score(lm, network, examples)
        seen.append(float(network.margin))
    assert seen == pytest.approx([0.1, 0.08, 0.07, 0.07])


def test_the_text_of_an_edit() -> None:
    assert text_of(EDIT) == "Rome >> Oslo || Ann Lee was born in"
    assert text_of(Edit("{} lives in", "Bob Ray", "Lima")) == " >> Lima || Bob Ray lives in"


def test_edits_at_once_are_summed_by_ke() -> None:
    ke, lm, network, _ = made("ke")
    with hooks.frozen(lm.model), torch.no_grad():
        both = dense(ke.edited(lm, network, EDITS[:2]))
        alone = [dense(ke.edited(lm, network, [edit])) for edit in EDITS[:2]]
    for name, change in both.items():
        assert torch.allclose(change, alone[0][name] + alone[1][name])


def test_slag_steps_until_the_edit_is_answered() -> None:
    slag, lm, network, _ = made("slag", dtype=torch.float32, k=1, share=0.05)
    sizes: list[int] = []
    step = type(slag)._step
    with hooks.frozen(lm.model), torch.no_grad():
        slag.observe(network, only(slag.gradients(lm, [EDIT]), 0))
        for k in (1, 2, 30):
            some = replace(slag, k=k)
            calls: list[int] = []
            object.__setattr__(some, "_step", lambda *a, some=some, calls=calls: calls.append(1) or step(some, *a))
            total = some.edited(lm, network, [EDIT])
            sizes.append(len(calls))
    assert sizes[0] == 1 and sizes[1] <= 2 and sizes[2] < 30
    assert right(lm, [Asked(EDIT.prompt, EDIT.target_new).ids(lm)], changed(lm, dense(total)))[0]


def test_slag_takes_each_gradient_at_the_weights_of_then() -> None:
    slag, lm, network, _ = made("slag", k=2)
    with hooks.frozen(lm.model), torch.no_grad():
        first = slag._step(lm, network, EDIT, slag._nothing(lm))
        with Delta(first).in_force(lm.model):
            expected = dense(slag.changes(lm, network, EDIT, only(slag.gradients(lm, [EDIT]), 0)))
        found = slag._step(lm, network, EDIT, first)
    for name, change in expected.items():
        assert torch.allclose(found[name], change, atol=1e-9)
        assert not torch.allclose(found[name], first[name], atol=1e-9)


def test_slag_is_trained_through_a_run() -> None:
    """With one step an edit: the second edit of a run is trained on what the first left, which is constant."""
    slag, lm, network, examples = made("slag", k=1, run=2, follow=5, keep=9)
    batch = examples[:2]
    with hooks.frozen(lm.model):
        for head in network.heads:
            head.observe = lambda length: None
        slag.backward(lm, network, batch, Random(0))
        found = gradients_of(network)
        network.zero_grad()
        total = slag._nothing(lm)
        for i, example in enumerate(batch):
            with torch.enable_grad():
                step = slag._step(lm, network, example.edit, total)
                weights = changed(lm, {n: total[n] + step[n] for n in step})
                asked = [a.ids(lm) for a in (example.asked, *example.follow, *(e.asked for e in batch[:i]))]
                kept = [a.ids(lm) for a in (*example.keep, *(o for e in batch[i + 1 :] for o in e.old))]
                before = lm.target_logits(kept).log_softmax(-1)
                loss = nll(lm.target_logits(asked, weights), asked).mean()
                loss = loss + kl(before, lm.target_logits(kept, weights), kept).mean()
                (loss / 2).backward()
            total = {n: total[n] + step[n].detach() for n in step}
    for name, gradient in gradients_of(network).items():
        assert torch.allclose(found[name], gradient, rtol=1e-6, atol=1e-12), name


@pytest.mark.parametrize("name", ["ke", "slag"])
@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_encoder_decoders_are_edited_in_both_stacks(name: str, arch: str) -> None:
    lm, some = tiny_lm(arch), quick(name)
    state = some.prepare(lm, CASES)
    patch = some.edit(lm, [EDIT], state)
    (delta,) = patch.of_kind(Delta)
    assert any("encoder" in n for n in delta.weights) and any("decoder" in n for n in delta.weights)
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before
