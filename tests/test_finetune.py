"""What is the fine-tuning family's own: losses, penalties, and peft's stay in the model."""

import sys
from collections.abc import Iterator
from copy import copy
from functools import partial
from math import exp, log
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, EDIT, EDITS, TEXTS, quick, same_weights, tiny_lm, weights

from errata.errors import BadInput
from errata.methods.finetune.above import LogitsAbove
from errata.methods.finetune.base import weights_of
from errata.methods.finetune.ewc import fisher
from errata.methods.finetune.lora import injected
from errata.methods.losses import smoothed_targets, token_losses
from errata.methods.registry import method
from errata.model.hf import HFLM
from errata.patch.delta import Delta, trainable
from errata.patch.low_rank import LowRank
from errata.types import Edit

# Losses ------------------------------------------------------------------------------------------


def test_without_smoothing_the_loss_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 50, dtype=torch.float64), torch.randint(50, (6,))
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert (token_losses(logits, targets) - expected).abs().max() < 1e-12
    almost = token_losses(logits, targets, smooth=1 - 1e-13)  # the other branch goes over into it
    assert (almost - expected).abs().max() < 1e-9


def test_overtone_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    logits, y = p.log().requires_grad_(), torch.tensor([1])
    deviation = float(p.log().std())
    top_n = log(0.5 / 0.2) / deviation  # keeps what is above 0.2: the first two
    # π_flt = (5/8, 3/8), and with λ = 0.6 π_tar = (0.25, 0.75)
    expected = torch.tensor([[0.25, 0.75, 0, 0]], dtype=torch.float64)
    assert torch.allclose(smoothed_targets(p.log(), y, 0.6, top_n), expected)
    kl = 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.3)
    loss = token_losses(logits, y, smooth=0.6, top_n=top_n)
    assert loss.item() == pytest.approx(kl, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)  # π_θ − π_tar, as π_tar is no function of θ here
    assert torch.allclose(gradient, p - expected)


def test_overtone_falls_back_where_the_model_is_sure_of_another_token() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    sure = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(smoothed_targets(logits, torch.tensor([1]), 0.3, 100.0), sure)  # 0.7 · 0.7 beats 0.3 + 0.7 · 0.2
    assert not torch.equal(smoothed_targets(logits, torch.tensor([1]), 0.5, 100.0), sure)


def test_the_floor_is_held_against_the_divergence_and_stops_a_token() -> None:
    p = torch.tensor([[0.24, 0.74, 0.02], [0.6, 0.3, 0.1]], dtype=torch.float64)
    logits, y = p.log().requires_grad_(), torch.tensor([1, 1])
    loss = token_losses(logits, y, smooth=0.75, floor=0.15, top_n=100.0)
    assert -log(p[0, 1]) > 0.15  # the cross-entropy of the first is above, its divergence is not
    assert loss[0].item() == 0.15 and loss[1].item() > 0.15
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient[0].any() and gradient[1].any()


@pytest.mark.parametrize("name", ["ft-m", "lora"])
def test_overtone_in_the_descent(name: str) -> None:
    lm = tiny_lm("llama")
    plain, smooth, floored = (
        method(name, steps=40, lr=0.01, **kw).edit(lm, [EDIT]) for kw in ({}, {"smooth": 0.3}, {"floor": 1.0})
    )
    scores = [after(lm, patch) for patch in (plain, smooth, floored)]
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    assert all(score > before for score in scores) and len(set(scores)) == 3
    assert scores[2] < scores[0]  # it stopped early
    with pytest.raises(BadInput, match="share"):
        method(name, smooth=1.5)


def after(lm: HFLM, patch: Any, edit: Edit = EDIT) -> float:
    with patch.applied(lm) as edited:
        return edited.score([edit.prompt], [edit.target_new])[0].total


# The descent -------------------------------------------------------------------------------------


def test_gradients_gathered_over_passes_are_those_of_one_pass() -> None:
    made = method("ft-m")
    lm, small = tiny_lm("llama", torch.float64), tiny_lm("llama", torch.float64)
    small.budget = 8  # a fact at a time
    examples = made.examples(lm, EDITS, [e.target_new for e in EDITS])
    results = []
    for model in (lm, small):
        w = trainable(model, weights_of(model, 2))
        results.append(made._gradients(model, partial(model.target_logits, weights=w), examples, list(w.values())))
    (loss, (gradient,)), (small_loss, (small_gradient,)) = results
    assert loss == pytest.approx(small_loss, abs=1e-12)
    assert torch.allclose(gradient, small_gradient, atol=1e-12) and gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "mixtral", "t5"])
