"""Data sets: a few records of each format, written by hand; real samples where the folder of them is there."""

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from records import MORE
from typer.testing import CliRunner

import errata
from errata import data
from errata.bench.specs import DataSpec
from errata.cli import app
from errata.data import formats, reader
from errata.data import records as files
from errata.data.fields import Record, choice, make_edit, text, texts
from errata.data.formats import FORMATS, Format, MakeCase
from errata.errors import BadInput, UnknownName
from errata.evaluation.groups import probe_groups
from errata.evaluation.protocols import PROTOCOLS
from errata.types import Case, Probe

SAMPLES = Path(__file__).parents[2] / "shared" / "data"
Json = dict[str, Any]


def rewrite(prompt: str, subject: str, new: str, true: str, relation: str = "P1", **more: Any) -> Json:
    targets = {"target_new": {"str": new, "id": "Q1"}, "target_true": {"str": true, "id": "Q2"}}
    return {"prompt": prompt, "relation_id": relation, "subject": subject, **targets, **more}


COUNTERFACT: Json = {
    "case_id": 7,
    "pararel_idx": 3,
    "requested_rewrite": rewrite("{} plays the", "Ann Lee", "harp", "oboe"),
    "paraphrase_prompts": ["Rain fell. Ann Lee is good at the", "Ann Lee's instrument is the"],
    "neighborhood_prompts": ["Bob plays the", "Cid plays the"],
    "attribute_prompts": ["Dora plays the"],
    "generation_prompts": ["Ann Lee is known for", "Ann Lee is known for", "Ann Lee likes"],
}
FLAT: Json = {
    "case_id": 1, "prompt": "Ann Lee plays the", "target_new": "harp", "subject": "Ann Lee", "ground_truth": "oboe",
    "rephrase_prompt": "Ann Lee's instrument is the", "locality_prompt": "Bob plays the",
    "locality_ground_truth": "oboe",
}  # fmt: skip
ZSRE: Json = {
    "subject": "Ann Lee", "src": "Where was Ann Lee born?", "pred": "Lima", "rephrase": "Ann Lee is from where?",
    "alt": "Oslo", "answers": ["Rome", "Roma"], "loc": "nq question: who sang it", "loc_ans": "Bob Ray",
    "cond": "Lima >> Oslo || Where was Ann Lee born?",
    "portability": {
        "Recalled Relation": "(Oslo, in, Norway)", "New Question": "In which country was Ann Lee born?",
        "New Answer": "Norway",
    },
}  # fmt: skip
KILT: Json = {
    "input": "Where was Ann Lee born?", "output": [{"answer": "Rome"}], "prediction": "Lima", "alternatives": ["Oslo"],
    "rephrases": ["a?", "b?"], "filtered_rephrases": ["Ann Lee is from where?"],
}  # fmt: skip
HOP: Json = {
    "question": "Who wrote Rain?",
    "cloze": "Rain was written by",
    "answer": "Ann Lee",
    "answer_alias": ["A. Lee"],
}
LAST: Json = {
    "question": "Where was Ann Lee born?",
    "cloze": "Ann Lee was born in",
    "answer": "Rome",
    "answer_alias": [],
}
MQUAKE: Json = {
    "case_id": 4,
    "requested_rewrite": [rewrite("{} was written by", "Rain", "Ann Lee", "Bob Ray", question="Who wrote Rain?")],
    "questions": ["Where was Rain's author born?", "The author of Rain is from where?", "Whence came who wrote Rain?"],
    "answer": "Oslo", "answer_alias": [], "new_answer": "Rome", "new_answer_alias": ["Roma", "Rome"],
    "single_hops": [HOP | {"answer": "Bob Ray", "answer_alias": []}, LAST | {"question": "Where was Bob Ray born?"}],
    "new_single_hops": [HOP, LAST], "orig": {"triples": []},
}  # fmt: skip


def query(prompt: str, *answers: list[str], target: str = "Q5") -> Json:
    named = [{"value": names[0], "aliases": names[1:]} for names in answers]
    return {"prompt": prompt, "answers": named, "query_type": "regular", "target_ids": [target], "phrase": None}


def ripple(*tests: tuple[list[Json], list[Json]], condition: str = "OR") -> list[Json]:
    return [
        {"test_queries": queries, "test_condition": condition, "condition_queries": conditions}
        for queries, conditions in tests
    ]


