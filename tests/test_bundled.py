"""The model that ships with the package: it knows its world, and its facts can be edited."""

import random
from functools import cache
from typing import Any

import pytest
import torch

import errata
from errata.answers import begins_with_answer
from errata.methods.trained.examples import FOLLOW, KEEP
from errata.report.folds import summary
from errata.world.facts import RELATIONS, world
from errata.world.text import ask


@cache
def model() -> Any:
    return errata.load("world")


def recall(limit: int | None) -> float:
    """Share of prompts about the world's facts that are answered rightly, of a sample or of all."""
    bundled = world()
    facts = [(ask(p, s), o) for r in RELATIONS.values() for s, o in bundled.facts[r.name].items() for p in r.phrasings]
    return accuracy(random.Random(0).sample(facts, limit or len(facts)))


def accuracy(questions: list[tuple[str, str]]) -> float:
    """Share of prompts whose reply begins with the answer beside them."""
    replies = model().generate([prompt for prompt, _ in questions], 8, until_answer=True)
    right = (begins_with_answer(reply, [answer]) for reply, (_, answer) in zip(replies, questions, strict=True))
    return sum(right) / len(questions)


def measured(name: str, n: int, single: bool = False, **settings: Any) -> dict[str, float]:
    """kind/metric -> mean after the edits, generated."""
    lm, cases = model(), errata.cases("world", limit=n)
    method = errata.method(name, **settings)
    state, before = method.prepare(lm), errata.baseline(lm, cases, max_new_tokens=8)
    rows: list[Any] = []
    for group in [[case] for case in cases] if single else [cases]:
        patch = method.edit(lm, [edit for case in group for edit in case.edits], state)
        with patch.applied(lm) as edited:
            rows += errata.evaluate(before, edited, group)
    return {f"{s.kind}/{s.metric}": s.after.mean for s in summary(rows) if s.after is not None}


def test_it_is_small_and_comes_with_its_world() -> None:
    lm = model()
    assert sum(p.numel() for p in lm.model.parameters()) < 20e6
    assert lm.resources.texts is not None and lm.resources.cases is not None
    assert len({case.edits[0].subject for case in lm.resources.cases()} & set(world().subjects("test"))) == 0


def test_what_methods_are_trained_on_asks_about_training_subjects_alone() -> None:
    lm = model()
    first, second = (lm.resources.draw(number) for number in (0, 1))
    read = (*FOLLOW, *KEEP)  # what follows in two hops or backwards is asked of other subjects
    asked = [p.prompt for case in first for p in case.probes if p.kind in read]
    others = [s for split in ("test", "validation") for s in world().subjects(split)]
    assert not any(subject in text for text in asked for subject in others if " " in subject)
    assert {case.edits[0] for case in first} != {case.edits[0] for case in second}
    assert {p.kind for case in first for p in case.probes} >= {"paraphrase", "question", "neighborhood", "same_subject"}


def test_it_knows_its_facts() -> None:
    assert recall(300) >= 0.98


def test_it_follows_a_fact_in_context_and_only_about_its_subject() -> None:
    bundled, rng = world(), random.Random(0)
    same: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for name, subject in rng.sample([(r, s) for r, objects in bundled.facts.items() for s in objects], 100):
        relation, other = RELATIONS[name], rng.choice(sorted(bundled.facts[name]))
        new = rng.choice(sorted(set(bundled.names[relation.object]) - {bundled.facts[name][subject]}))
        fact = f"Fact: {ask(rng.choice(relation.first), subject)} {new}. "
        same.append((fact + ask(rng.choice(relation.phrasings), subject), new))
        if other != subject:
            others.append((fact + ask(rng.choice(relation.phrasings), other), bundled.facts[name][other]))
    assert accuracy(same) >= 0.95 and accuracy(others) >= 0.95


def test_ten_facts_change_and_come_back() -> None:
    lm = model()
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    after = measured("memit", 10)
    assert after["edit/accuracy"] >= 0.9
    assert after["neighborhood/accuracy"] >= 0.9
    assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_knows_every_fact_in_every_phrasing() -> None:
    assert recall(None) >= 0.98


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("preserve", [0.0, 4.0])
def test_a_hundred_facts_at_once(preserve: float) -> None:
    after = measured("memit", 100, preserve=preserve)
    assert after["edit/accuracy"] >= 0.95
    assert after["paraphrase/accuracy"] >= (0.9 if preserve else 0.95)
    assert after["question/accuracy"] >= 0.7
    assert after["neighborhood/accuracy"] >= 0.96
    assert after["same_subject/accuracy"] >= (0.9 if preserve else 0.7)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_fact_at_a_time() -> None:
    after = measured("r-rome", 20, single=True)
    assert after["edit/accuracy"] >= 0.95
    assert after["neighborhood/accuracy"] >= 0.97


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_gradients_are_an_edit_with_nothing_trained() -> None:
    after = measured("ultraedit", 60)
    assert after["edit/accuracy"] >= 0.8 and after["paraphrase/accuracy"] >= 0.8
    assert after["neighborhood/accuracy"] >= 0.8 and after["same_subject/accuracy"] >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_network_that_was_trained_for_a_minute_edits_subjects_that_it_never_saw() -> None:
    after = measured("mend", 20, single=True, steps=40, check_every=40)
    assert after["edit/accuracy"] >= 0.8 and after["paraphrase/accuracy"] >= 0.8
    assert after["neighborhood/accuracy"] >= 0.8 and after["same_subject/accuracy"] >= 0.9
