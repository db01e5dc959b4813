"""RE-Control: rewards, the temporal-difference loss by hand, the ascent against autograd, and where it acts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, EDITS, TEXTS, quick, tiny_lm

from errata.errors import BadInput
from errata.methods.registry import method
from errata.methods.state import State
from errata.methods.trained.representation.re_control import REControl, Trajectory, final_states, td_targets
from errata.methods.trained.representation.rewards import Prompted, rewarded
from errata.methods.trained.representation.value import Value, ValueAscent, value_site
from errata.model import hooks
from errata.model.hf import HFLM
from errata.patch.patch import Patch


def re_control(**settings: Any) -> REControl:
    made = replace(quick("re-control"), **settings)
    assert isinstance(made, REControl)
    return made


def patched(lm: HFLM, climbs: int = 3, eta: float = 0.5) -> Patch:
    """A patch with a random value head."""
    made = re_control(climbs=climbs, eta=eta).resolve(lm, State())
    torch.manual_seed(3)
    network = made.network(lm)
    network.s.fill_(2.0)
    state = State({f"network/{name}": t for name, t in network.state_dict().items()})
    return made._edit(lm, [EDIT], state, Patch())


# Rewards ------------------------------------------------------------------------------------------------


def test_rewards_are_functions_of_the_text() -> None:
    asked = Prompted("Ann Lee", "Ann Lee was born in", "New York")
    assert rewarded("target", asked, " Rome and New York.") == 1
    assert rewarded("target", asked, " New Yorkshire") == 0
    assert rewarded("contains:Rome", asked, " in Rome.") == 1
    assert rewarded("contains:Rome", asked, " in Romes.") == 0
    assert rewarded("shorter", asked, " in the city of Rome.") == -5
    assert (
        rewarded("given", replace(asked, given=lambda prompt, text: len(prompt) + len(text)), "ab")
        == len(asked.prompt) + 2
    )


@pytest.mark.parametrize("name", ["better", "contains:", ""])
def test_a_reward_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"target.*shorter.*contains:WORD.*given"):
        method("re-control", reward=name)


def test_what_cannot_be_learned_from_is_refused() -> None:
    lm = tiny_lm("gpt2")
    for data, settings, message in (
        (TEXTS, {"reward": "target"}, "is for cases"),
        (TEXTS[:3], {}, "at least 8 different prompts; found 3"),
        ([*TEXTS, 3], {}, "prompts or cases; found int"),
        (TEXTS, {"reward": "given"}, "reward=f"),
        (TEXTS, {"reward": "contains:nowhere"}, "has the reward 0 .*nothing to learn"),
    ):
        with pytest.raises(BadInput, match=message):
            re_control(**settings).prepare(lm, data)
    with pytest.raises(BadInput, match='reward="given"'):
        re_control().prepare(lm, TEXTS, reward=lambda prompt, text: 1.0)


def test_a_function_may_be_given_and_is_asked_about_each_response() -> None:
    lm = tiny_lm("gpt2")
    asked: list[tuple[str, str]] = []

    def reward(prompt: str, text: str) -> float:
        asked.append((prompt, text))
        return float(len(text))

    made = re_control(reward="given", responses=30)
    state = made.prepare(lm, TEXTS, reward=reward)
    assert {prompt for prompt, _ in asked} == set(TEXTS) and len(asked) == len(TEXTS)
    lengths = torch.tensor([float(len(text)) for prompt, text in asked])
    assert state.info["rewards"]["mean"] == pytest.approx(lengths.mean().item(), rel=0.2)  # of those trained on
    again = made.prepare(lm, TEXTS, reward=lambda prompt, text: -float(len(text)))
    assert not torch.equal(again.tensors["network/w1"], state.tensors["network/w1"])  # nothing came from a cache


# Training -----------------------------------------------------------------------------------------------


def test_values_follow_those_behind_them_and_the_last_the_reward() -> None:
    """The released code takes the first valid token for the last, and does not detach."""
    batch = [
        Trajectory("a", torch.randn(3, 4), 7.0),
        Trajectory("b", torch.randn(1, 4), -2.0),
        Trajectory("c", torch.randn(2, 4), 5.0),
    ]
    values = torch.arange(6.0, requires_grad=True)
    targets = td_targets(values, batch)
    assert targets.tolist() == [1, 2, 7, -2, 5, 5]
    assert not targets.requires_grad


def test_the_loss_and_its_gradient_are_as_by_hand() -> None:
    lm = tiny_lm("gpt2")
    made = re_control().resolve(lm, State())
    torch.manual_seed(0)
    network = made.network(lm)
    batch = [Trajectory("a", torch.randn(3, 32), 1.5), Trajectory("b", torch.randn(2, 32), -0.5)]
    found = made.backward(lm, network, batch, None)  # type: ignore[arg-type]
    gradient = network.w1.grad.clone()  # type: ignore[union-attr]
    network.zero_grad()
    a, b = (network(one.states) for one in batch)
    terms = [a[0] - a[1].detach(), a[1] - a[2].detach(), a[2] - 1.5, b[0] - b[1].detach(), b[1] + 0.5]
    loss = torch.stack(terms).square().mean()
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert network.w1.grad is not None and torch.allclose(network.w1.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("arch", ["gpt2", "llama sentencepiece", "gemma3_text", "openai-gpt", "t5"])
def test_states_are_the_final_ones_that_predict_the_response(arch: str) -> None:
    lm = tiny_lm(arch)
    pairs = [
        (lm.tokens.prompt(p), lm.tokens.target(p, t)) for p, t in (("Ann Lee lives in", "New York"), ("A", "Rome"))
    ]
    together = final_states(lm, pairs)
    for pair, states in zip(pairs, together, strict=True):
        assert states.shape == (len(pair[1]), 32)
        assert torch.allclose(states, final_states(lm, [pair])[0], atol=1e-4)
    if arch in ("gpt2", "llama sentencepiece"):  # whose head is a linear of that state and no more
        logits = lm.target_logits(pairs)
        head = lm.model.get_parameter(f"{lm.sites.lm_head}.weight")
        assert torch.allclose(torch.cat(together) @ head.T, logits, atol=1e-4)


def test_the_value_head_learns_which_responses_are_good() -> None:
    lm = tiny_lm("gpt2")
    made = re_control().resolve(lm, State())
    torch.manual_seed(0)
    good, bad = torch.randn(32), torch.randn(32)
    some = [
        Trajectory(str(i), (good if i % 2 else bad) + 0.3 * torch.randn(1 + i % 5, 32), 1.0 if i % 2 else -1.0)
        for i in range(64)
    ]
    network = made.network(lm)
    made.before_training(lm, network, some)
    before = made.score(lm, network, some)["score"]
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        made.backward(lm, network, some, None)  # type: ignore[arg-type]
        optimizer.step()
    assert before < 0.3 and made.score(lm, network, some)["score"] > 0.8


# The ascent ---------------------------------------------------------------------------------------------


def test_the_ascent_is_that_of_autograd_through_the_network_that_was_trained() -> None:
    """The released code climbs a network of two layers, where it trained one of three."""
    lm = tiny_lm("gpt2")
    (part,) = patched(lm, climbs=4, eta=0.7).of_kind(ValueAscent)
    value = Value(32, 32)
    value.load_state_dict(part.tensors())
    assert sum(p.ndim == 2 for p in value.parameters()) == 3
    h = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = h.clone()
    for _ in range(4):
        leaf = expected.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
        expected = expected + 0.7 * 2.0**2 * gradient
    found = part.climbed(h)
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, h, atol=1e-2)
    with torch.no_grad():
        assert (value(part.climbed(h)) > value(h)).all()


@pytest.mark.parametrize("arch", ["gpt2", "llama", "openai-gpt", "gemma3_text", "t5"])
def test_it_acts_at_the_prompts_end_and_at_every_token_of_the_response(arch: str) -> None:
    lm = tiny_lm(arch)
    patch = patched(lm)
    (part,) = patch.of_kind(ValueAscent)
    prompts = [EDIT.prompt, "Rome", "A baker lives in"]
    pairs = [(lm.tokens.prompt(p), lm.tokens.target(p, "New York")) for p in prompts]
    before = final_states(lm, pairs)
    with patch.applied(lm) as edited:
        after = final_states(edited, pairs)
        texts = edited.generate(prompts, 6)
        assert texts == [edited.generate([prompt], 6)[0] for prompt in prompts]
        (score,) = edited.score([EDIT.prompt], ["New York"])
        assert score.logprobs[0] == pytest.approx(edited.next_logprobs([EDIT.prompt])[0][score.tokens[0]], abs=1e-4)
        rows = edited._continued([p for p, _ in pairs], [5] * 3, lambda logits, rows, step: logits.argmax(-1))
        scores = edited.score_ids([(p, ids) for (p, _), ids in zip(pairs, rows, strict=True) if ids])
        assert [list(s.argmax) for s in scores] == [ids for ids in rows if ids]  # fed at once as step by step
    for h, moved in zip(before, after, strict=True):
        assert torch.allclose(moved, part.climbed(h), atol=1e-3) and not torch.allclose(moved, h, atol=1e-2)


def test_the_prompt_before_its_end_is_left_as_it_is() -> None:
    lm = tiny_lm("llama")
    ids, seen = lm.tokens.prompt(EDIT.prompt), list[torch.Tensor]()
    site = lm.model.get_submodule(value_site(lm))

    def run(model: HFLM) -> torch.Tensor:
        with hooks.after(site, lambda a, k, out: seen.append(out[0].clone())):
            model.target_logits([(ids, [5])])
        return seen.pop()

    with torch.no_grad():
        before = run(lm)
        with patched(lm).applied(lm) as edited:
            after = run(edited)
    assert torch.equal(before[:-1], after[:-1]) and not torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_mode_of_torch_matters_and_no_parameter_gets_a_gradient(mode: Any) -> None:
    lm = tiny_lm("gpt2")
    with patched(lm).applied(lm) as edited:
        expected = edited.generate([EDIT.prompt], 4)
        with mode():
            assert edited.generate([EDIT.prompt], 4) == expected
    assert all(p.grad is None for p in lm.model.parameters())


def test_no_step_is_the_base_model() -> None:
    lm = tiny_lm("llama")
    before = lm.generate([EDIT.prompt, "Rome"], 6), lm.score([EDIT.prompt], ["Oslo"])
    with patched(lm, climbs=0).applied(lm) as edited:
        assert (edited.generate([EDIT.prompt, "Rome"], 6), edited.score([EDIT.prompt], ["Oslo"])) == before


# Editing ------------------------------------------------------------------------------------------------


def test_edits_of_one_value_head_are_one_part() -> None:
    lm = tiny_lm("gpt2")
    made = re_control()
    state = made.prepare(lm, CASES)
    patch = made.edit(lm, EDITS[1:], state, made.edit(lm, EDITS[:1], state))
    assert patch == made.edit(lm, EDITS, state)
    assert [entry["edit"] for entry in patch.parts[0].entries()] == [edit.id for edit in EDITS]
    assert {entry["reward"] for entry in patch.parts[0].entries()} == {"shorter"}
    left = patch
    for edit in EDITS:
        left = left.without(edit.id)
    assert left.parts == ()
    harder = replace(made, eta=2.0).edit(lm, EDITS[:1], state, patch)
    assert len(harder.parts) == 2


def test_a_state_of_another_reward_is_refused() -> None:
    lm = tiny_lm("gpt2")
    state = re_control().prepare(lm, CASES)
    with pytest.raises(BadInput, match="reward = shorter"):
        re_control(reward="contains:Rome").edit(lm, [EDIT], state)
    re_control(eta=0.1, climbs=2).edit(lm, [EDIT], state)  # which training does not depend on