RIPPLE: Json = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the spouse of Ann Lee is Carol Chu.", "subject_id": "Q9", "relation": "SPOUSE",
        "target_id": "Q8",
        "original_fact": {"prompt": "The name of the spouse of Ann Lee is Carol Ray.", "relation": "SPOUSE"},
    },
    "Relation_Specificity": ripple(([query("The gender of Ann Lee is", ["female"])], [query("Ann?", ["yes"])])),
    "Forgetfulness": ripple(([query("The others are", ["Eve", "E."], ["Flo"])], []), condition="AND"),
    "Logical_Generalization": ripple(([query("The siblings are")], [query("Siblings?"), query("So?", ["x"])])),
    "Compositionality_I": [], "Compositionality_II": [], "Subject_Aliasing": [],
}  # fmt: skip
KNOWEDIT: Json = {
    "subject": "Ann Lee", "prompt": "The place of birth of Ann Lee is", "target_new": "Oslo", "ground_truth": ["Rome"],
    "rephrase": "Ann Lee was born in",
    "portability": {"Reasoning": [{"prompt": "Her country is", "ground_truth": [["Norway", "Norge"], ["The North"]]}],
                    "Subject_Aliasing": [{"prompt": "A. Lee was born in", "ground_truth": "Oslo"}],
                    "Logical_Generalization": [{"prompt": "Empty is", "ground_truth": []}]},
    "locality": {"Relation_Specificity": [{"prompt": "Her gender is", "ground_truth": ["female", "woman"]}],
                 "Forgetfulness": [{"prompt": "Other than Oslo", "ground_truth": [["Rome"]]}]},
}  # fmt: skip
TRIPLETS = [{"subject": "Ann Lee", "prompt": "The instrument of {} is the", "target": "harp"}] * 7
AKEW: Json = COUNTERFACT | {
    "requested_rewrite": COUNTERFACT["requested_rewrite"]
    | {"prompt_full": "What does Ann Lee play?", "fact_new_uns": "A long text.", "unsfact_triplets_GPT": TRIPLETS}
}
CSK: Json = {
    "id": 17, "prompt": "Worm bends rabbit", "label": " False", "predicted_label": "True",
    "subject": "Worm", "verb": "bends", "object": "rabbit", "neg": None,
    "affected_paraphrase": ["The worm warps the rabbit"], "affected_reasoning": ["Worms are weak"],
    "unaffected_neighborhood_subject": ["Cat bends rabbit"], "affected_neighborhood_object": ["Worm bends hare"],
}  # fmt: skip
SINGLE: dict[str, Any] = {  # a record of each format whose file needs no other
    "counterfact": COUNTERFACT,
    "flat": FLAT,
    "edits": {"prompt": "{} lives in", "subject": "Ann", "target_new": "Oslo", "target_true": "Rome", "id": "a"},
    "zsre": ZSRE,
    "zsre-malmen": {"src": "Who?", "rephrase": "Which?", "ans": "Ann", "loc": "nq question: when", "loc_ans": "now"},
    "fever-malmen": {
        "prompt": "Ann sang.", "equiv_prompt": ["It was Ann who sang."], "alt": "REFUTES", "unrel_prompt": "Bob ran.",
        "unrel_ans": "SUPPORTS",
    },
    "kilt": KILT,
    "mquake": MQUAKE,
    "rippleedits": RIPPLE,
    "knowedit": KNOWEDIT,
    "wikibio": {
        "text": "A passage about ann lee. She sang.", "concept": "Ann Lee", "labels": "She was born in Rome.",
        "locality": {"Relation_Specificity": [{"prompt": "ann lee job", "ground_truth": ["singer"]}]},
    },
    "qaedit": {
        "id": 5, "source": "NQ", "prompt": "who is ann lee?", "target": "a singer", "subject": "Ann Lee",
        "rephrase": "Ann Lee is who?", "locality": [{"loc": "who sang", "loc_ans": "Bob"}],
    },
    "wikibigedit": {
        "tag": "new", "subject": "Ann Lee", "update": "Where was Ann Lee born?", "rephrase": "Whence is Ann Lee?",
        "ans": "Oslo", "loc": "Where was Bob born?", "loc_ans": "Rome", "mhop": "Her country?", "mhop_ans": "Norway",
    },
    "unke": {
        "id": 2, "question": "Who is Ann Lee?", "para_question": "Ann Lee is who?", "answer": "A long text. Of two.",
        "sub_question": ["Her job?", "Her town?"], "sub_answer": ["singer", "Rome"],
    },
    "editeverything": {"id": 1, "question": "Who is Ann?", "answer": "A text.", "category": "people"},
    "akew": AKEW,
    "convsent": {"ent": "Rome", "pos": ["Lovely.", "I like it."], "neg": ["Too hot."]},
    "csk": {"case_id": 0, "requested_rewrite": rewrite("Worm bends rabbit:", "Worm", "False", "True", verb="bends")},
    "csk-probes": CSK,
    **MORE,
}  # fmt: skip


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def load(tmp_path: Path, *records: Any, **options: Any) -> list[Case]:
    return data.read(write(tmp_path / "cases.jsonl", *records), **options).cases


def questions(case: Case, kind: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(probe.prompt, probe.answers) for probe in case.probes if probe.kind == kind]


# Formats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", SINGLE)
def test_a_format_is_recognised_by_its_keys_and_every_key_is_known(tmp_path: Path, format: str) -> None:
    loaded = data.read(write(tmp_path / "one.jsonl", SINGLE[format]))
    assert (loaded.format, loaded.unread) == (format, {}) and loaded.cases and not loaded.skipped
    assert loaded.cases[0].edits[0].target_new


def test_counterfact(tmp_path: Path) -> None:
    (case,) = load(tmp_path, COUNTERFACT)
    (edit,) = case.edits
    assert (case.id, edit.prompt, edit.subject) == ("counterfact-7", "Ann Lee plays the", "Ann Lee")
    assert (edit.target_new, edit.target_true) == ("harp", "oboe")
    rivals = {(probe.kind, probe.answers, probe.rival) for probe in case.probes if probe.kind != "generation"}
    new, old = (("harp",), "oboe"), (("oboe",), "harp")
    assert rivals == {("paraphrase", *new), ("attribute", *new), ("neighborhood", *old)}
    assert [prompt for prompt, _ in questions(case, "generation")] == ["Ann Lee is known for", "Ann Lee likes"]


