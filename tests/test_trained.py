"""What trained methods share: examples of cases, the training loop with its checkpoints, states that fit."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, tiny_lm
from torch import nn

import errata
from errata.errors import BadInput, Refused
from errata.methods.registry import METHODS, method, method_class
from errata.methods.state import State
from errata.methods.trained import method as trained
from errata.methods.trained.examples import (
    Asked,
    Example,
    Stream,
    compatible,
    divided,
    examples_of,
    training_cases,
)
from errata.methods.trained.method import TrainedMethod
from errata.methods.trained.training import Losses, Schedule, train
from errata.types import Case, Edit

SCHEDULE = Schedule(steps=20, lr=0.05, warmup=0.1, clip=1.0, check_every=5, patience=10)
TRAINED = [name for name in METHODS if issubclass(method_class(name), TrainedMethod)]


class Fit:
    """A line that is fitted to points, each batch another point; it notes the steps that it is asked for."""

    def __init__(self, stop: int = -1, bad: int = -1, scores: dict[int, float] | None = None) -> None:
        torch.manual_seed(0)
        self.network: Any = nn.Linear(2, 1)
        self.asked: list[int] = []
        self.stop, self.bad, self.scores = stop, bad, scores

    def backward(self, number: int) -> Losses:
        if number == self.stop:
            raise KeyboardInterrupt
        self.asked.append(number)
        x = torch.tensor([[float(number % 3), 1.0]])
        loss = (self.network(x) - number % 3).square().sum()
        loss.backward()
        return {"loss": float("nan") if number == self.bad else loss.item()}

    def spread(self, number: int) -> Losses:
        """As ``backward``, of a network of any width."""
        self.asked.append(number)
        loss = self.network(torch.ones(1, 2)).square().sum()
        loss.backward()
        return {"loss": loss.item()}

    def score(self) -> Losses:
        done = self.asked[-1] + 1
        return {"score": float(done) if self.scores is None else self.scores[done]}


def values(fit: Fit) -> list[torch.Tensor]:
    return [p.detach().clone() for p in fit.network.parameters()]


def test_an_interrupted_training_goes_on_to_the_very_end_that_it_would_have_had(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    whole, first, second = Fit(), Fit(stop=13), Fit()
    expected = train(whole, SCHEDULE, None, "fit")
    with pytest.raises(KeyboardInterrupt):
        train(first, SCHEDULE, file, "fit")
    assert file.is_file()
    progress = train(second, SCHEDULE, file, "fit")
    assert second.asked == list(range(10, 20)), "it goes on behind the last validation"
    assert all(map(torch.equal, values(second), values(whole)))
    assert [h["step"] for h in progress.history] == [h["step"] for h in expected.history] == [5, 10, 15, 20]
    assert not file.exists()


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_checkpoint_of_no_use_is_said_and_training_begins_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, first, second = tmp_path / "checkpoint", Fit(stop=13), Fit()
    with pytest.raises(KeyboardInterrupt):
        train(first, SCHEDULE, file, "fit")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        second.network = nn.Linear(2, 3)
        second.backward = second.spread
    train(second, SCHEDULE, file, "fit")
    assert "training begins anew" in caplog.text
    assert second.asked == list(range(20))


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    file, fit = tmp_path / "checkpoint", Fit(bad=12)
    with pytest.raises(Refused, match=r"at step 12 the loss .* the checkpoint of step 10 is kept; lower the learning"):
        train(fit, SCHEDULE, file, "fit")
    assert file.is_file()
    with pytest.raises(Refused, match=r"no finite number; lower"):
        train(Fit(bad=0), SCHEDULE, None, "fit")


def test_training_ends_when_it_gets_no_better_with_the_best_that_it_saw() -> None:
    scores = {5: 0.1, 10: 0.9, 15: 0.5, 20: 0.6, 25: 0.7}
    fit, best = Fit(scores=scores), Fit()
    progress = train(fit, replace(SCHEDULE, steps=100, patience=2), None, "fit")
    assert (progress.step, progress.best_step, progress.best) == (20, 10, 0.9)
    train(best, replace(SCHEDULE, steps=100), None, "fit")  # all steps
    assert not all(map(torch.equal, values(fit), values(best)))
    half = Fit(stop=10)
    with pytest.raises(KeyboardInterrupt):
        train(half, replace(SCHEDULE, steps=100), None, "fit")
    assert all(map(torch.equal, values(fit), values(half)))


def test_progress_is_told_with_the_validation_score(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "errata")
    train(Fit(), SCHEDULE, None, "fit")
    assert "fit: step 10 of 20, loss" in caplog.text and "held out score 10.000" in caplog.text


def test_parameters_may_have_a_learning_rate_of_their_own() -> None:
    fit = Fit()
    before = values(fit)
    train(fit, replace(SCHEDULE, rates={"bias": 0.0}), None, "fit")
    weight, bias = (not torch.equal(a, b) for a, b in zip(before, values(fit), strict=True))
    assert weight and not bias


# Examples ------------------------------------------------------------------------------------------


def test_examples_have_what_follows_and_what_stays() -> None:
    lm = tiny_lm("gpt2")
    first = examples_of(lm, "mend", CASES)[0]
    assert first.edit == CASES[0].edits[0]
    assert [(a.kind, a.answer) for a in first.follow] == [("paraphrase", "Rome"), ("question", "Rome")]
    assert [(a.kind, a.answer) for a in first.keep] == [("neighborhood", "Oslo"), ("same_subject", "Oslo")]


def test_cases_that_are_too_few_or_lack_something_are_told() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(BadInput, match=r"mend is trained on at least 8 cases of one edit each, and 2 of the 2 given"):
        method("mend").prepare(lm, CASES[:2])
    bare = [replace(case, probes=case.probes[2:]) for case in CASES[:4]] + CASES[4:]
    with pytest.raises(BadInput, match=r"4 of the 8 given can be used; 4 have no other words for the edit"):
        method("mend").prepare(lm, bare)
    bare = [replace(case, probes=case.probes[:2]) for case in CASES[:1]] + CASES[1:]
    with pytest.raises(BadInput, match=r"7 of the 8 given can be used; 1 have no prompts that must stay"):
        method("mend").prepare(lm, bare)
    with pytest.raises(BadInput, match=r"found str: give errata\.cases"):
        method("mend").prepare(lm, ["a text"])
    with pytest.raises(BadInput, match=r"mend is trained on cases, and none go with tiny gpt2: prepare\(lm"):
        method("mend").prepare(lm)
    with pytest.raises(BadInput, match="of 1 subjects; to hold some out"):
        examples = examples_of(lm, "mend", CASES)
        divided([replace(e, edit=EDIT) for e in examples], 0.1, 0)


def test_held_out_examples_are_of_other_subjects() -> None:
    examples = examples_of(tiny_lm("gpt2"), "mend", CASES * 3)
    rest, held = divided(examples, 0.3, 0)
    assert {e.edit.subject for e in rest}.isdisjoint(e.edit.subject for e in held)
    assert len(rest) + len(held) == 24 and len(held) == 6
    assert divided(examples, 0.3, 1)[1] != held


def test_a_stream_goes_through_all_examples_one_of_each_subject_first() -> None:
    examples = examples_of(tiny_lm("gpt2"), "mend", CASES * 2)
    stream = Stream(examples, 0)
    first, second = stream.batch(0, 8), stream.batch(1, 8)
    assert len({e.edit.subject for e in first}) == len({e.edit.subject for e in second}) == 8
    assert stream.batch(2, 8) != first, "the next round has another order"
    assert Stream(examples, 0).batch(1, 8) == second and stream.batch(0, 8) == first, "whatever was asked before"
    assert Stream(examples, 1).batch(0, 8) != first
    assert stream.rng(3).random() == Stream(examples, 0).rng(3).random() != stream.rng(4).random()


def test_a_sample_takes_kinds_alike() -> None:
    keep = tuple(Asked(f"{kind} {i}", "x", kind) for kind, n in (("a", 9), ("b", 1), ("c", 3)) for i in range(n))
    follow = tuple(Asked(f"f {i}", "x") for i in range(5))
    example = Example(EDIT, follow, keep)
    sampled = example.sampled(Stream([example], 0).rng(0), 2, 5)
    kinds = [asked.kind for asked in sampled.keep]
    assert (kinds.count("a"), kinds.count("b"), kinds.count("c")) == (2, 1, 2)
    assert len(set(sampled.follow)) == 2 and len(example.sampled(Stream([example], 0).rng(0), 9, 99).keep) == 13


def test_what_another_edit_of_a_batch_changes_is_not_kept() -> None:
    keep = (Asked("Bob Ray lives in", "Rome"), Asked("Cy Moor lives in", "Rome"), Asked("Ann Lee is from", "Rome"))
    one, other = Example(EDIT, (), keep), Example(Edit("Bob Ray lives in", "Bob Ray", "Oslo"), (), keep)
    assert [a.prompt for a in compatible([one, other])[0].keep] == ["Cy Moor lives in", "Ann Lee is from"]
    assert compatible([one])[0].keep == keep


def test_the_worlds_training_cases_ask_about_its_training_subjects_alone() -> None:
    from errata.world.cases import cases
    from errata.world.facts import world

    small = world(60, 3)
    others = {s for split in ("test", "validation") for s in small.subjects(split)}
    drawn = cases(small, limit=len(small.subjects("train")) // 2, split="train", apart=True)
    kept = [p for case in drawn for p in case.probes if p.kind in ("neighborhood", "same_subject", "unrelated")]
    assert {p.kind for p in kept} == {"neighborhood", "same_subject", "unrelated"}
    assert not any(subject in p.prompt for p in kept for subject in others)


def test_training_cases_of_the_model_are_several_draws() -> None:
    lm = tiny_lm("gpt2")
    numbers: list[int] = []

    def draw(number: int) -> list[Case]:
        numbers.append(number)
        return CASES

    lm.resources = replace(lm.resources, draw=draw)
    assert len(training_cases(lm, "mend", None)) == len(CASES) * len(numbers) and len(set(numbers)) > 1


# States --------------------------------------------------------------------------------------------


def prepared(name: str, **settings: Any) -> tuple[Any, Any, State]:
    lm, made = tiny_lm("gpt2"), method(name, **{**method_class(name).tags.quick, **settings})
    return made, lm, made.prepare(lm, CASES)


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_says_what_it_cost_and_is_cached(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, lm, state = prepared(name)
    cost = state.info["training"]
    assert cost["steps"] == made.steps and cost["seconds"] > 0 and cost["examples"] + cost["held_out"] >= len(CASES)
    assert "peak_mib" in cost and cost["history"][-1]["step"] == made.steps
    monkeypatch.setattr(trained, "train", None)  # what is cached is not trained again
    again = made.prepare(lm, CASES)
    assert all(torch.equal(again.tensors[key], value) for key, value in state.tensors.items())


@pytest.mark.parametrize("name", TRAINED)
def test_a_state_of_other_settings_is_refused(name: str) -> None:
    made, lm, state = prepared(name)
    other = replace(made, steps=made.steps + 1)
    with pytest.raises(BadInput, match=rf"trained with steps = {made.steps}, and the method has {made.steps + 1}"):
        other.edit(lm, [EDIT], state)


def test_a_state_of_other_layers_or_of_another_method_is_refused() -> None:
    made, lm, state = prepared("mend", layers=(1,))
    with pytest.raises(BadInput, match=r"trained with layers = \[1\], and the method has \[0\]"):
        replace(made, layers=(0,)).edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="prepared for method = mend, not malmen"):
        errata.method("malmen", **method_class("malmen").tags.quick).edit(lm, [EDIT], state)


def test_an_interrupted_preparation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made, lm, expected = prepared("mend", steps=6, check_every=2, seed=5)
    other = replace(made, lr=made.lr * 2)
    cls: Any = type(made)
    backward, steps = cls.backward, list[int]()

    def interrupted(self: Any, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return backward(self, *args)

    monkeypatch.setattr(cls, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.prepare(lm, CASES)
    state = other.prepare(lm, CASES)
    assert len(steps) == 4 + 1 + 2, "it goes on behind step 4"
    assert any(not torch.equal(state.tensors[key], value) for key, value in expected.tensors.items())
    monkeypatch.setenv("ERRATA_CACHE", f"{errata.__file__}/nowhere")
    whole = other.prepare(lm, CASES)
    assert all(torch.equal(whole.tensors[key], value) for key, value in state.tensors.items())


def test_the_learning_rate_rises_and_falls_over_the_steps_that_there_are() -> None:
    factors = [SCHEDULE.factor(step) for step in range(SCHEDULE.steps)]
    assert factors[0] == 0.5 and max(factors) == 1.0 and factors.index(1.0) <= 2
    assert factors[-1] == pytest.approx(1 / 18) and sorted(factors[2:], reverse=True) == factors[2:]


def test_what_is_too_long_for_the_model_is_left_out_and_does_not_end_the_training() -> None:
    lm = tiny_lm("gpt2")
    long = "Ann Lee " + "went by night to Rome and " * lm.tokens.limit  # type: ignore[operator]
    paraphrase = replace(CASES[0].probes[0], prompt=long)
    with_long = [replace(CASES[0], probes=(paraphrase, *CASES[0].probes[1:])), *CASES[1:]]
    found = examples_of(lm, "mend", with_long)
    assert len(found) == len(CASES) and [a.kind for a in found[0].follow] == ["question"]
    edit = Edit(long + "by", "Ann Lee", "Oslo")
    assert len(examples_of(lm, "mend", [*CASES, replace(CASES[0], edits=(edit,))])) == len(CASES)


def test_a_name_within_another_name_is_another_name() -> None:
    keep = (Asked("Ann Lee lives in", "Rome"), Asked("Ann lives in", "Rome"))
    whole, part = Example(EDIT, (), keep), Example(Edit("Ann lives in", "Ann", "Oslo"), (), keep)
    assert [a.prompt for a in compatible([whole, part])[0].keep] == ["Ann Lee lives in"]
