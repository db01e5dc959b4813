"""Edits that cannot both hold: which are found, and which of them holds."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import errata
from errata.conflicts.pairs import Conflict, conflicts, within
from errata.conflicts.resolving import resolve
from errata.errors import BadInput, UnknownName
from errata.subjects import mentions
from errata.types import Edit

CEO = Edit("The CEO of {} is", "Acme", "Jane Doe")
OTHER = Edit("The CEO of {} is", "Acme", "John Roe")
AGAIN = Edit("the  CEO of {} is", "Acme", "jane doe.")
BACK = Edit("{} is the CEO of", "Jane Doe", "Acme")
ELSEWHERE = Edit("{} is the CEO of", "Jane Doe", "Bolt")
BORN = Edit("{} was born in", "Ann Lee", "Oslo")
MAYOR = Edit("The mayor of {} is", "Oslo", "Bob Ray")


def kinds(older: list[Edit], newer: list[Edit]) -> list[str]:
    return [conflict.kind for conflict in conflicts(older, newer)]


def test_one_question_with_two_answers() -> None:
    assert conflicts([CEO, BORN], [OTHER]) == [Conflict(CEO, OTHER, "other target")]
    assert kinds([CEO], [AGAIN]) == ["duplicate"]
    assert kinds([CEO], [BORN]) == kinds([], [CEO]) == kinds([CEO], []) == []
    assert kinds([CEO], [replace(OTHER, subject="CEO", id="")]) == ["other target"]


def test_an_inverse_that_no_longer_agrees() -> None:
    assert kinds([CEO], [BACK]) == kinds([BACK], [CEO]) == []
    assert kinds([BACK], [OTHER]) == kinds([OTHER], [BACK]) == ["inverse"]
    assert kinds([CEO], [ELSEWHERE]) == kinds([ELSEWHERE], [CEO]) == ["inverse"]
    assert kinds([BORN], [MAYOR]) == []  # one leads to the other, by another relation
    father = Edit("{} is the father of", "Ann Lee", "Bob Ray")
    assert kinds([father], [Edit("{} is the father of", "Bob Ray", "Cy Moor")]) == []  # that leads on
    founded = Edit("{} was founded by", "Acme", "Ann Lee")
    assert kinds([founded], [Edit("{} founded", "Bob Ray", "Acme")]) == ["inverse"]


def test_a_conflict_with_many_that_answer_alike_is_found_among_them() -> None:
    many = [Edit("{} was born in", f"Person {n}", "Oslo") for n in range(2000)]
    assert within([*many, replace(many[7], target_new="Rome", id="")]) == [
        Conflict(many[7], replace(many[7], target_new="Rome", id=""), "other target")
    ]


def test_within_one_list_the_later_one_is_newer() -> None:
    found = within([CEO, BORN, OTHER, CEO])
    assert [(c.older, c.newer, c.kind) for c in found] == [
        (CEO, OTHER, "other target"),
        (CEO, CEO, "duplicate"),
        (OTHER, CEO, "other target"),
    ]
    assert found[0].to_json()["older"]["target_new"] == "Jane Doe" and found[0].key == f"{CEO.id} {OTHER.id}"


def test_rules_say_which_holds() -> None:
    found = conflicts([CEO, BORN], [OTHER])
    assert resolve(found).decided == ((found[0], OTHER),)
    assert resolve(found).left([CEO, BORN, OTHER]) == [BORN, OTHER]
    assert resolve(found, "ours").dropped == [OTHER]
    assert resolve(found, {found[0].key: CEO.id}).left([CEO, BORN, OTHER]) == [CEO, BORN]
    assert resolve([]).left([CEO, CEO]) == [CEO]
    twice = resolve(within([CEO, BORN, CEO]))
    assert twice.left([CEO, BORN, CEO]) == [BORN, CEO] and twice.dropped == []


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ("newst", UnknownName, "did you mean newest"),
        ({}, BadInput, "not decided"),
        ({f"{CEO.id} {OTHER.id}": CEO.id, "a b": "a"}, BadInput, "no conflict has the key a b"),
        ({f"{CEO.id} {OTHER.id}": BORN.id}, BadInput, "one edit holds"),
    ],
)
def test_a_rule_that_decides_nothing_is_refused(rule: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(conflicts([CEO], [OTHER]), rule)


# The same fact in other words: the model says -------------------------------------------------------


@cache
def world() -> Any:
    return errata.load("world")


def reworded(n: int) -> tuple[list[tuple[Edit, Edit]], list[tuple[Edit, Edit]]]:
    """Pairs of an edit and one of the same fact in other words, and pairs with another fact of the subject."""
    from errata.world.cases import cases
    from errata.world.facts import world as world_of

    same, others = [], []
    for case in cases(world_of(), limit=n, split="test"):
        edit, rng = case.edits[0], random.Random(case.id)
        for probe in case.probes:
            if not mentions(probe.prompt, edit.subject) or probe.prompt == edit.prompt:
                continue
            objects = sorted(set(world_of().facts[case.id.rpartition("-")[2]].values()) - {edit.target_new})
            other = Edit(probe.prompt, edit.subject, rng.choice(objects))
            if probe.kind in ("paraphrase", "question"):
                same.append((edit, other))
            elif probe.kind == "same_subject":
                others.append((edit, other))
    return same, others


def test_the_same_fact_in_other_words_is_found_and_another_is_not() -> None:
    lm = world()
    same, others = reworded(8)
    found = [conflicts([one], [two], lm) for one, two in same[:24]]
    assert sum(map(len, found)) >= 0.9 * len(found)
    assert {conflict.kind for some in found for conflict in some} == {"other words"}
    assert not [c for one, two in others for c in conflicts([one], [two], lm)]
    one, two = same[0]
    assert conflicts([one], [two]) == []  # without a model
    assert conflicts([one], [replace(two, target_new=one.target_new, id="")], lm)[0].kind == "duplicate"


def test_with_the_patch_that_holds_the_older_ones() -> None:
    lm, rome = world(), errata.method("r-rome")
    same, _ = reworded(2)
    one, two = same[0]
    patch = rome.edit(lm, [one], rome.prepare(lm))
    assert [c.kind for c in conflicts([one], [two], lm, patch)] == ["other words"]
    nonsense = Edit(two.prompt, two.subject, "zzz " * 60)  # told before a prompt, too long to read
    assert [c.kind for c in conflicts([one], [nonsense], lm, patch)] == ["other words"]
    assert conflicts([one], [nonsense], lm) == []


def test_an_inverse_in_whatever_words() -> None:
    """Where the model says that one relation leads back from the other's answers."""
    from errata.world.facts import INVERSES, RELATIONS
    from errata.world.facts import world as world_of

    lm, facts = world(), world_of().facts
    name = next(name for name in INVERSES if name in facts)
    (one, old), (two, other) = list(facts[name].items())[:2]
    there, back = RELATIONS[name].first[0], INVERSES[name][1].first[0]
    found = conflicts([Edit(there, one, other)], [Edit(back, other, two)], lm)
    assert [conflict.kind for conflict in found] == ["inverse"]
    assert conflicts([Edit(there, one, other)], [Edit(back, other, one)], lm) == []
    born = Edit("{} was born in", world_of().names["person"][0], one)
    assert old and conflicts([born], [Edit(there, one, other)], lm) == []