def test_counterfact_plus_puts_the_edited_statement_before_its_neighbours(tmp_path: Path) -> None:
    (case,) = load(tmp_path, COUNTERFACT, format="counterfact+")
    assert questions(case, "distractor") == [
        ("Ann Lee plays the harp. Bob plays the", ("oboe",)),
        ("Ann Lee plays the harp. Cid plays the", ("oboe",)),
    ]
    assert not questions(load(tmp_path, COUNTERFACT)[0], "distractor")


def test_attribute_snippets_beside_counterfact_become_references(tmp_path: Path) -> None:
    samples = [{"name": "Dora", "text": "Dora plays the harp."}, {"name": "Eve", "text": "Eve has a harp."}]
    snippets = [{"relation_id": "P1", "target_id": "Q1", "samples": samples}]
    (tmp_path / "attribute_snippets.json").write_text(json.dumps(snippets))
    (case,) = load(tmp_path, COUNTERFACT)
    references = {probe.references for probe in case.probes if probe.kind == "generation"}
    assert references == {("Dora plays the harp.", "Eve has a harp.")}


def test_the_flat_form_has_one_neighbour_with_its_own_answer(tmp_path: Path) -> None:
    (case,) = load(tmp_path, FLAT)
    assert [(p.kind, p.answers, p.rival) for p in case.probes] == [
        ("paraphrase", ("harp",), "oboe"),
        ("neighborhood", ("oboe",), "harp"),
    ]


def test_zsre_edits_to_the_alternative_or_to_the_truth(tmp_path: Path) -> None:
    (alt,) = load(tmp_path, ZSRE)
    assert (alt.edits[0].target_new, alt.edits[0].target_true) == ("Oslo", "Rome")
    assert questions(alt, "unrelated") == [("nq question: who sang it", ("Bob Ray",))]
    assert questions(alt, "one_hop") == [("In which country was Ann Lee born?", ("Norway",))]
    (true,) = load(tmp_path, ZSRE, target="answers")
    assert (true.edits[0].target_new, true.edits[0].target_true) == ("Rome", None)
    assert questions(true, "paraphrase") == [("Ann Lee is from where?", ("Rome", "Roma"))]
    assert questions(true, "unrelated") == [("nq question: who sang it?", ("Bob Ray",))]


def test_what_follows_from_alt_is_not_asked_after_an_edit_to_the_truth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    true = load(tmp_path, *many(2), ZSRE | {"alt": "Roma", "subject": "Ann"}, target="answers")
    assert [len(questions(case, "one_hop")) for case in true] == [0, 0, 1]  # "Roma" is true
    assert caplog.text.count("portability questions follow from alt") == 1
    caplog.clear()
    assert questions(load(tmp_path, ZSRE)[0], "one_hop") and not caplog.text


def test_space_around_a_target_costs_no_rival(tmp_path: Path) -> None:
    records = {"zsre": ZSRE | {"alt": " Oslo "}, "flat": FLAT | {"target_new": " harp"}}
    for format, record in records.items():
        (case,) = load(tmp_path, record, format=format)
        for name in ("rome", "belief"):
            groups = list(probe_groups(case, PROTOCOLS[name]))
            rivals = {group.kind: group.probes[0].rival for group in groups if group.kind in ("edit", "paraphrase")}
            assert set(rivals.values()) == {case.edits[0].target_true} and len(rivals) == 2


def test_zsre_without_an_alternative_is_excluded_and_not_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "zsre.jsonl", ZSRE, ZSRE | {"alt": ""})
    loaded = data.read(path)
    assert len(loaded.cases) == 1 and not loaded.skipped
    assert loaded.excluded == [("line 2", "alt is empty, so there is nothing to edit to")]
    assert len(data.read(path, target="answers", strict=True).cases) == 2


def test_without_a_subject_the_whole_prompt_stands_for_it(tmp_path: Path) -> None:
    for format in ("zsre-malmen", "kilt", "fever-malmen", "unke"):
        (edit,) = load(tmp_path, SINGLE[format])[0].edits
        assert edit.subject == edit.prompt


def test_kilt_lines(tmp_path: Path) -> None:
    (case,) = load(tmp_path, KILT)
    assert (case.edits[0].target_new, case.edits[0].target_true) == ("Oslo", "Rome")
    assert questions(case, "paraphrase") == [("Ann Lee is from where?", ("Oslo",))]
    bare = {
        "input": "Ann Lee [SEP] birthplace",
        "meta": {"template_questions": ["Where was Ann Lee born?", "Ann Lee?"]},
    }
    (named,) = load(tmp_path, KILT | bare | {"filtered_rephrases": [], "rephrases": []}, target="answers")
    assert (named.edits[0].subject, named.edits[0].target_new) == ("Ann Lee", "Rome")
    assert questions(named, "paraphrase") == [("Ann Lee?", ("Rome",))]


