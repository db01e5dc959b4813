"""REMEDI: the loss by hand, where a direction is added, which edits are in force, and how well it does."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, EDITS, quick, tiny_lm

from errata.errors import BadInput, Unsupported
from errata.methods.memory.log import EditRecord
from errata.methods.registry import method
from errata.methods.state import State
from errata.methods.trained.examples import examples_of
from errata.methods.trained.representation.directions import EntityDirections
from errata.methods.trained.representation.remedi import REMEDI, Affine, mentioned
from errata.model import hooks
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Case, Edit, Probe


def remedi(**settings: Any) -> REMEDI:
    made = method("remedi", **settings)
    assert isinstance(made, REMEDI)
    return made


def patched(lm: HFLM, edits: list[Edit], layer: int = 1, scale: float = 3.0) -> Patch:
    """A patch with a random direction for each edit."""
    directions = scale * torch.randn(len(edits), lm.config.hidden_size, generator=torch.Generator().manual_seed(0))
    return Patch((EntityDirections(lm.sites.layer[layer], 1.0, tuple(map(EditRecord.of, edits)), directions),))


# Where it acts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama sentencepiece", "openai-gpt", "gemma3_text"])
def test_the_direction_is_added_at_the_subjects_last_token_alone(arch: str) -> None:
    lm = tiny_lm(arch)
    patch = patched(lm, [EDIT])
    (part,) = patch.of_kind(EntityDirections)
    prompt, target = "Of them all Ann Lee was born in", "Oslo"
    ids, answer = lm.tokens.prompt(prompt), lm.tokens.target(prompt, target)
    last = lm.tokens.last_of_subject(prompt, "Ann Lee")

    def h(model: HFLM) -> torch.Tensor:  # behind the patch's own hook
        seen: list[torch.Tensor] = []
        with hooks.after(lm.model.get_submodule(part.site), lambda a, k, out: seen.append(_row(out))):
            model.score([prompt], [target])
        assert [len(x) for x in seen] == [len(ids) + len(answer) - 1]
        return seen[0]

    before = h(lm)
    with patch.applied(lm) as edited:
        after = h(edited)
    moved = (after - before).abs().amax(-1) > 1e-6
    assert moved.nonzero()[:, 0].tolist() == [last]
    assert torch.allclose(after[last] - before[last], part.directions[0], atol=1e-4)


def _row(out: Any) -> torch.Tensor:
    """The hidden states of the only row."""
    h = out[0] if isinstance(out, tuple | list) else out
    return h[-1].clone()


@pytest.mark.parametrize("arch", ["llama", "openai-gpt"])  # with a cache, and without
def test_nothing_is_added_while_decoding_and_prompts_without_the_subject_stay(arch: str) -> None:
    lm = tiny_lm(arch)
    patch = patched(lm, [EDIT, Edit("Rome is in", "Rome", "Lima")])
    prompts = ["Ann Lee lives in", "Bob Ray lives in", "Anna Lee lives in", "Ann Leeds lives in"]
    before, scores = lm.generate(prompts, 8), lm.score(prompts, ["Rome is in Rome"] * 4)
    with patch.applied(lm) as edited:
        after = edited.generate(prompts, 8)
        scored = edited.score(prompts, ["Rome is in Rome"] * 4)  # answers name a subject
        alone = [edited.generate([prompt], 8)[0] for prompt in prompts]
        greedy = edited.generate(["Ann Lee lives in"], 1)[0]
        (first,) = edited.score(["Ann Lee lives in"], [greedy])
        nexts = edited.next_logprobs(["Ann Lee lives in"])[0]
    assert after[1:] == before[1:] and scored[1:] == scores[1:]
    assert scored[0] != scores[0]
    assert after == alone
    assert first.logprobs[0] == pytest.approx(nexts[first.tokens[0]], abs=1e-4)


def test_decoding_goes_on_as_the_prompts_pass_began() -> None:
    """Step by step with a cache as when the answer is fed at once: the prompt keeps its direction, answers get none."""
    lm = tiny_lm("llama")
    with patched(lm, [EDIT]).applied(lm) as edited:
        (ids,) = edited._continued([lm.tokens.prompt(EDIT.prompt)], [6], lambda logits, rows, step: logits.argmax(-1))
        (score,) = edited.score_ids([(lm.tokens.prompt(EDIT.prompt), ids)])
        assert list(score.argmax) == ids


def test_of_two_subjects_the_longer_is_meant_and_the_last_mention() -> None:
    lm = tiny_lm("gpt2")
    (part,) = patched(lm, [EDIT, Edit("Ann lives in", "Ann", "Rome")]).of_kind(EntityDirections)
    prompts = ["Ann Lee was born in", "Ann met Ann Lee in", "Ann met Ann in", "Bob was born in"]
    rows = [lm.tokens.prompt(prompt) for prompt in prompts]
    found = [[(last + len(row) - 1, k) for last, k in of_row if k >= 0] for of_row, row in zip(
        part.found(lm.tokens, rows).tolist(), rows, strict=True
    )]  # fmt: skip
    lee = lm.tokens.last_of_subject("Ann Lee was born in", "Ann Lee")
    assert found[0] == [(lee, 0)]
    assert found[1] == [(lm.tokens.last_of_subject(prompts[1], "Ann Lee"), 0)]
    assert found[2] == [(lm.tokens.last_of_subject(prompts[2], "Ann"), 1)]
    assert found[3] == []


def test_edits_of_one_subject_add_up_and_the_newest_of_a_prompt_counts() -> None:
    lm = tiny_lm("gpt2")
    edits = [EDIT, Edit("Ann Lee lives in", "Ann Lee", "Rome"), replace(EDIT, target_new="Lima", id="")]
    (part,) = patched(lm, edits).of_kind(EntityDirections)
    assert torch.equal(part.sums, part.directions[1:].sum(0, keepdim=True))
    assert [entry["in use"] for entry in part.entries()] == ["a newer one", "yes", "yes"]
    left = part.without(edits[2].id)
    assert left is not None and torch.equal(left.sums, part.directions[:2].sum(0, keepdim=True))
    assert part.without(edits[0].id).without(edits[1].id).without(edits[2].id) is None  # type: ignore[union-attr]


def test_what_acts_is_explained() -> None:
    lm = tiny_lm("gpt2")
    with patched(lm, EDITS).applied(lm) as edited:
        lines = edited.explain(["Ann Lee was born in", "Dora Finn lives in"])
    assert lines == [[f"remedi: edit {EDIT.id}, {EDIT.prompt!r}"], []]


def test_a_newer_edit_in_other_words_takes_the_place_of_the_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, made = tiny_lm("gpt2"), quick("remedi")
    state = made.prepare(lm, CASES)
    newer = Edit("The birthplace of {} is", EDIT.subject, "Lima")
    other = Edit("{} lives in", EDIT.subject, "Rome")
    asked: list[Any] = []

    def same_fact(lm: HFLM, pairs: Any, patch: Patch | None) -> list[bool]:
        asked.append(patch)
        return [(old.prompt, new.prompt) == (EDIT.prompt, newer.prompt) for old, new in pairs]

    monkeypatch.setattr("errata.methods.memory.reworded.same_fact", same_fact)
    first = made.edit(lm, [EDIT, other], state)
    patch = made.edit(lm, [newer], state, first)
    assert asked == [None, first]
    (part,) = patch.of_kind(EntityDirections)
    assert part.subjects == {EDIT.subject: [1, 2]}
    assert [entry["in use"] for entry in part.entries()] == ["a newer one", "yes", "yes"]
    assert Patch.load(patch.save(tmp_path / "p.safetensors")) == patch
    (left,) = patch.without(newer.id).of_kind(EntityDirections)
    assert left.subjects == {EDIT.subject: [0, 1]} and left == first.of_kind(EntityDirections)[0]
    assert "reworded" not in left.config() and "reworded" in part.config()


# Training -----------------------------------------------------------------------------------------------


def test_the_loss_is_as_by_hand() -> None:
    lm = tiny_lm("gpt2")
    made = remedi(layer=1, lam_prior=2.0, lam_kl=3.0).resolve(lm, State())
    edit = Edit("The mayor is Ann Lee of", "Ann Lee", "New York", "Rome")
    case = Case("a", (edit,), (Probe("paraphrase", "Of Ann Lee the king went by night to", ("New York",)),))
    (example,) = [e for e in examples_of(lm, "remedi", [*CASES, case], keep=False) if e.edit == edit]
    rows = list(mentioned(lm, [example]))
    d = torch.randn(1, lm.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with hooks.frozen(lm.model):
        found = made.objective(lm, rows, d)
    prompt, target = example.follow[0].ids(lm)
    last = lm.tokens.last_of_subject(example.follow[0].prompt, "Ann Lee")

    def logp(moved: bool) -> torch.Tensor:
        def add(a: Any, k: Any, out: Any) -> Any:
            h = (out[0] if isinstance(out, tuple) else out).clone()
            h[0, last] = made.beta * h[0, last] + d[0]
            return (h, *out[1:]) if isinstance(out, tuple) else h

        site = lm.model.get_submodule(lm.sites.layer[1])
        with torch.no_grad(), hooks.all_of([hooks.after(site, add)] if moved else []):
            return lm.model(torch.tensor([[*prompt, *target]])).logits[0].float().log_softmax(-1)

    old, new, end = logp(False), logp(True), len(prompt) - 1
    old_answer = lm.tokens.target(example.follow[0].prompt, "Rome")[0]
    kl = torch.stack([(old[t].exp() * (old[t] - new[t])).sum() for t in range(last, end)])
    nll = -torch.stack([new[end + j, token] for j, token in enumerate(target)]).mean()
    assert len(kl) > 2 and float(kl.mean()) > 1e-4
    assert torch.allclose(found["kl"], kl.mean(), atol=1e-5)
    assert torch.allclose(found["edit"], nll, atol=1e-5)
    assert torch.allclose(found["prior"], -(1 - new[end, old_answer].exp()).log(), atol=1e-5)


def test_the_loss_of_a_batch_is_the_mean_over_its_prompts_also_of_the_kl() -> None:
    """The released code keeps the KL of the last row."""
    lm = tiny_lm("llama")
    made = remedi(layer=1, lam_kl=3.0, lam_prior=2.0, follow=9).resolve(lm, State())
    examples = examples_of(lm, "remedi", CASES, keep=False)[:3]
    with hooks.frozen(lm.model):
        network = made.network(lm)
        network.observe(made.attributes(lm, [e.edit for e in examples]))
        torch.nn.init.normal_(network.g, std=0.05, generator=torch.Generator().manual_seed(0))
        whole = made.backward(lm, network, examples, Random(0))
        gradient = network.g.grad.clone()  # type: ignore[union-attr]
        network.zero_grad()
        alone = [made.backward(lm, network, [example], Random(0)) for example in examples]
        assert network.g.grad is not None
        assert torch.allclose(network.g.grad / 3, gradient, atol=1e-5)
        for name in ("loss", "edit", "prior", "kl"):
            assert whole[name] == pytest.approx(sum(one[name] for one in alone) / 3, rel=1e-4)
        assert whole["loss"] == pytest.approx(whole["edit"] + 2 * whole["prior"] + 3 * whole["kl"], rel=1e-4)
        network.zero_grad()
        replace(made, lam_kl=0.0).backward(lm, network, examples, Random(0))
        assert (network.g.grad - gradient).norm() > 1e-3 * gradient.norm()  # the KL has a gradient


def test_an_old_answer_that_is_certain_has_a_finite_loss() -> None:
    from errata.methods.trained.representation.remedi import _less

    logits = torch.tensor([80.0, 0.0, 0.0], requires_grad=True)
    loss = _less(logits, 0)
    loss.backward()
    assert loss.item() == pytest.approx(80 - torch.tensor(2.0).log().item(), abs=1e-4)
    assert logits.grad is not None and logits.grad[0] == pytest.approx(1.0)


def test_the_affine_map_is_one_of_the_attribute() -> None:
    torch.manual_seed(0)
    h = torch.randn(200, 6) @ (torch.eye(6) + 0.3 * torch.randn(6, 6)) + 5
    affine = Affine(6)
    affine.observe(h)
    with torch.no_grad():
        assert torch.equal(affine(h), torch.zeros(200, 6))
        affine.g.copy_(torch.eye(6))
        white = affine(h) / h.square().mean().sqrt()
        assert torch.allclose(white.T @ white / 200, torch.eye(6), atol=0.2)  # but for the ridge
        assert torch.allclose(
            affine(h[:1] + h[1:2] - h[2:3]) / affine.s, white[:1] + white[1:2] - white[2:3], atol=1e-4
        )


def test_the_attribute_is_what_follows_the_subject() -> None:
    lm = tiny_lm("gpt2")
    made = remedi(layer=2, attribute_layer=1).resolve(lm, State())
    assert remedi().resolve(lm, State()).attribute_layer == 0  # 1 of 28
    edit = Edit("The mayor is Ann Lee of", "Ann Lee", "New York")
    (h,) = made.attributes(lm, [edit])
    ids = [*lm.tokens.prompt(edit.prompt), *lm.tokens.target(edit.prompt, "New York")]
    last, site = lm.tokens.last_of_subject(edit.prompt, "Ann Lee"), (lm.sites.layer[1], "out")
    states = lm.read([ids], [list(range(len(ids)))], [site])[site]
    assert lm.tokens.decode(ids[last + 1 :]) == " of New York"
    assert torch.allclose(h, states[last + 1 :].mean(0), atol=1e-5)


def test_the_best_parameters_are_kept() -> None:
    """The released code keeps them by reference, and so the last ones."""
    lm = tiny_lm("gpt2")
    made = quick("remedi")
    state = made.prepare(lm, CASES)
    history = state.info["training"]["history"]
    longer = replace(made, steps=80, lr=1.0)  # goes astray after a while
    worse = longer.prepare(lm, CASES).info["training"]
    assert state.info["training"]["score"] == pytest.approx(max(h["held out score"] for h in history), rel=1e-3)
    assert worse["score"] == pytest.approx(max(h["held out score"] for h in worse["history"]), rel=1e-3)


# Editing ------------------------------------------------------------------------------------------------


def test_a_fold_a_batch_and_taking_out() -> None:
    lm = tiny_lm("llama")
    made = quick("remedi")
    state = made.prepare(lm, CASES)
    whole = made.edit(lm, EDITS, state)
    folded = made.edit(lm, EDITS[1:], state, made.edit(lm, EDITS[:1], state))
    fewer = made.edit(lm, [EDITS[0], EDITS[2]], state)
    for one, two in ((folded, whole), (whole.without(EDITS[1].id), fewer)):
        (first,), (second,) = one.of_kind(EntityDirections), two.of_kind(EntityDirections)
        assert first.log == second.log
        assert torch.allclose(first.directions, second.directions, atol=1e-5)


def test_alpha_scales_the_direction_and_beta_the_subject(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    made = quick("remedi")
    state = made.prepare(lm, CASES)
    network = made.loaded(lm, state)  # type: ignore[attr-defined]
    one, two = (replace(made, alpha=a).resolve(lm, state).directions(network, torch.ones(1, 32)) for a in (1.0, 2.0))  # type: ignore[attr-defined,call-arg]
    assert torch.allclose(2 * one, two)
    (part,) = patched(lm, [EDIT]).of_kind(EntityDirections)
    call_y = torch.ones(1, 3, 32)
    from errata.model.lm import Call

    call = Call(torch.ones(1, 3), torch.tensor([2]))
    halved = replace(part, beta=0.5)
    call.memo[id(halved)] = torch.tensor([[[-1, 0]]])
    out = halved.out(call, call_y, call_y)
    assert torch.allclose(out[0, 1], 0.5 + part.directions[0]) and torch.equal(out[0, [0, 2]], call_y[0, [0, 2]])


def test_encoder_decoders_and_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(Unsupported, match="encoder"):
        quick("remedi").prepare(tiny_lm("t5"), CASES)
    with pytest.raises(BadInput, match="0 to 3; found 9"):
        remedi(layer=9).prepare(tiny_lm("gpt2"), CASES)
    with pytest.raises(BadInput, match="attribute_layer lies within 0 to 3; found 4"):
        remedi(attribute_layer=4).prepare(tiny_lm("gpt2"), CASES)
