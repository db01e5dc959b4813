"""The editor that makes sure: what it asks, what it tries again, where an edit ends, questions over several hops."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CASES, EDIT, EDITS, TEXTS, tiny_lm

import errata
from errata.errors import BadInput, UnknownName
from errata.methods.assured.asking import Asked, again, answers_to
from errata.methods.assured.assured import Assured
from errata.methods.assured.hops import FINAL, HopChain, HopLM
from errata.methods.assured.named import named, read_by, text_of
from errata.methods.assured.questions import Asker, Question, learned, slot, with_answers
from errata.methods.memory.log import EditRecord
from errata.methods.outcomes import missed
from errata.methods.registry import method
from errata.model.lm import LM
from errata.patch.parts import Wrapper
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Edit, Probe, Score

STRONG, WEAK = "ft-m steps=100", "ft-m steps=1 lr=1e-09"


# Methods as settings ------------------------------------------------------------------------------


def test_a_text_names_a_method_and_its_settings() -> None:
    made = named("memit preserve=8 layers=1,2 history=True lam=None")
    assert made == method("memit", preserve=8.0, layers=(1, 2), history=True)
    assert text_of(made) == "memit layers=1,2 history=True preserve=8.0" or named(text_of(made)) == made
    spaced = method("rag", encoder="a folder/of mine")
    assert named(text_of(spaced)) == spaced
    assert text_of(method("rag")) == "rag"


@pytest.mark.parametrize("text", ["", "memit preserve", "memit 'preserve=8"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="memit preserve=8"):
        method("assured", weights=text)


def test_what_there_is_not_answers_with_near_matches() -> None:
    with pytest.raises(UnknownName, match="memit"):
        method("assured", weights="memitt")
    with pytest.raises(UnknownName, match="preserve"):
        method("assured", weights="memit preserv=8")
    with pytest.raises(BadInput, match="steps"):
        method("assured", memory="grace steps=many")


def test_a_method_is_a_setting_too_and_the_settings_are_json() -> None:
    made = method("assured", weights=method("memit", preserve=4.0), memory=method("grace"))
    assert (made.settings["weights"], made.settings["memory"]) == ("memit preserve=4.0", "grace")
    assert method("assured", **made.settings) == made


@pytest.mark.parametrize("role", ["weights", "memory"])
def test_it_is_not_its_own_part(role: str) -> None:
    with pytest.raises(BadInput, match=f"assured's {role}"):
        method("assured", **{role: "assured"})


def test_each_method_prepares_with_what_it_reads() -> None:
    data = [*TEXTS, *CASES]
    assert read_by(method("memit"), data) == TEXTS
    assert read_by(method("ike"), data) == CASES
    assert read_by(method("rag"), data) == CASES
    assert read_by(method("rag"), TEXTS) == TEXTS
    assert read_by(method("memit"), CASES) is None and read_by(method("memit"), None) is None


# What is asked ------------------------------------------------------------------------------------

HOPS = Case(
    "hops",
    (Edit("{} was born in", "Ida Moor", "Lima", "Rome"),),
    (
        Probe("paraphrase", "Ida Moor comes from", ("Lima",)),
        Probe("question", "Q: Where was Ida Moor born? A:", ("Lima",)),
        Probe("same_subject", "Ida Moor speaks", ("Welsh",)),
        Probe("multi_hop", "Ida Moor's country is", ("Peru",)),
        Probe("multi_hop", "Q: In which country was Ida Moor born? A:", ("Peru",)),
        Probe("multi_hop", "Q: Which is the river of Bob Ray? A:", ("Nile",)),
    ),
)
KNOWN = learned([HOPS, replace(HOPS, id="b", edits=(Edit("{} was born in", "Jo", "Oslo", "Lima"),), probes=())])


def test_cases_teach_how_to_ask() -> None:
    assert KNOWN["asks"] == [["{} was born in", "{} comes from", "Q: Where was {} born? A:"]]
    assert KNOWN["stays"] == [["{} speaks"]]
    assert KNOWN["others"] == [[["Ida Moor", "Rome"], ["Jo", "Lima"]]]
    assert KNOWN["hops"] == [["{}'s country is", "Q: In which country was {} born? A:"]]


def test_an_edit_is_asked_in_the_words_of_its_group() -> None:
    asker = Asker(tiny_lm("gpt2"), KNOWN, 3, 0)
    asked = asker.own(EDIT)
    assert [q.prompt for q in asked] == [EDIT.prompt, "Q: Where was Ann Lee born? A:", "Ann Lee comes from"]
    assert {(q.of, q.answer, q.stays) for q in asked} == {(EDIT.id, "Oslo", False)}
    assert [q.prompt for q in asker.own(EDIT, 1)] == [EDIT.prompt]


def test_an_edit_of_unknown_words_is_asked_behind_contexts() -> None:
    asked = Asker(tiny_lm("gpt2"), KNOWN, 3, 0).own(EDITS[1])
    assert asked[0].prompt == EDITS[1].prompt and len(asked) == 3
    assert all(q.prompt.endswith(EDITS[1].prompt) and len(q.prompt) > len(EDITS[1].prompt) for q in asked[1:])


def test_what_should_stay_is_the_subjects_other_facts_and_the_fact_of_others() -> None:
    asker = Asker(tiny_lm("gpt2"), KNOWN, 4, 0)
    assert [q.prompt for q in asker.staying([EDIT], [])] == ["Ann Lee speaks", "Ida Moor was born in", "Jo was born in"]
    assert all(q.stays and q.of == EDIT.id for q in asker.staying([EDIT], []))
    edited = [Edit("{} speaks", "Ann Lee", "Greek"), Edit("{} comes from", "Jo", "Rome")]
    assert [q.prompt for q in asker.staying([EDIT], edited)] == ["Ida Moor was born in"]


def test_without_words_what_the_model_writes_of_the_subject_should_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    written = [" is the mayor of Lima today", " was born in Rome", "'s son went to Oslo", "", "ly was a baker of"]
    rows = [lm.tokens.target("", text) if text else [] for text in written]
    monkeypatch.setattr(type(lm), "sample", lambda self, prompts, n, seed: rows)
    monkeypatch.setattr(type(lm.tokens), "decode", lambda self, ids: written[rows.index(ids)])
    asked = Asker(lm, learned([]), 10, 0).staying(EDITS[:1], [])
    assert [q.prompt for q in asked] == ["Ann Lee is the mayor"]  # nothing of the old answer, the new, or another name
    assert with_answers([*asked, *asked], ["", " of Lima. He"]) == [replace(asked[0], answer="of Lima")]


def test_an_answer_is_right_by_its_beginning() -> None:
    own = Question("Ann was born in", "Ann", "Oslo", "a")
    assert own.right(" Oslo. She") and not own.right(" Rome.")
    kept = replace(own, stays=True, answer="Rome")
    assert kept.right(" Rome.") and not kept.right(" Rome and Oslo.") and not kept.right(" Oslo.")


def test_a_fact_is_tried_in_its_first_words_that_fail_and_all_that_should_stay() -> None:
    own = [Question(f"{way} Ann is", "Ann", "Oslo", "a") for way in ("1", "2")]
    kept = [replace(own[0], prompt=f"{way} Ann was", stays=True, answer="Rome") for way in ("3", "4")]
    assert [(e.prompt, e.target_new) for e in again([*own, *kept])] == [
        ("1 Ann is", "Oslo"), ("3 Ann was", "Rome"), ("4 Ann was", "Rome"),
    ]  # fmt: skip
    texts = [" Rome.", " Oslo.", " Rome.", " Oslo."]
    asked = Asked(EMPTY, [*own, *kept], texts)
    assert [q.prompt for q in asked.wrong] == ["1 Ann is", "4 Ann was"] and asked.cost == (1, 2)
    assert replace(asked, texts=[" Oslo.", " Rome.", " Rome.", " Oslo."]).cost == (0, 2)


def test_a_prompt_is_asked_once() -> None:
    lm = tiny_lm("gpt2")
    one = Question(EDIT.prompt, EDIT.subject, "Oslo", "a")
    assert answers_to(lm, EMPTY, [one, replace(one, of="b")]) == 2 * lm.generate([EDIT.prompt], 16, until_answer=True)
    assert answers_to(lm, EMPTY, []) == []


# Where an edit ends -------------------------------------------------------------------------------


def edited(edits: Sequence[Edit], prior: Patch = EMPTY, **settings: Any) -> tuple[Any, Patch]:
    lm = tiny_lm("gpt2")
    made = method("assured", **{"asked": 1, "rounds": 0, "memory": STRONG, "hops": False, **settings})
    return lm, made.edit(lm, edits, made.prepare(lm, TEXTS), prior)


def outcome(patch: Patch, edit: Edit = EDIT, at: int = -1) -> Any:
    return patch.meta["made"][at]["outcomes"][edit.id]


def answers(lm: Any, patch: Patch, edits: Sequence[Edit]) -> list[str]:
    with patch.applied(lm) as changed:
        return [text.split(".")[0].strip()[:20] for text in changed.generate([e.prompt for e in edits], 16)]


def test_what_the_weights_answer_ends_there() -> None:
    _, patch = edited([EDIT], weights=STRONG)
    assert outcome(patch)["ended"] == "weights" and outcome(patch)["met"]
    assert outcome(patch)["why"].startswith("answered in 1 of 1 phrasings")
    assert (outcome(patch)["asked"], outcome(patch)["answered"]) == (1, 1)


def test_what_the_weights_do_not_answer_ends_in_the_memory() -> None:
    lm, patch = edited([EDIT], weights=WEAK)
    assert outcome(patch)["ended"] == "memory" and outcome(patch)["met"]
    assert "in the memory" in outcome(patch)["why"]
    assert answers(lm, patch, [EDIT])[0].startswith("Oslo")


def test_what_nothing_answers_is_never_reported_as_done(caplog: pytest.LogCaptureFixture) -> None:
    _, patch = edited([EDIT], weights=WEAK, memory=WEAK)
    found = outcome(patch)
    assert found["ended"] == "nowhere" and found["met"] is False and missed(found)
    assert "its prompt is answered" in found["why"]
    assert "assured missed 1 of 1 edits" in caplog.text and "its prompt is answered" in caplog.text


@pytest.mark.parametrize(("strong_at", "ended", "calls"), [(2, "weights", 2), (9, "nowhere", 4)])
def test_the_weights_are_tried_again_before_the_memory_is(
    strong_at: int, ended: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Sequence[Edit]]] = []

    def by(self: Any, role: str, lm: Any, edits: Sequence[Edit], state: Any, prior: Patch) -> Patch:
        asked.append((role, edits))
        return method("ft-m", steps=100 if len(asked) == strong_at else 1, lr=1e-2).edit(lm, edits, None, prior)

    monkeypatch.setattr(Assured, "_by", by)
    _, patch = edited([EDIT], rounds=5)
    assert outcome(patch)["ended"] == ended
    assert ("the weights were edited again" in outcome(patch)["why"]) == (ended == "weights")
    assert [role for role, _ in asked] == ["weights", "weights", "memory", "memory"][:calls]
    assert all([(e.prompt, e.target_new) for e in edits] == [(EDIT.prompt, "Oslo")] for _, edits in asked)


@pytest.mark.parametrize(("memory", "ended"), [(STRONG, "memory"), (WEAK, "nowhere")])
def test_an_edit_that_a_later_one_lost_goes_to_the_memory_or_is_named(
    memory: str, ended: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm, first = edited([EDIT], weights=STRONG)
    assert outcome(first)["ended"] == "weights"
    made = method("assured", asked=1, rounds=0, hops=False, weights=STRONG, memory=memory)
    state, by, told = made.prepare(lm, TEXTS), Assured._by, list[Edit]()

    def losing(self: Any, role: str, lm: Any, edits: Sequence[Edit], state: Any, prior: Patch) -> Patch:
        if role == "weights":
            return by(self, role, lm, edits, state, EMPTY)  # nothing of the earlier edit is left
        told.extend(edits)
        return by(self, role, lm, edits, state, prior)

    monkeypatch.setattr(Assured, "_by", losing)
    patch = made.edit(lm, EDITS[1:2], state, first)
    assert EDIT in told and [edit.id for edit in patch.edits] == [edit.id for edit in EDITS[:2]]
    assert outcome(patch, at=0)["ended"] == ended and outcome(patch, at=0)["met"] == (ended == "memory")
    assert "an answer was lost to later edits" in outcome(patch, at=0)["why"]
    assert outcome(first)["ended"] == "weights"  # a patch is a value
    assert ("1 edits of earlier calls are no longer answered" in caplog.text) == (ended == "nowhere")
    assert answers(lm, patch, [EDIT])[0].startswith("Oslo") == (ended == "memory")


def test_an_edit_whose_place_a_newer_one_took_is_not_asked_again() -> None:
    _, first = edited([EDIT], weights=STRONG)
    newer = Edit(EDIT.prompt, EDIT.subject, "Lima")
    lm, patch = edited([newer], first, weights=STRONG)
    assert answers(lm, patch, [EDIT])[0].startswith("Lima")
    assert outcome(patch, at=0) == outcome(first, at=0)


def test_a_fold_has_one_part_for_hops_and_it_is_outermost() -> None:
    _, first = edited([EDIT], weights=STRONG, hops=True)
    _, patch = edited(EDITS[1:2], first, weights=STRONG, hops=True)
    assert [part.kind for part in patch.parts] == ["delta", "hops"]
    assert [entry["edit"] for entry in patch.parts[-1].entries()] == [edit.id for edit in EDITS[:2]]


def test_it_goes_on_with_its_state_alone() -> None:
    lm, made = tiny_lm("gpt2"), method("assured", weights="memit contexts=0", memory="grace")
    state = made.prepare(lm, [*TEXTS, *CASES])
    assert set(state.info["states"]) == {"weights", "memory"} and state.info["asks"]
    other = method("assured", weights="memit contexts=0", memory="ike")
    with pytest.raises(BadInput, match="for memory, ike"):
        other.edit(lm, [EDIT], state)


def test_without_cases_it_says_how_it_asks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        method("assured", weights=WEAK, memory=WEAK).prepare(tiny_lm("gpt2"), TEXTS)
    assert "asked behind contexts" in caplog.text


# Questions over several hops ----------------------------------------------------------------------


class Scripted(LM):
    """Answers by a table, and remembers what it was asked; ``inner`` is below it where it is a wrapper."""

    def __init__(self, table: dict[str, str], inner: Any = None) -> None:
        self.table, self.asked = table, list[str]()
        if inner is not None:
            self.inner = inner

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 32, **how: Any) -> list[str]:
        self.asked += prompts
        return [next((a for end, a in self.table.items() if prompt.endswith(end)), " ?") for prompt in prompts]

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        self.asked += prompts
        return [Score((1,), (-1.0,), (1,)) for _ in prompts]


SETTINGS = {
    "method": "assured",
    "rounds": 4,
    "examples": "",
    "step": "Subquestion: {question}\nIntermediate answer: {answer}\n",
    "ask": "Q: {question} A:",
    "asks": KNOWN["asks"][0],
    "hops": KNOWN["hops"],
}
BORN = "Question: In which country was Ann Lee born?\n"
BELOW = {
    BORN: "Subquestion: Where was Ann Lee born?\nnoise",
    "answer: Oslo\n": "Subquestion: In which country is Oslo?\n",
    "answer: Norway\n": f"{FINAL} Norway.\n",
    FINAL: " Norway.",
    "Question: Where was Ann Lee born?\n": "Subquestion: where was Ann Lee born\n",
}
ABOVE = {"Q: Where was Ann Lee born? A:": " Oslo. She", "Q: In which country is Oslo? A:": " Norway. It"}
STATEMENT, QUESTION = "Ann Lee's country is", "Q: In which country was Ann Lee born? A:"


def chained(*edits: Edit, below: dict[str, str] = BELOW) -> tuple[Any, Scripted, Scripted]:
    low = Scripted(below)
    high = Scripted(ABOVE, low)
    part = HopChain(tuple(EditRecord.of(edit) for edit in edits or (EDIT,)), SETTINGS)
    return part.wrap(high), high, low


@pytest.mark.parametrize("prompt", [STATEMENT, QUESTION, "In which country was Ann Lee born?"])
def test_a_question_over_hops_is_followed_through_the_edit(prompt: str) -> None:
    lm, high, low = chained()
    assert lm.generate([prompt, "Rome"]) == [" Norway.", " ?"]
    assert high.asked == [*ABOVE, "Rome"]  # the edited model answers, the one below asks
    assert low.asked[-1].endswith(f"Intermediate answer: Norway\n{FINAL}")
    assert lm.explain([prompt]) == [[f"assured: edit {EDIT.id}, {EDIT.prompt!r}, in 2 steps"]]


def test_score_and_generate_route_alike() -> None:
    lm, high, low = chained()
    lm.generate([QUESTION, "Rome"])
    texts = low.asked[-1], high.asked[-1]
    lm.score([QUESTION, "Rome"], ["Norway", "x"])
    assert (low.asked[-1], high.asked[-1]) == texts
    with pytest.raises(BadInput, match="a target for each"):
        lm.score([QUESTION], [])


@pytest.mark.parametrize(
    ("edits", "prompt"),
    [
        ((Edit("{} was born in", "Ann Lee", "Rome"),), QUESTION),  # no step gives an edit's answer
        ((Edit("{} was born in", "Bob Ray", "Oslo"),), QUESTION),  # the answer of another subject's edit
        ((EDIT, Edit("{}'s country is", "Ann Lee", "Peru")), QUESTION),  # the question itself was edited
        ((EDIT,), "Q: Where was Ann Lee born? A:"),  # asks for one fact
        ((EDIT,), "Ann Lee was born in"),
        ((EDIT,), "Ann Lee. In which country was she"),
    ],
)
def test_every_other_prompt_goes_on_unchanged(edits: tuple[Edit, ...], prompt: str) -> None:
    lm, high, _ = chained(*edits)
    lm.generate([prompt])
    assert high.asked[-1] == prompt


def test_a_sub_question_that_repeats_the_question_is_no_hop() -> None:
    part = HopChain((EditRecord.of(EDIT),), {**SETTINGS, "asks": [], "hops": []})
    low = Scripted(BELOW)
    high = Scripted({"Q: where was Ann Lee born A:": " Oslo.", "Oslo? A:": " Norway."}, low)
    HopLM(part, high).generate(["Q: Where was Ann Lee born? A:"])
    assert high.asked[-1] == "Q: Where was Ann Lee born? A:"


def test_a_chain_ends_after_its_rounds() -> None:
    below = {"\n": "Subquestion: And where?\n"}
    lm, _, low = chained(below=below)
    assert lm.generate([QUESTION]) == [" ?"]
    assert len(low.asked) == SETTINGS["rounds"] + 1


def test_the_part_is_saved_and_parted(tmp_path: Path) -> None:
    part = HopChain(tuple(map(EditRecord.of, EDITS)), SETTINGS)
    loaded = Patch.load(Patch((part,)).save(tmp_path / "p.safetensors")).parts[0]
    assert loaded == part and isinstance(loaded, Wrapper)
    left = part.without(EDIT.id)
    assert left is not None and [record.id for record in left.log] == [e.id for e in EDITS[1:]]
    assert replace(part, log=part.log[:1]).without(EDIT.id) is None
    assert [entry["edit"] for entry in part.entries()] == [e.id for e in EDITS]
    with pytest.raises(BadInput):
        HopChain((), {**SETTINGS, "rounds": 0}).check_content()


def test_a_template_finds_its_subject() -> None:
    found = slot("Q: Where was {} born? A:").fullmatch("Q: Where was Ann Lee born? A: ")
    assert found is not None and found[1] == "Ann Lee"
    assert slot("{} is (").fullmatch("Ann is (") and not slot("{} is (").fullmatch("Ann is")


# On the bundled model -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_bundled_model_is_edited_for_sure() -> None:
    lm, made = errata.load("world"), method("assured")
    cases = errata.cases("world", 6)
    edits = [case.edits[0] for case in cases]
    patch = made.edit(lm, edits, made.prepare(lm))
    before = errata.baseline(lm, cases)
    with patch.applied(lm) as edited:
        rows = errata.evaluate(before, edited, cases)
    assert all(found["met"] for found in patch.meta["made"][0]["outcomes"].values())
    after = [row.after for row in rows if row.kind in ("edit", "paraphrase", "question", "multi_hop")]
    assert sum(filter(None, after)) / len(after) > 0.95