def test_mquake(tmp_path: Path) -> None:
    (case,) = load(tmp_path, MQUAKE)
    chain = [probe for probe in case.probes if probe.kind == "multi_hop"]
    assert {(p.group, p.rule, p.answers) for p in chain} == {("questions", "any", ("Rome", "Roma"))} and len(chain) == 3
    assert {p.label for p in chain} == {"2 hops"}
    four = load(tmp_path, MQUAKE | {"new_single_hops": [HOP, LAST] * 2})[0].probes
    assert {p.label for p in four if p.kind == "multi_hop"} == {"4 hops"}
    # an edited hop is asked as a cloze, another one as a question
    assert questions(case, "new_single_hop") == [
        ("Rain was written by", ("Ann Lee", "A. Lee")),
        ("Where was Ann Lee born?", ("Rome",)),
    ]
    assert {p.label for p in case.probes if p.kind == "single_hop"} == {"single_hops"}


def test_remastered_mquake_writes_its_targets_flat(tmp_path: Path) -> None:
    flat = {"prompt": "{} was written by", "subject": "Rain", "target_new_str": "Ann Lee", "target_true_str": "Bob Ray"}
    (case,) = load(tmp_path, MQUAKE | {"requested_rewrite": [flat], "split": {"1000": ["edited"]}})
    assert (case.edits[0].target_new, case.edits[0].target_true) == ("Ann Lee", "Bob Ray")


def test_rippleedits_reads_subject_and_target_from_its_prompts(tmp_path: Path) -> None:
    (case,) = load(tmp_path, RIPPLE)
    (edit,) = case.edits
    assert (edit.prompt, edit.subject) == ("The name of the spouse of Ann Lee is", "Ann Lee")
    assert (edit.target_new, edit.target_true) == ("Carol Chu", "Carol Ray")  # which begin alike
    first, second = (probe for probe in case.probes if probe.kind == "preservation")
    assert [(p.kind, p.label) for p in (first, second)] == [("preservation", "Forgetfulness")] * 2
    assert (first.answers, second.answers) == (("Eve", "E."), ("Flo",))
    assert first.group == second.group and first.rule == "all"


def test_rippleedits_conditions_must_all_hold_and_those_without_answers_cannot_be_asked(tmp_path: Path) -> None:
    (case,) = load(tmp_path, RIPPLE)
    logical = next(probe for probe in case.probes if probe.kind == "logical")
    assert logical.answers == () and [probe.prompt for probe in logical.require] == ["So?"]
    same = next(probe for probe in case.probes if probe.kind == "same_subject")
    assert same.require == (Probe("same_subject", "Ann?", ("yes",), label="Relation_Specificity"),)


@pytest.mark.parametrize(
    ("stated", "relation", "subject", "target"),
    [
        ("Big Mouth is followed by The Spoon.", "FOLLOWED_BY", "Big Mouth", "The Spoon"),
        ("The name of the award BTS won is A Prize.", "AWARD_RECEIVED", "BTS", "A Prize"),
        ("The names of the siblings of Ann are Bob.", "SIBLING", "Ann", "Bob"),
        ("The name of the country which Rain is associated with is Peru.", "COUNTRY", "Rain", "Peru"),
        ("The gender of Ann is female.", "SEX_OR_GENDER", "Ann", "female"),
    ],
)
def test_recent_ripples_have_no_earlier_fact(
    tmp_path: Path, stated: str, relation: str, subject: str, target: str
) -> None:
    recent = {"example_type": "recent", "edit": {"prompt": stated, "relation": relation, "target_id": "Q8"}}
    (case,) = load(tmp_path, RIPPLE | recent)
    edit = case.edits[0]
    assert (edit.subject, edit.target_new, edit.target_true) == (subject, target, None)


def test_knowedit(tmp_path: Path) -> None:
    (case,) = load(tmp_path, KNOWEDIT)
    assert case.edits[0].target_true == "Rome"
    assert {(p.kind, p.label): p.answers for p in case.probes} == {
        ("paraphrase", ""): ("Oslo",),
        ("one_hop", "Reasoning"): ("Norway", "Norge", "The North"),
        ("alias", "Subject_Aliasing"): ("Oslo",),
        ("same_subject", "Relation_Specificity"): ("female", "woman"),
        ("preservation", "Forgetfulness"): ("Rome",),
    }


def test_knowedits_questions_that_come_again_have_several_answers(tmp_path: Path) -> None:
    several = [{"prompt": "Her job is", "ground_truth": [[job, f"{job}s"]]} for job in ("singer", "writer")]
    (case,) = load(tmp_path, KNOWEDIT | {"portability": {"Reasoning": several}})
    assert questions(case, "one_hop") == [("Her job is", ("singer", "singers", "writer", "writers"))]


def test_a_subject_may_be_spelt_in_other_cases(tmp_path: Path) -> None:
    assert load(tmp_path, SINGLE["qaedit"])[0].edits[0].subject == "ann lee"
    assert load(tmp_path, SINGLE["wikibio"])[0].edits[0].subject == "ann lee"


def test_wikibigedit_has_two_forms(tmp_path: Path) -> None:
    (case,) = load(tmp_path, SINGLE["wikibigedit"])
    assert [probe.kind for probe in case.probes] == ["paraphrase", "multi_hop", "neighborhood"]
    (flat,) = load(tmp_path, {key: value for key, value in FLAT.items() if key not in ("case_id", "ground_truth")})
    assert flat.id == "flat-1" and flat.edits[0].target_true is None


