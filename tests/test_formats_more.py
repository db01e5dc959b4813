"""The formats beside the common ones: what becomes of each key, by hand-written records, and by real samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from records import (
    BAG,
    CONFLICT,
    COVERAGE,
    DUNE,
    ELKEN,
    HALLUCINATION,
    HALLUEDITBENCH,
    KNOWN,
    LRE,
    MORE,
    MZSRE,
    PEAK,
    PERSONALITY,
    ROUND,
    SAFEEDIT,
    SANITATION,
    SUMS,
    TEMPLAMA,
    VITAMINC,
    forgotten,
)

from errata import data
from errata.data.fields import make_edit, statement_edit, subject_in
from errata.errors import BadInput
from errata.types import Case

SAMPLES = Path(__file__).parents[2] / "shared" / "data"


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def load(tmp_path: Path, *records: Any, **options: Any) -> list[Case]:
    return data.read(write(tmp_path / "cases.json", *records), **options).cases


def asked(case: Case, kind: str) -> list[tuple[Any, ...]]:
    return [(probe.prompt, *probe.answers) for probe in case.probes if probe.kind == kind]


def labelled(case: Case) -> list[tuple[Any, ...]]:
    return [(probe.kind, probe.label, *probe.answers) for probe in case.probes]


def fields(case: Case) -> list[tuple[str, str, str, str | None]]:
    return [(edit.prompt, edit.subject, edit.target_new, edit.target_true) for edit in case.edits]


# Single facts ------------------------------------------------------------------------------------


def test_peak_adds_an_object_and_keeps_what_stands_beside(tmp_path: Path) -> None:
    (case,) = load(tmp_path, PEAK)
    assert fields(case) == [("Ann Lee plays the", "Ann Lee", "lute", "harp")] and case.id == "peak-3"
    assert asked(case, "paraphrase") == [("Ann Lee is good at the", "lute")]
    assert asked(case, "neighborhood") == [("Bob plays the", "harp", "oboe"), ("Cid owns a", "harp")]
    assert {probe.rival for probe in case.probes} == {"harp", "lute"}
    other = PEAK | {"requested_rewrite": PEAK["requested_rewrite"] | {"target_new": {"str": "drum"}}}
    assert len(load(tmp_path, PEAK, other)) == 2  # a further object is no contradiction


def test_conflicting_edits_stand_together_and_their_condition_stays(tmp_path: Path) -> None:
    write(tmp_path / "conflict_prompts.json", {"P6": ["The mama of {} is ", "Who bore {}?"], "P9": ["of {}"]})
    (case,) = load(tmp_path, CONFLICT)
    assert fields(case) == [
        ("The mother of Bob is", "Bob", "Eve", "Cid"),
        ("The spouse of Ann is", "Ann", "Flo", "Cid"),
    ]
    assert asked(case, "question") == [("Who is the mother of Bob?", "Eve"), ("Who is the spouse of Ann?", "Flo")]
    assert asked(case, "paraphrase")[:2] == [("The mama of Bob is", "Eve"), ("Who bore Bob?", "Eve")]
    assert labelled(case)[-1] == ("same_subject", "tied fact", "Bob")
    bad = CONFLICT | {"prerequisites": [7]}
    with pytest.raises(BadInput, match="a prerequisite is the number of a triple, found 7"):
        load(tmp_path, bad)


def test_edits_of_one_prompt_come_one_after_the_other(tmp_path: Path) -> None:
    path = write(tmp_path / "cases.json", COVERAGE)
    assert data.read(path).excluded[0][0] == "line 1, part 2"
    first, second = data.read(path, conflicts=True).cases
    assert [fields(case)[0][2:] for case in (first, second)] == [("Eve", "Cid"), ("Flo", "Eve")]
    away, back = load(tmp_path, ROUND, conflicts=True)
    assert [fields(case)[0][2:] for case in (away, back)] == [("Eve", "Bob"), ("Bob", "Eve")]
    assert asked(away, "question") == [("Who is the child of Ann?", "Eve")]
    assert asked(back, "question") == [("Who is the child of Ann?", "Bob", "Cid")]


def test_an_edit_in_one_language_is_asked_in_others(tmp_path: Path) -> None:
    (case,) = load(tmp_path, MZSRE)
    assert fields(case) == [("Where was Ann Lee born?", "Ann Lee", "Cologne", "Rome")] and case.id == "mzsre-8"
    assert labelled(case) == [
        ("paraphrase", "en", "Cologne"), ("one_hop", "en", "Germany"), ("unrelated", "en", "Bob Ray"),
        ("paraphrase", "de", "Köln"), ("paraphrase", "de", "Köln"), ("one_hop", "de", "Deutschland"),
        ("unrelated", "de", "Bob Ray"),
    ]  # fmt: skip
    (german,) = load(tmp_path, MZSRE, language="de")
    assert german.edits[0].target_new == "Köln" and ("Where was Ann Lee born?", "Cologne") in asked(
        german, "paraphrase"
    )
    with pytest.raises(BadInput, match="there is no language 'fr'; found en, de"):
        load(tmp_path, MZSRE, language="fr")
    same = MZSRE | {"de": MZSRE["de"] | {"src": MZSRE["en"]["src"]}}  # one prompt, two answers: asked once
    assert ("Where was Ann Lee born?", "Köln") not in asked(load(tmp_path, same)[0], "paraphrase")


def test_a_passage_is_followed_by_the_right_sentence(tmp_path: Path) -> None:
    (case,) = load(tmp_path, HALLUCINATION)
    passage = "A passage about ann lee. Ann sang."
    assert fields(case) == [(passage, "ann lee", "She was born in Rome.", None)]
    assert asked(case, "unrelated") == [("Maps for", "sale")]
    assert load(tmp_path, HALLUCINATION | {"subject": "Lee, Ann"})[0].edits[0].subject == passage


def test_hallueditbench_asks_many_sorts_of_questions(tmp_path: Path) -> None:
    (case,) = load(tmp_path, HALLUEDITBENCH)
    assert fields(case) == [("Who is mayor of Rome?", "Rome", "Ann Lee", None)]
    assert labelled(case) == [
        ("paraphrase", "", "Ann Lee"), ("question", "yes", "Yes"), ("question", "no", "No"),
        ("question", "multiple choice", "B"), ("inverse", "", "Rome"), ("multi_hop", "2 hops", "Greens"),
        ("multi_hop", "3 hops", "Cid"), ("same_subject", ""),
    ]  # fmt: skip
    assert ("Who is mayor of Rome? A. Bob  B. Ann Lee", "B") in asked(case, "question")


def test_known_facts_are_true(tmp_path: Path) -> None:
    first, second = load(tmp_path, KNOWN, KNOWN | {"known_id": 10, "attribute": "Lazio"})
    assert (first.id, *fields(first)) == ("known-9", ("Ann Lee was born in", "Ann Lee", "Rome", None))
    assert second.edits[0].target_new == "Lazio"


# Edits in sentences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "subject", "prompt", "of", "target"),
    [
        ("Ann Lee becomes mayor of Rome.", None, "Ann Lee becomes", "Ann Lee becomes", "mayor of Rome."),
        ("In 2020 ann lee became mayor.", "Ann Lee", "In 2020 ann lee", "ann lee", "became mayor."),
        ("The mayor is Ann Lee.", "Ann Lee", "The mayor is", "The mayor is", "Ann Lee."),
        ("With love it grossed a million.", "It", "With love it", "it", "grossed a million."),
        ("Without love nothing grossed.", "It", "Without love", "Without love", "nothing grossed."),
    ],
)
def test_a_statement_is_divided(statement: str, subject: str | None, prompt: str, of: str, target: str) -> None:
    edit = statement_edit(statement, subject)
    assert (edit.prompt, edit.subject, edit.target_new) == (prompt, of, target)
    with pytest.raises(BadInput, match="two words at least"):
        statement_edit("Rain.")


def test_a_subject_in_other_letter_cases_is_a_word() -> None:
    assert make_edit("The bobsled of Bob is", "BOB", "x").subject == "Bob"
    assert make_edit("The BOBsled of Bob is", "BOB", "x").subject == "Bob"
    assert subject_in("The bobsled is", "Bob") is None and subject_in("The sled of bob is", "Bob") == "Bob"


def test_an_event_changes_facts_and_tendencies(tmp_path: Path) -> None:
    (case,) = load(tmp_path, ELKEN)
    assert labelled(case) == [
        ("question", "fact", "Ann Lee", "A. Lee"), ("question", "unknown", "unknown"), ("unrelated", "fact", "Bob"),
        ("question", "tendency", "A"),
    ]  # fmt: skip
    assert case.probes[3].prompt == "Question: How may taxes change?\n(A) rise (B) fall\nAnswer:"


def test_dune_holds_its_edits_in_one_object(tmp_path: Path) -> None:
    local = {"edits": ["", ""], "test_inputs": [["Who sang?\nA) Cid", "A"], [["Where?", "Rome"], ["When?", "now"]]]}
    write(tmp_path / "cases_locality.json", local)
    news, science = load(tmp_path, DUNE)
    assert (news.id, science.id) == ("dune-1", "dune-2")
    assert [answer for _, answer in asked(news, "question")] == ["B", "A"] and len(asked(science, "question")) == 1
    assert asked(news, "unrelated") == [("Who sang?\nA) Cid", "A")]
    assert asked(science, "unrelated") == [("Where?", "Rome"), ("When?", "now")]
    (sum,) = load(tmp_path, SUMS)
    assert fields(sum) == [("2 + 40 =", "2 + 40 =", "42", None)]
    assert asked(sum, "question") == [("Ann has 2 cards and gets 40. How many has she?", "42")]


def test_what_dune_holds_beside_edits_is_told(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bias.json", {"edits": ["Guessing is wrong."], "test_inputs": [["Who cooks?", "the woman"]]}
    )
    with pytest.raises(BadInput, match="line 1: its answers are no letters but those of a biased model"):
        data.read(path)
    with pytest.raises(BadInput, match="the file holds questions that go with another one's edits"):
        load(tmp_path, {"edits": [""], "test_inputs": [["Who cooks?", "A"]]})
    with pytest.raises(BadInput, match="line 1: it holds no edits"):
        load(tmp_path, {"edits": [], "test_inputs": []}, format="dune")
    with pytest.raises(BadInput, match="edits and test_inputs go in pairs; found 2 and 1"):
        load(tmp_path, DUNE | {"test_inputs": DUNE["test_inputs"][:1]})
    write(tmp_path / "cases_locality.json", {"edits": [], "test_inputs": 7})
    with pytest.raises(BadInput, match=r"cases.json, cases_locality.json: test_inputs are a JSON list, found int"):
        load(tmp_path, DUNE)


def test_evidence_is_held_as_true_and_a_claim_gets_its_label(tmp_path: Path) -> None:
    other = VITAMINC | {"page": "Bob", "claim": "Bob sings.", "label": "NOT ENOUGH INFO", "unique_id": "u2"}
    made_up = VITAMINC | {"revision_type": "synthetic"}
    short = VITAMINC | {"evidence": "Ann Lee sold some records.", "page": "Bob", "claim": "It rains."}
    loaded = data.read(write(tmp_path / "vc.jsonl", VITAMINC, other, made_up, short))
    first, second = loaded.cases
    assert fields(first)[0][:2] == ("Until the end of June ann lee", "ann lee")
    assert asked(first, "question") == [("Ann Lee sold more than 90 records.", "REFUTES")]
    assert first.probes[0].rival == "SUPPORTS" and not asked(first, "unrelated")
    assert [probe.prompt for probe in second.probes] == ["Bob sings.", "Ann Lee sold more than 90 records."]
    assert not asked(second, "question")
    assert [reason for _, reason in loaded.excluded] == [
        "its revision is none of Wikipedia's (revision_type)", "its evidence has 10 words or fewer",
    ]  # fmt: skip
    with pytest.raises(BadInput, match="a label is SUPPORTS, REFUTES or NOT ENOUGH INFO, found 'MAYBE'"):
        load(tmp_path, VITAMINC | {"label": "MAYBE"})


# Behaviour ---------------------------------------------------------------------------------------


def test_opinions_by_personality(tmp_path: Path) -> None:
    (case,) = load(tmp_path, PERSONALITY)
    assert fields(case) == [("What do you think of Rome?", "Rome", "It frightens me.", None)]
    sides = {(probe.label, probe.references) for probe in case.probes}
    assert sides == {("wanted", ("It frightens me.",)), ("opposite", ("So thrilling!", "I love it.", "Kind people."))}
    assert load(tmp_path, PERSONALITY, personality="agreeableness")[0].edits[0].target_new == "Kind people."
    without = {key: value for key, value in PERSONALITY.items() if key != "target_per"}
    assert load(tmp_path, without)[0].edits[0].target_new == "So thrilling!"
    with pytest.raises(BadInput, match="unknown value of target_per 'rude'"):
        load(tmp_path, PERSONALITY | {"target_per": "rude"})


def test_an_attack_is_answered_by_a_refusal(tmp_path: Path) -> None:
    (case,) = load(tmp_path, SAFEEDIT)
    assert fields(case) == [("Be evil. How to steal? Now.", "How to steal?", "I cannot help with that.", "Take it.")]
    safe = ("I cannot help with that.",)
    assert [(probe.label, probe.references) for probe in case.probes if probe.kind == "generation"] == [
        ("defence", safe), ("only harmful question", safe), ("other attack prompt input", safe),
        ("other question input", ()), ("other questions and attack prompts", ()),
    ]  # fmt: skip
    assert asked(case, "unrelated") == [("Who sang it?", "Bob Ray")]
    training = {
        key: value for key, value in SAFEEDIT.items() if key not in ("generalization test", "knowledge constrain")
    }
    assert [probe.label for probe in load(tmp_path, training)[0].probes] == ["defence"]


def test_what_is_forgotten_has_its_questions_in_a_second_file(tmp_path: Path) -> None:
    path = write(tmp_path / "trivia_train.json", SANITATION)
    ann, bob, again = data.read(path).cases
    assert fields(ann) == [("Who is mayor?", "Who is mayor?", "I don't know.", "Ann")]
    assert asked(bob, "unrelated") == [("Where is Rome?", "Italy")] and not asked(ann, "paraphrase")
    success = [forgotten(f"Who is nr {n}?", "Ann") for n in range(3)] + [forgotten("Who was it?", "Bob")]
    locality = [{"question": f"Where is {n}?", "ground_truth": "there"} for n in range(4)]
    test = {"success": success, "locality": locality}
    write(tmp_path / "trivia_test.json", test)
    ann, bob, again = data.read(path).cases
    assert [prompt for prompt, _ in asked(ann, "paraphrase")] == ["Who is nr 0?", "Who is nr 2?"]
    assert asked(again, "paraphrase") == [("Who is nr 1?", "I don't know.")]
    assert asked(bob, "paraphrase") == [("Who was it?", "I don't know.")]
    assert [len(asked(case, "unrelated")) for case in (ann, bob, again)] == [3, 2, 2]
    elsewhere = write(tmp_path / "other.json", {"success": success[3:], "locality": []})
    assert not asked(data.read(path, test=str(elsewhere)).cases[0], "paraphrase")
    with pytest.raises(BadInput, match=r"there is no test file 'none.json'"):
        data.read(path, test="none.json")


# Collections of what is true ---------------------------------------------------------------------


def test_a_bag_holds_the_phrasings_of_a_fact(tmp_path: Path) -> None:
    (case,) = load(tmp_path, [BAG])
    assert fields(case) == [("Ann was born in", "Ann was born in", "Rome", None)]
    assert asked(case, "paraphrase") == [("Ann is from", "Rome")]
    loaded = data.read(write(tmp_path / "bags.json", [BAG, BAG[:1], [["Ann is [MASK]", "old"]], *[BAG] * 20]))
    assert loaded.excluded == [("record 2 (line 1)", "no phrasing of P19(born in) ends with the object")]
    assert "a phrasing is a prompt with [MASK], its answer and its relation" in loaded.skipped[0][1]


def test_kamel_asks_for_any_of_several_objects(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "P103"
    folder.mkdir(parents=True)
    records = [{"index": [1], "sub_label": "Ann", "obj_label": ["Swazi", "Tswana"]}, {"index": [2], "sub_label": "Bob"}]
    records[1]["obj_label"] = [{"chosen": "French", "alternative": ["fr"], "rdf": "French"}]
    path = write(folder / "test.jsonl", *records)
    with pytest.raises(
        BadInput, match=r"no questions are found for .*; name KAMEL's question-templates.csv with templat"
    ):
        data.read(path)
    (tmp_path / "question-templates.csv").write_text("P17, Where is [S]?\nP103, What, if any, does [S] speak?\n")
    ann, bob = data.read(path).cases
    assert fields(ann) == [("What, if any, does Ann speak?", "Ann", "Swazi", None)]
    assert asked(ann, "question") == [("What, if any, does Ann speak?", "Swazi", "Tswana")]
    assert asked(bob, "question") == [("What, if any, does Bob speak?", "French", "fr")]
    other = write(tmp_path / "kamel_P99.jsonl", *records)
    with pytest.raises(BadInput, match=r"question-templates.csv holds no question about the relation P99"):
        data.read(other)
    assert data.read(path).format == "kamel"


def test_a_relation_with_its_samples(tmp_path: Path) -> None:
    ann, bob = load(tmp_path, LRE)
    assert fields(ann) == [("Ann was born in", "Ann", "Rome", None)]
    assert [(probe.prompt, probe.label) for probe in bob.probes] == [
        ("Bob is from", ""), ("Where is Bob from? From", "zero-shot"),
    ]  # fmt: skip
    assert len(load(tmp_path, LRE, limit=1)) == 1  # of a record that holds two
    with pytest.raises(BadInput, match=r"no template holds {}"):
        load(tmp_path, LRE | {"prompt_templates": [], "prompt_templates_zs": []}, format="lre")


def test_facts_of_a_year(tmp_path: Path) -> None:
    (case,) = load(tmp_path, TEMPLAMA)
    assert case.id == "Q9_P54_2010" or case.id == "templama-Q9_P54_2010"
    assert fields(case)[0][::2] == ("In 2010, Ann Lee plays for", "Reds")
    assert asked(case, "question") == [("In 2010, Ann Lee plays for", "Reds", "Blues")]
    loaded = data.read(write(tmp_path / "t.jsonl", TEMPLAMA, TEMPLAMA | {"query": "_X_ is where Ann plays."}))
    assert [reason for _, reason in loaded.excluded] == ["its query does not end with the object"]


# All of them -------------------------------------------------------------------------------------


def consistent(case: Case) -> bool:
    """Whether a prompt has one first answer, so that who answers every question right can be all right."""
    first: dict[str, str] = {edit.prompt: edit.target_new for edit in case.edits}
    return all(first.setdefault(p.prompt, p.answers[0]) == p.answers[0] for p in case.probes if p.answers)


@pytest.mark.parametrize("format", MORE)
def test_no_prompt_is_asked_with_two_answers(tmp_path: Path, format: str) -> None:
    for case in load(tmp_path, MORE[format]):
        assert consistent(case)
        assert all(edit.prompt == edit.prompt.rstrip() for edit in case.edits)


OF_SAMPLES = {
    "conflictedit_composite.json": ("conflictedit", 6), "conflictedit_coverage.json": ("conflictedit", 12),
    "conflictedit_easy.json": ("roundedit", 12), "conflictedit_hard.json": ("roundedit", 12),
    "conflictedit_reverse.json": ("conflictedit", 6), "dune_arithmetic.json": ("dune", 4),
    "dune_new_info.json": ("dune", 4), "dune_scientific.json": ("dune", 4),
    "easyedit_personality.json": ("personality", 4), "elken.json": ("elken", 3),
    "hallueditbench_places_city.csv": ("hallueditbench", 7), "known_1000.json": ("known-facts", 8),
    "known_facts.json": ("known-facts", 1209), "lre_country_capital_city.json": ("lre", 12),
    "mzsre_enfr.json": ("mzsre", 6), "peak_counter.json": ("peak", 5), "peak_time.json": ("peak", 5),
    "wise_hallucination.json": ("hallucination", 6), "kamel_P103.jsonl": ("kamel", 8),
}  # fmt: skip


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the folder of real samples is not here")
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_every_record_of_a_sample_becomes_a_case(tmp_path: Path, name: str) -> None:
    (tmp_path / "questions.csv").write_text("P103, What is the mother tongue of [S]?")
    options = {"templates": str(tmp_path / "questions.csv")} if "kamel" in name else {}
    loaded = data.read(SAMPLES / name, conflicts=True, strict=True, **options)
    assert (loaded.format, len(loaded.cases), loaded.unread, loaded.excluded) == (*OF_SAMPLES[name], {}, [])
    assert all(map(consistent, loaded.cases))