def test_what_is_below_the_trained_layer_runs_once(arch: str, dtype: torch.dtype) -> None:
    """The gradient is that of whole passes; of what is held, of what is not, and of what one batch has no room for."""
    made = method("ft-m")
    lm = tiny_lm(arch, dtype)
    examples = made.examples(lm, EDITS, [e.target_new for e in EDITS])
    w = {name: x + 0.01 for name, x in trainable(lm, weights_of(lm, 2)).items()}
    whole, way = partial(lm.target_logits, weights=w), LogitsAbove(lm, 2, w)
    way.hold(examples[:2])
    assert len(way.held) == (0 if arch == "t5" else 2)
    lm.budget = 8  # rows in passes of their own
    small = LogitsAbove(lm, 2, w)
    small.hold(examples[::-1])
    assert arch == "t5" or [bool(run.within) for run, _ in small.held.values()].count(True) < 3
    lm.budget = 4096
    expected = made._gradients(lm, whole, examples, list(w.values()))
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    for logits in (way, small):
        loss, gradients = made._gradients(lm, logits, examples, list(w.values()))
        assert loss == pytest.approx(expected[0], rel=tolerance)
        for one, two in zip(gradients, expected[1], strict=True):
            assert (one - two).norm() <= tolerance * two.norm() and (arch == "mixtral" or two.any())


@pytest.mark.parametrize("name", ["ft", "ft-l", "ft-m", "locft-bf", "ewc", "recadam", "f-learning"])
def test_edits_are_those_of_whole_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, lm, patches = quick(name), tiny_lm("llama"), list[Any]()
    state = made.prepare(lm, TEXTS)
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(LogitsAbove, "hold", lambda self, pairs: None)
        patches.append(made.edit(lm, EDITS, state))
    for one, two in zip(*(patch.parts[0].tensors().values() for patch in patches), strict=True):
        assert (one - two).norm() < 0.01 * two.norm() and two.any()


def test_the_end_is_learned_where_set() -> None:
    lm = tiny_lm("gpt2")
    assert lm.tokens.end == 1
    ((_, target),) = method("locft-bf").examples(lm, [EDIT], ["Oslo"])
    assert target == [*method("ft-m").examples(lm, [EDIT], ["Oslo"])[0][1], 1]
    patch = method("locft-bf", lr=0.02).edit(lm, [EDIT])
    with patch.applied(lm) as edited:
        assert edited.generate([EDIT.prompt], 8)[0].strip() == "Oslo"


def test_each_round_has_an_order_of_its_own_and_sees_every_edit() -> None:
    examples = [([i], [i]) for i in range(10)]
    made = method("locft-bf", batch=4, min_batches=1)
    torch.manual_seed(0)
    rounds = [[one for batch in made._batches(examples) for one in batch] for _ in range(2)]
    assert rounds[0] != rounds[1] and all(sorted(order) == examples for order in rounds)
    assert [len(batch) for batch in made._batches(examples)] == [4, 4, 2]
    assert [len(batch) for batch in method("locft-bf", min_batches=5)._batches(examples)] == [2] * 5
    assert [len(batch) for batch in method("locft-bf", min_batches=5)._batches(examples[:3])] == [1] * 3
    assert [one for batch in method("ft-m", batch=4)._batches(examples) for one in batch] == examples


def test_the_box_holds() -> None:
    lm = tiny_lm("gpt2")
    (delta,) = method("ft-l", box=0.01).edit(lm, [EDIT]).of_kind(Delta)
    (change,) = delta.tensors().values()
    assert 0.0099 < float(change.abs().max()) <= 0.01 + 1e-6