def test_free_text_is_a_reference_and_an_answer(tmp_path: Path) -> None:
    (case,) = load(tmp_path, SINGLE["unke"])
    (reference,) = (p for p in case.probes if p.kind == "generation")
    text = ("A long text. Of two.",)
    assert (reference.prompt, reference.references, reference.label) == ("Who is Ann Lee?", text, "question")
    assert questions(case, "paraphrase") == [("Ann Lee is who?", text)]
    assert questions(case, "question") == [("Her job?", ("singer",)), ("Her town?", ("Rome",))]
    everything = {"id": 1, "question": "Who?", "answer": "A text.", "category": "math"}
    assert [p.label for p in load(tmp_path, everything)[0].probes] == ["question"]


def test_akew_is_read_as_paragraphs_or_as_facts(tmp_path: Path) -> None:
    (case,) = load(tmp_path, AKEW)
    assert case.edits[0].target_new == "A long text."
    assert questions(case, "question") == [("The instrument of Ann Lee is the", ("harp",))]
    assert load(tmp_path, AKEW, format="counterfact")[0].edits[0].target_new == "harp"
    several = MQUAKE | {"requested_rewrite": [MQUAKE["requested_rewrite"][0] | {"fact_new_uns": "Ann wrote Rain."}]}
    (chain,), (facts,) = load(tmp_path, several), load(tmp_path, MQUAKE)
    assert chain.edits[0].target_new == "Ann wrote Rain."
    kinds = ("multi_hop", "new_single_hop", "single_hop")
    assert [p for p in chain.probes if p.kind in kinds] == [p for p in facts.probes if p.kind in kinds]
    update = {
        "subject": "Ann",
        "prompt": "{} lives in",
        "question": "Where?",
        "answer_new": "Rome",
        "fact_new_uns": "Text.",
    }
    wiki = {"requested_rewrite": update, "loc": "Bob?", "loc_ans": "Lima"}
    assert questions(load(tmp_path, wiki)[0], "unrelated") == [("Bob?", ("Lima",))]


def test_sentiment_has_replies_of_both_sides(tmp_path: Path) -> None:
    other = {"ent": "Oslo", "pos": ["Fine."], "neg": ["Cold."]}
    rome, oslo = load(tmp_path, SINGLE["convsent"], other, sentiment="neg")
    assert (rome.edits[0].subject, rome.edits[0].target_new) == ("Rome", "Too hot.")
    sides = {(p.label, p.references) for p in rome.probes}
    assert sides == {("wanted", ("Too hot.",)), ("opposite", ("Lovely.", "I like it."))}
    assert questions(oslo, "unrelated") == [("What do you think of Rome?", ())]


def test_plausible_statements(tmp_path: Path) -> None:
    (case,) = load(tmp_path, CSK, token="object")
    (edit,) = case.edits
    assert (edit.prompt, edit.subject, edit.target_new, edit.target_true) == (
        "Worm bends rabbit:", "rabbit", "False", "True",
    )  # fmt: skip
    probes = {p.label: (p.kind, p.answers) for p in case.probes}
    assert probes == {
        "affected_paraphrase": ("paraphrase", ("False",)),
        "affected_neighborhood_object": ("logical", ("False",)),
        "affected_reasoning": ("logical", ("True",)),
        "unaffected_neighborhood_subject": ("neighborhood", ()),
    }
    assert load(tmp_path, {"prompt": "A horse rides cat", "label": 0})[0].edits[0].target_new == "False"
    assert load(tmp_path, SINGLE["csk"], token="verb")[0].edits[0].subject == "bends"


def test_facts_are_phrased_by_the_patterns_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "TREx"
    folder.mkdir()
    with pytest.raises(BadInput, match="templates=PATH"):
        data.read(write(folder / "P19.jsonl", {"sub_label": "Ann", "obj_label": "Rome", "predicate_id": "P19"}))
    fact = {"sub_label": "Ann", "obj_label": "Rome", "predicate_id": "P19", "uuid": "u", "evidences": []}
    forms = [("P19", "[X] was born in [Y] ."), ("P20", "[X] died in [Y] ."), ("P37", "[Y] is spoken in [X] .")]
    write(tmp_path / "relations.jsonl", *({"relation": r, "template": t} for r, t in forms))
    (case,) = load(folder, fact, templates=str(tmp_path / "relations.jsonl"))
    assert (case.edits[0].prompt, case.edits[0].target_new) == ("Ann was born in", "Rome")
    loaded = data.read(write(folder / "P37.jsonl", fact, fact | {"predicate_id": "P37"}))
    assert [position for position, _ in loaded.excluded] == ["line 2"]


def test_pararel_has_many_phrasings_of_a_fact(tmp_path: Path) -> None:
    (tmp_path / "trex").mkdir()
    (tmp_path / "pattern_data" / "graphs_json").mkdir(parents=True)
    patterns = [{"pattern": "[X] was born in [Y]."}, {"pattern": "[Y] bore [X]."}, {"pattern": "[X] is from [Y]."}]
    write(tmp_path / "pattern_data" / "graphs_json" / "P19.jsonl", *patterns)
    path = write(tmp_path / "trex" / "P19.jsonl", {"sub_label": "Ann", "obj_label": "Rome", "uuid": "u"})
    (case,) = data.read(path).cases
    assert case.edits[0].prompt == "Ann was born in" and questions(case, "paraphrase") == [("Ann is from", ("Rome",))]


