"""The world is exact, and what its cases ask can be looked up in it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from errata import data
from errata.errors import BadInput, UnknownName
from errata.types import Case, Probe
from errata.world.cases import cases
from errata.world.facts import INVERSES, RELATIONS, TWO_HOPS, World
from errata.world.facts import world as make_world
from errata.world.named import world_named
from errata.world.text import ask

WORLD = make_world()
SPLITS = ("train", "validation", "test")
SEEDS = (0, 1, 2)
Facts = Mapping[str, Mapping[str, str]]


def fact_of_prompts(world: World) -> dict[str, tuple[str, str]]:
    """prompt -> relation and subject of the fact that it asks for."""
    fact_of: dict[str, tuple[str, str]] = {}
    facts = [(relation, subject) for r, relation in RELATIONS.items() for subject in world.facts[r]]
    derived = [*(relation for _, relation in INVERSES.values()), *TWO_HOPS.values()]
    facts += [(relation, subject) for relation in derived for subject in world.names[relation.subject]]
    for relation, subject in facts:
        for phrasing in relation.phrasings:
            for name in {subject, world.aliases.get(subject, subject)}:
                fact_of[ask(phrasing, name)] = relation.name, subject
    return fact_of


FACT_OF = fact_of_prompts(WORLD)


def after(world: World, *edited: Case) -> dict[str, dict[str, str]]:
    """Every fact with these cases' edits made, and what follows from the facts."""
    facts = {relation: dict(objects) for relation, objects in world.facts.items()}
    for case in edited:
        for edit in case.edits:
            relation, subject = FACT_OF[edit.prompt]
            assert facts[relation][subject] == edit.target_true, "no fact is edited twice"
            facts[relation][subject] = edit.target_new
    derived = {name: {o: s for s, o in facts[of].items()} for of, (name, _) in INVERSES.items()}
    for (one, two), relation in TWO_HOPS.items():
        derived[relation.name] = {s: facts[two][middle] for s, middle in facts[one].items()}
    return facts | derived


def right(probe: Probe, facts: Facts) -> bool:
    relation, subject = FACT_OF[probe.prompt]
    return (facts[relation][subject],) == probe.answers


# The world -----------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_world() -> None:
    again = make_world.__wrapped__()
    assert again == WORLD and again.derived == WORLD.derived
    assert make_world(60, 1) != make_world(60, 2)


@pytest.mark.parametrize("world", [WORLD, make_world(60, seed=3)], ids=["bundled", "small"])
def test_every_subject_has_one_object_of_the_right_type(world: World) -> None:
    for name, relation in RELATIONS.items():
        assert set(world.facts[name]) == set(world.names[relation.subject])
        assert set(world.facts[name].values()) <= set(world.names[relation.object])
    for relation in INVERSES:
        assert len(set(world.facts[relation].values())) == len(world.facts[relation])
    names = [name for group in world.names.values() for name in group] + list(world.aliases.values())
    assert not any("," in name or "." in name for name in names)


def test_facts_that_follow_agree_with_the_facts() -> None:
    assert WORLD.derived == {name: after(WORLD)[name] for name in WORLD.derived}


def test_splits_share_no_subject() -> None:
    subjects = [WORLD.subjects(split) for split in SPLITS]
    assert sum(map(len, subjects)) == len(set().union(*subjects)) == len(WORLD.split)
    assert [sum(s in WORLD.names["person"] for s in split) for split in subjects] == [200, 50, 350]


def test_a_world_is_named_by_the_folder_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_named("world") is WORLD and world_named(tmp_path) is None
    (tmp_path / "recipe.json").write_text('{"persons": 60, "world_seed": 3}')
    assert world_named(tmp_path) == make_world(60, 3)
    monkeypatch.chdir(tmp_path)
    assert world_named("") is None
    for broken in ("{", "[]", '{"persons": "many", "world_seed": 0}', '{"persons": 60}'):
        (tmp_path / "recipe.json").write_text(broken)
        with pytest.raises(BadInput, match="no recipe of a world"):
            data.cases(tmp_path)


def test_cases_of_a_split() -> None:
    subjects = {split: {case.edits[0].subject for case in data.cases("world", 20, split=split)} for split in SPLITS}
    assert all(subjects[split] <= set(WORLD.subjects(split)) for split in SPLITS)
    assert data.cases("world", 20) == data.cases("world", 20, split="test")
    with pytest.raises(UnknownName, match="split"):
        data.cases("world", split="tests")