@pytest.mark.parametrize("name", ["ft", "ft-l", "ft-m", "locft-bf", "ewc", "recadam", "f-learning", "lora"])
def test_encoder_decoder(name: str) -> None:
    lm = tiny_lm("t5")
    before, scores = weights(lm.model), lm.score([EDIT.prompt], [EDIT.target_new])
    made = method(name)
    state = made.prepare(lm, TEXTS[:20]) if made.needs_prepare else None
    patch = made.edit(lm, [EDIT], state)
    assert after(lm, patch) > scores[0].total
    assert same_weights(lm.model, before) and lm.score([EDIT.prompt], [EDIT.target_new]) == scores
    both = made.edit(lm, EDITS[1:2], state, patch)
    assert after(lm, both, EDITS[1]) > lm.score([EDITS[1].prompt], [EDITS[1].target_new])[0].total


# EWC, RecAdam, F-Learning ------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_fisher_is_squared_text_by_text(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    name, pieces = weights_of(lm, 3)[0], [lm.tokens.prompt(text) for text in TEXTS[:3]]
    param, squares = lm.model.get_parameter(name), []
    lm.model.zero_grad(set_to_none=True)
    for ids in pieces:
        logp = lm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        logp[torch.arange(len(ids) - 1), ids[1:]].sum().backward()
        assert param.grad is not None
        squares.append(param.grad.square())
        lm.model.zero_grad(set_to_none=True)
    assert torch.allclose(fisher(lm, [name], pieces)[name], sum(squares, torch.zeros(())) / 3, rtol=1e-9)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_ewc_penalty_is_from_the_unedited_weights(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    made = method("ewc", lam=3.0, layer=1)
    state = made.prepare(lm, TEXTS[:10])
    name = weights_of(lm, 1)[0]
    importance = fisher(lm, [name], [lm.tokens.prompt(text) for text in TEXTS[:10]])[name]
    penalty = made.penalty(lm, state)
    theta0 = lm.model.get_parameter(name).detach()
    theta = theta0 + torch.linspace(-1, 1, theta0.numel(), dtype=torch.float64).view_as(theta0)
    expected = 1.5 * (importance * (theta - theta0) ** 2).sum()
    assert penalty([theta]).item() == pytest.approx(float(expected), rel=1e-9)
    assert penalty([theta0]).item() == 0
    with pytest.raises(BadInput, match="prepared for layer = 1"):
        method("ewc", layer=2).edit(lm, [EDIT], state)


def test_a_strong_ewc_holds_the_weights_and_pulls_earlier_edits_back() -> None:
    lm = tiny_lm("llama")
    free, held = method("ewc", lam=0.0), method("ewc", lam=1e9)
    state = free.prepare(lm, TEXTS[:20])
    prior = free.edit(lm, [EDIT], state)
    importance = next(iter(state.tensors.values()))
    cost = [
        float((importance * next(iter(p.of_kind(Delta)[0].tensors().values())) ** 2).sum())
        for p in (prior, free.edit(lm, EDITS[1:], state, prior), held.edit(lm, EDITS[1:], state, prior))
    ]
    assert cost[2] < cost[0] < cost[1]


def test_recadam_step_by_hand() -> None:
    lm = tiny_lm("llama")
    made = method("recadam", lr=0.1, pull=0.5, k=2.0, t0=1.0, layer=0)
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    w = torch.tensor([1.5, -2.0], dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([4.0, -3.0], dtype=torch.float64)
    adam = torch.optim.Adam([w], lr=0.1)
    made.resolve(lm, None).step(adam, [w], [start], 1)  # the second round: t = 2
    share = 1 / (1 + exp(-2.0))
    moved = torch.tensor([1.5 - 0.1 * share, -2.0 + 0.1 * share], dtype=torch.float64)  # Adam's first step: lr · sign
    expected = moved - 0.5 * (1 - share) * (moved - start)
    assert torch.allclose(w.detach(), expected, atol=1e-6)


def test_recadam_refuses_an_unstable_pull() -> None:
    with pytest.raises(BadInput, match="below 2"):
        method("recadam", pull=2.0)


def test_recadam_without_recall_is_ft_m() -> None:
    lm = tiny_lm("gpt_neox")
    recalled = method("recadam", pull=0.0, k=100.0, t0=0.0, steps=5).edit(lm, [EDIT])
    assert recalled == method("ft-m", steps=5).edit(lm, [EDIT])


@pytest.mark.parametrize("known", ["Rome", None])
def test_f_learning_forgets_the_old_answer_first(known: str | None) -> None:
    lm = tiny_lm("gpt2")
    edit = Edit(EDIT.prompt, EDIT.subject, "Oslo", known)
    old = known or lm.generate([edit.prompt], until_answer=True)[0]
    plain, learned = method("ft-m").edit(lm, [edit]), method("f-learning", rate=1.0).edit(lm, [edit])
    assert method("f-learning", rate=0.0).edit(lm, [edit]) == plain
    forgotten = [after(lm, patch, Edit(edit.prompt, edit.subject, old)) for patch in (plain, learned)]
    assert forgotten[1] < forgotten[0]


# LoRA --------------------------------------------------------------------------------------------


def look(model: torch.nn.Module) -> list[Any]:
    """Everything about a model that an adapter could leave behind, by identity."""
    return [
        [(name, id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()],
        [(name, id(p), p.data_ptr(), p.requires_grad, p.grad) for name, p in model.named_parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    ]


@pytest.fixture(params=[*ARCHITECTURES, "t5"])
def lm(request: pytest.FixtureRequest) -> Iterator[HFLM]:
    lm = tiny_lm(request.param)
    before, structure = weights(lm.model), look(lm.model)
    yield lm
    assert look(lm.model) == structure and same_weights(lm.model, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_lora_leaves_nothing_when_interrupted(lm: HFLM, error: type[BaseException], monkeypatch: Any) -> None:
    inside: list[list[Any]] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        inside.append(look(lm.model))
        raise error

    before = look(lm.model)
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(error):
        method("lora").edit(lm, [EDIT])
    assert inside and inside[0] != before  # it was in the model then


def test_lora_leaves_nothing_when_peft_fails_half_way(lm: HFLM, monkeypatch: Any) -> None:
    from peft.tuners.lora import LoraModel

    create, calls = LoraModel._create_and_replace, 0

    def third_fails(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return create(*args, **kwargs)

    monkeypatch.setattr(LoraModel, "_create_and_replace", third_fails)
    with pytest.raises(KeyboardInterrupt):
        method("lora").edit(lm, [EDIT])
    assert calls == 3


def test_lora_as_a_patch_predicts_what_it_predicted_in_the_model(lm: HFLM, monkeypatch: Any) -> None:
    from errata.methods.finetune import lora

    made = method("lora", steps=5, targets=("mlp_out", "mlp_in", "attn_out"), layers=(1, 3))
    examples = made.examples(lm, EDITS, [e.target_new for e in EDITS])
    in_model: list[torch.Tensor] = []
    read = lora.read

    def recording(layer: Any) -> Any:
        if not in_model:
            for module in lm.model.modules():
                module.eval()
            view = copy(lm)
            view._inside = lm._use.changes[-1]  # as the method's own, which alone may run the model now
            in_model.append(view.target_logits(examples).detach())
        return read(layer)

    monkeypatch.setattr(lora, "read", recording)
    patch = made.edit(lm, EDITS)
    (delta,) = patch.of_kind(Delta)
    assert all(isinstance(w, LowRank) and w.rank == 8 for w in delta.weights.values())
    with patch.applied(lm) as edited, torch.no_grad():
        patched = edited.target_logits(examples)
    base = lm.target_logits(examples).detach()
    assert (patched - in_model[0]).abs().max() < 1e-5 * in_model[0].abs().max() < (patched - base).abs().max()


def test_lora_targets_are_matched_whole(lm: HFLM) -> None:
    from peft import LoraConfig

    path = lm.sites.mlp_out[1]
    with injected(lm.model, [path], partial(LoraConfig, r=2)) as layers:
        changed = [name for name, module in lm.model.named_modules() if hasattr(module, "lora_A")]
        assert changed == [path] == list(layers)


def test_lora_without_peft_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match=r"errata\[peft\]"):
        method("lora").edit(tiny_lm("llama"), [EDIT])


@pytest.mark.parametrize("settings", [{"dropout": 1.0}, {"targets": ()}, {"layers": ()}, {"rank": 0}])
def test_lora_refuses_settings_that_mean_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        method("lora", **settings)
    with pytest.raises(BadInput, match="within 0 to 3"):
        method("lora", layers=(4,)).edit(tiny_lm("llama"), [EDIT])