def test_a_true_fact_of_several_objects_is_no_conflict(tmp_path: Path) -> None:
    patterns = ("[X] has ties with [Y].", "[X] knows [Y].")
    write(tmp_path / "patterns.jsonl", *({"pattern": pattern} for pattern in patterns))
    facts = [{"sub_label": "Peru", "obj_label": land} for land in ("Chad", "Oman", "Togo")]
    path = write(tmp_path / "P530.jsonl", *facts, {"sub_label": "Mali", "obj_label": "Chad"})
    loaded = data.read(path, templates=str(tmp_path / "patterns.jsonl"))
    assert [case.edits[0].target_new for case in loaded.cases] == ["Chad", "Oman", "Togo", "Chad"]
    assert not loaded.excluded
    accepted = [questions(case, "paraphrase") for case in loaded.cases]
    assert accepted[1] == [("Peru knows", ("Oman", "Chad", "Togo"))]
    assert accepted[3] == [("Mali knows", ("Chad",))]


# Formats of other packages ------------------------------------------------------------------------


def toy_reader(path: Path | None, *, side: str = "new") -> MakeCase:
    """Cases whose edit is to the answer of a ``side``."""
    key = choice("side", side, ("new", "old"))

    def case(record: Record, id: str) -> Case:
        edit = make_edit(text(record, "ask"), text(record, "about"), text(record, key))
        return Case(
            id, (edit,), tuple(Probe("paraphrase", again, (edit.target_new,)) for again in texts(record, "again"))
        )

    return case