# Its cases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limit", [40, 300, None])
def test_every_answer_holds_after_its_own_edit_and_after_all(limit: int | None, seed: int) -> None:
    drawn = cases(WORLD, limit, seed)
    after_all = after(WORLD, *drawn)
    for case in drawn[:60]:
        alone = after(WORLD, case)
        assert all(right(probe, alone) for probe in case.probes)
    for case in drawn:
        assert all(right(probe, after_all) for probe in case.probes)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_probes_of_a_case(seed: int) -> None:
    drawn = cases(WORLD, 300, seed)
    edited = {FACT_OF[case.edits[0].prompt] for case in drawn}
    touched = {edit.subject for case in drawn for edit in case.edits}
    for case in drawn:
        (edit,) = case.edits
        relation, subject = FACT_OF[edit.prompt]
        assert edit.prompt.startswith(edit.subject) and edit.subject == subject
        assert edit.target_true == WORLD.facts[relation][subject] != edit.target_new
        assert edit.target_new in WORLD.names[RELATIONS[relation].object]
        assert len({probe.prompt for probe in case.probes} | {edit.prompt}) == len(case.probes) + 1
        for probe in case.probes:
            about = FACT_OF[probe.prompt]
            if probe.kind in ("paraphrase", "question", "alias"):
                assert about == (relation, subject) and probe.answers == (edit.target_new,)
                assert probe.prompt.startswith(subject) is (probe.kind == "paraphrase")
            if probe.kind == "neighborhood":
                assert about[0] == relation and about[1] not in touched
                assert (probe.answers, probe.rival) == ((edit.target_true,), edit.target_new)
            if probe.kind == "same_subject":
                assert about[1] == subject and about[0] != relation and about not in edited
            if probe.kind == "unrelated":
                assert about[0] != relation and about[1] not in touched


def test_every_kind_is_asked() -> None:
    kinds = {probe.kind for case in cases(WORLD, 300) for probe in case.probes}
    follow = {"paraphrase", "question", "alias", "inverse", "multi_hop"}
    assert kinds == follow | {"neighborhood", "same_subject", "unrelated"}


@pytest.mark.parametrize("split", SPLITS)
def test_subjects_are_distinct_while_they_last(split: str) -> None:
    subjects = WORLD.subjects(split)
    drawn = [case.edits[0].subject for case in cases(WORLD, split=split)]
    assert sorted(drawn[: len(subjects)]) == sorted(subjects)
    assert len(drawn) == sum(len(WORLD.about(subject)) for subject in subjects)


def test_inverses_stay_well_defined() -> None:
    edits = [(FACT_OF[case.edits[0].prompt][0], case.edits[0].target_new) for case in cases(WORLD)]
    for relation in INVERSES:
        new = [target for name, target in edits if name == relation]
        assert new and len(set(new)) == len(new) and not set(new) & set(WORLD.facts[relation].values())


def test_a_draw_is_determined_by_its_seed() -> None:
    assert cases(WORLD, 50, 1) == cases(WORLD, 50, 1)
    assert cases(WORLD, 50, 1) != cases(WORLD, 50, 2)
    assert [case.edits for case in cases(WORLD, 50)] == [case.edits for case in cases(WORLD, 300)[:50]]
    assert [case.id for case in cases(WORLD, 50)] == [case.id for case in cases(WORLD, 300)[:50]]


@pytest.mark.parametrize("limit", [0, -1, 5000])
def test_asking_for_more_than_there_are_says_how_many(limit: int) -> None:
    with pytest.raises(BadInput, match=str(len(cases(WORLD)))):
        cases(WORLD, limit)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(UnknownName, match="did you mean test"):
        cases(WORLD, split="tests")


# Files of cases ------------------------------------------------------------------------------------


def write(path: Path, drawn: list[Case]) -> Path:
    path.write_text("".join(json.dumps(asdict(case)) + "\n\n" for case in drawn))
    return path


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    drawn = data.cases("world", 5)
    drawn.append(Case("linked", drawn[0].edits, (Probe("one_hop", "x", ("y",), require=(drawn[0].probes[0],)),)))
    path = write(tmp_path / "cases.jsonl", drawn)
    assert data.cases(path) == data.cases(str(path), format="errata") == drawn
    assert data.cases(path, limit=2) == drawn[:2]
    assert data.cases(path, seed=1) != drawn and len(data.cases(path, seed=1)) == 6
    with pytest.raises(BadInput, match="holds 6"):
        data.cases(path, limit=7)


def test_a_json_list_is_read_too(tmp_path: Path) -> None:
    drawn = data.cases("world", 2)
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([asdict(case) for case in drawn], indent=1))
    assert data.cases(path) == drawn


START = '{"id": "x", "edits": [{"prompt": "{} is", "subject": "A", "target_new": "b"}], '


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": ', "not JSON"),
        ("7", "a record is a JSON object, found int"),
        ('{"foo": 1}', "a case needs id, edits; found only foo"),
        ('{"id": "x", "edits": []}', "case 'x' has no edit"),
        ('{"id": "x", "edits": [{"prompt": "A is", "subject": "B", "target_new": "c"}]}', "the subject 'B'"),
        (START + '"probe": []}', "a case has no probe"),
        (START + '"probes": [{"kind": "alias"}]}', "a probe needs prompt"),
        (START + '"probes": [{"kind": "odd", "prompt": "p"}]}', "unknown kind"),
        (START + '"probes": [{"kind": "alias", "prompt": "p", "answers": "q"}]}', "answers are a JSON list"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "cases.jsonl", data.cases("world", 1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput, match=f"line 3: .*{message}"):
        data.cases(path)


def test_unknown_data_and_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file 'wrld'"):
        data.cases("wrld")
    with pytest.raises(UnknownName, match="did you mean errata"):
        data.cases(write(tmp_path / "cases.jsonl", data.cases("world", 1)), format="erata")