TOY = Format("ask about new", toy_reader, "old again")
TOY_RECORD: Json = {
    "ask": "Ann Lee plays the",
    "about": "Ann Lee",
    "new": "harp",
    "old": "oboe",
    "again": "Ann Lee's is the",
}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The entry points of other packages, name -> value: of a module that works and one that does not import."""
    entries: dict[str, str] = {}
    module = ModuleType("toy_formats")
    module.__dict__.update(TOY=TOY, NUMBER=7)
    monkeypatch.setitem(sys.modules, "toy_formats", module)
    monkeypatch.setattr(formats, "entry_points", lambda group: [EntryPoint(n, v, group) for n, v in entries.items()])
    formats.installed.cache_clear()
    formats._load.cache_clear()
    yield entries
    formats.installed.cache_clear()
    formats._load.cache_clear()


def test_a_format_of_another_package_is_recognised_and_takes_options(tmp_path: Path, others: dict[str, str]) -> None:
    path = write(tmp_path / "toy.jsonl", TOY_RECORD | {"colour": "red"})
    with pytest.raises(BadInput, match="no format is known by the keys ask, about, new, old, again, colour"):
        data.read(path)
    formats.installed.cache_clear()
    others["toy"] = "toy_formats:TOY"
    loaded = data.read(path)
    assert (loaded.format, loaded.unread) == ("toy", {"colour": 1})
    assert (loaded.cases[0].id, loaded.cases[0].edits[0].target_new) == ("toy-1", "harp")
    assert questions(loaded.cases[0], "paraphrase") == [("Ann Lee's is the", ("harp",))]
    assert data.read(path, "toy", side="old").cases[0].edits[0].target_new == "oboe"
    with pytest.raises(UnknownName, match="unknown option of the format 'toy' 'sid'; did you mean side"):
        data.read(path, sid="old")
    with pytest.raises(UnknownName, match="did you mean toy"):
        data.read(path, "toyy")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:TOY", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("toy_formats:NONE", "AttributeError: .*NONE"),
        ("toy_formats:NUMBER", "is no errata.data.formats.Format, found int"),
    ],
)
def test_a_broken_format_of_another_package_is_skipped_and_logged(
    tmp_path: Path, others: dict[str, str], value: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    others |= {"broken": value, "toy": "toy_formats:TOY"}
    path = write(tmp_path / "toy.jsonl", {"no": 1}, TOY_RECORD, TOY_RECORD | {"new": 7}, *[TOY_RECORD] * 20)
    assert data.read(path).format == "toy"
    (logged,) = [record.getMessage() for record in caplog.records]
    assert re.search(f"the format 'broken' .{value}. .*{message}", logged)
    with pytest.raises(BadInput, match=f"the format 'broken' .{value}. .*{message}"):
        data.read(path, "broken")


def test_a_format_named_like_one_of_ours_is_ignored_and_logged(
    tmp_path: Path, others: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    others["zsre"] = "toy_formats:TOY"
    path = write(tmp_path / "zsre.jsonl", ZSRE)
    assert data.read(path).cases == data.read(path, "zsre").cases != []
    assert "the format 'zsre' of another package (toy_formats:TOY) is ignored" in caplog.text


# What cannot be used -----------------------------------------------------------------------------


def many(n: int) -> list[Json]:
    return [ZSRE | {"subject": f"Ann {i}", "src": f"Where was Ann {i} born?"} for i in range(n)]


def test_one_broken_record_is_skipped_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records: list[Any] = many(30)
    records[16] = records[16] | {"rephrase": 7}
    loaded = data.read(write(tmp_path / "zsre.jsonl", *records))
    assert (len(loaded.cases), loaded.records) == (29, 30)
    assert loaded.skipped == [("line 17", "rephrase is a text or a list of them, found int: 7")]
    assert errata.cases(tmp_path / "zsre.jsonl")[16].id == "zsre-18"
    assert "29 of 30 records are used; 1 skipped: line 17" in caplog.text
    with pytest.raises(BadInput, match="1 of 30 records cannot be used, none may be"):
        data.read(tmp_path / "zsre.jsonl", strict=True)
    with pytest.raises(BadInput, match=r"holds 29 .1 of its records are not used"):
        errata.cases(tmp_path / "zsre.jsonl", limit=30)


def test_more_than_a_tenth_is_an_error(tmp_path: Path) -> None:
    records: list[Any] = [*many(9), {"src": "x"}]
    assert len(load(tmp_path, *records)) == 9
    with pytest.raises(BadInput, match=r"2 of 11 records cannot be used.*line 10: .*line 11: "):
        load(tmp_path, *records, 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "is empty"),
        (json.dumps(ZSRE).encode("utf-16"), "UTF-16.*iconv"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b'{"subject": "\xe9"}', "not UTF-8"),
        (b'[{"a": 1}, {"b": "\xe9"}]', "not UTF-8"),
        (b'[{"a": 1} {"b": 2}]', r"record 2 .line 1.: a comma is missing"),
        (b'[{"a": 1},\n {"b": ', r"record 2 .line 2.: not JSON .line 2: Expecting value."),
        (b'[{"a": 1}', "cut off"),
        (b'[{"a": 1}]\n[{"a": 2}]', r"line 2: something stands behind the end of the list"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
        (b"7\n", "a record is a JSON object, found int"),
        (b'{"foo": 1}', "line 1: no format is known by the keys foo; known: akew, .*zsre"),
        (b'{\n"foo": 1\n}', "no format is known by the keys foo"),
        (b'{\n"foo": 1', "not JSON"),
    ],
)
def test_a_file_that_is_no_data_set_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "cases.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"(?s)cases.json.*({message})"):
        data.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src": None}, "src is missing"),
        ({"src": "Where?"}, "the subject 'Ann Lee' does not occur"),
        ({"src": " "}, "src is empty"),
        ({"subject": ["Ann Lee"]}, "subject is a text, found list"),
        ({"answers": {"a": 1}}, "answers is a text or a list of them, found dict"),
        ({"loc_ans": 3}, "loc_ans is a text or a list of them, found int"),
        ({"rephrase": "\ud800"}, "half a character"),
    ],
)
def test_an_unusable_record_is_named_with_the_reason(tmp_path: Path, change: Json, message: str) -> None:
    loaded = data.read(write(tmp_path / "zsre.jsonl", *many(20), ZSRE | change), format="zsre")
    ((position, reason),) = loaded.skipped
    assert position == "line 21" and message in reason


ODD: list[Any] = [None, 7, True, "", "x", "\ud800", [], ["x"], [7], [[]], [{}], {}, {"str": "x"}]


def changed(value: Any) -> Iterator[Any]:
    """The value with each of its parts, itself first, as something else."""
    yield from ODD
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for other in changed(part):
            copy = value.copy()
            copy[key] = other
            yield copy


@pytest.mark.parametrize("format", SINGLE)
def test_whatever_a_field_holds_the_record_is_used_or_named(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "TOLERATED", 1.0)
    record = SINGLE[format][0] if isinstance(SINGLE[format], list) else SINGLE[format]
    records = [record, *changed(record)]
    (tmp_path / "odd.json").write_text(json.dumps(records))
    loaded = data.read(tmp_path / "odd.json", format, conflicts=True)
    assert loaded.records >= len(records) and loaded.skipped  # one may hold several


def test_lines_are_read_with_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 1_000)
    path = write(tmp_path / "zsre.jsonl", *many(2))
    with path.open("ab") as file:
        file.truncate(file.tell() + 50_000)  # a line of zeros
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(ZSRE).encode())
    records = list(files.read_records(path, limit=2_000))
    assert [position for position, _ in records] == ["line 1", "line 2", "line 3", "line 4"]
    assert isinstance(records[2][1], BadInput) and "longer than 2,000 bytes" in str(records[2][1])
    assert records[3][1] == ZSRE
    (tmp_path / "list.json").write_text(json.dumps(["x" * 50_000]))
    with pytest.raises(BadInput, match="longer than 2,000"):
        list(files.read_records(tmp_path / "list.json", limit=2_000))


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_a_list_is_read_piece_by_piece(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    expected = [{"a": 'é, ] \\" 😀'}, {"b": [1, 2.5, {}]}, {}, {"c": " " * 300}, 12345, 6.75, True]
    path = tmp_path / "list.json"
    path.write_text("\ufeff \n" + json.dumps(expected, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    records = list(files.read_records(path))
    assert [record for _, record in records] == expected
    assert records[1][0] == "record 2 (line 6)"


def test_unknown_keys_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(errata.cases(write(tmp_path / "zsre.jsonl", ZSRE | {"colour": "red"}))) == 1
    assert "unknown keys, not read: colour (1)" in caplog.text


def test_unknown_formats_and_options_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "zsre.jsonl", ZSRE)
    with pytest.raises(UnknownName, match="did you mean zsre"):
        data.read(path, "zsr")
    with pytest.raises(UnknownName, match="unknown option of the format 'zsre' 'targt'; did you mean target"):
        data.read(path, targt="alt")
    with pytest.raises(UnknownName, match="unknown value of target 'answer'; did you mean answers"):
        data.read(path, target="answer")
    with pytest.raises(BadInput, match="'flat' has no option 'target'"):
        data.read(write(tmp_path / "flat.jsonl", FLAT), target="alt")
    with pytest.raises(BadInput, match="strict is true or false"):
        data.read(path, strict="yes")
    with pytest.raises(BadInput, match="the world is no file"):
        errata.cases("world", target="alt")


# Conflicts ---------------------------------------------------------------------------------------


def test_a_record_that_contradicts_an_earlier_one_is_excluded(tmp_path: Path) -> None:
    def fact(number: int, prompt: str, new: str, relation: str = "P1") -> Json:
        return COUNTERFACT | {"case_id": number, "requested_rewrite": rewrite(prompt, "Ann Lee", new, "oboe", relation)}

    records = [
        fact(1, "{} plays the", "harp"),
        fact(2, "The instrument of {} is the", "lute"),  # another prompt, the same relation
        fact(3, "{} plays the", "Harp"),  # the same target
        fact(4, "{} plays the", "lute", "P2"),
    ]
    path = write(tmp_path / "cf.jsonl", *records)
    loaded = data.read(path)
    assert [case.id for case in loaded.cases] == ["counterfact-1", "counterfact-3", "counterfact-4"]
    assert loaded.excluded == [
        ("line 2", "its target is 'lute' where that of line 1 is 'harp'; conflicts=true keeps both")
    ]
    assert len(data.read(path, conflicts="true").cases) == 4


def test_without_a_relation_the_prompt_without_its_subject_is_one(tmp_path: Path) -> None:
    other = ZSRE | {"src": "Where does Ann Lee live?"}
    assert len(load(tmp_path, ZSRE, ZSRE | {"alt": "Lima"}, other | {"alt": "Lima"})) == 2


def test_an_id_that_comes_again_gets_a_number(tmp_path: Path) -> None:
    assert [case.id for case in load(tmp_path, COUNTERFACT, COUNTERFACT)] == ["counterfact-7", "counterfact-7-2"]


# The hub -----------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, **splits: list[Json]) -> None:
    def load_dataset(name: str, config: str | None, split: str | None) -> Any:
        if name != "lab/zsre":
            raise ConnectionError("no such set\nand more")
        return splits[split] if split else splits

    module = ModuleType("datasets")
    module.__dict__["load_dataset"] = load_dataset
    module.__dict__["config"] = SimpleNamespace(HF_DATASETS_CACHE="/nowhere")
    monkeypatch.setattr("errata.data.hub.unreachable", lambda *_: None)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_id_is_read_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ZSRE | {"portability": {"New Question": None, "New Answer": None}}, *many(1)]
    stand_in(monkeypatch, train=many(3), test=rows)
    loaded = data.read("lab/zsre", split="test", target="answers")
    assert (len(loaded.cases), loaded.format, loaded.unread) == (2, "zsre", {})
    assert not questions(loaded.cases[0], "one_hop")
    with pytest.raises(BadInput, match="the splits train, test; choose one with split=NAME"):
        data.read("lab/zsre")
    with pytest.raises(BadInput, match=r"the hub does not give it .no such set."):
        data.read("lab/none")


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"pip install 'errata\[hub\]'"):
        errata.cases("lab/zsre")


# The command line and bench files -----------------------------------------------------------------


def test_a_bad_file_ends_with_one_message_and_exit_code_2(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", {"src": "Who?"}, {"src": "Who?"})
    for words in (["--cases", str(bad)], ["--cases", str(bad), "--read", "format=zsre"], ["--read", "strict"]):
        result = CliRunner().invoke(app, ["eval", "world", "--method", "ft-m", *words])
        assert result.exit_code == 2 and result.stdout == ""
        assert result.stderr.startswith("errata: ") and len(result.stderr.splitlines()) == 1


def test_a_bench_file_says_how_its_data_are_read() -> None:
    spec = DataSpec.of({"name": "zsre.json", "limit": 3, "read": {"target": "answers", "conflicts": True}})
    assert dict(spec.options) == {"target": "answers", "conflicts": True} and hash(spec)
    assert spec.label == "zsre.json limit=3 target=answers conflicts=True"
    with pytest.raises(BadInput, match="read is a table of texts, true and false"):
        DataSpec.of({"name": "zsre.json", "read": {"target": 3}})


# Real samples ------------------------------------------------------------------------------------

OF_SAMPLES = {
    "counterfact": ("counterfact", 150),
    "zsre": ("zsre", 200),
    "mquake": ("mquake", 60),
    "rippleedits": ("rippleedits", 60),
    "knowedit_wiki_counterfact": ("knowedit", 120),
    "qaedit": ("qaedit", 100),
    "wikibigedit": ("flat", 60),
}


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the folder of real samples is not here")
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_every_record_of_a_sample_is_used_or_named(name: str) -> None:
    format, count = OF_SAMPLES[name]
    loaded = data.read(SAMPLES / f"{name}.json")
    assert (loaded.format, loaded.records, loaded.unread) == (format, count, {})
    assert len(loaded.cases) >= 0.9 * count
    assert len({case.id for case in loaded.cases}) == len(loaded.cases)
    for case in loaded.cases:
        assert case.probes and all(probe.prompt.strip() for probe in case.probes)


def test_every_format_has_a_record_here() -> None:
    assert set(FORMATS) - set(SINGLE) == {"errata", "counterfact+", "t-rex", "pararel", "kamel"}
