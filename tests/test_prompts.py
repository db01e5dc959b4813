"""Methods that prepend facts to a prompt: which facts, where, and what stays as it was."""

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import CASES, EDIT, EDITS, TEXTS, tiny_lm

import errata
from errata.answers import begins_with_answer
from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.memory.log import EditRecord
from errata.methods.prompting.ike import examples_of
from errata.methods.prompting.prompted import Example, FactPrompt, PromptedLM, fitting
from errata.methods.prompting.rag import RelationPrompt
from errata.methods.registry import method
from errata.methods.retrieval import SENTENCES, TFIDF, Index, Names, default_encoder
from errata.model.lm import LM
from errata.model.resources import Resources
from errata.model.tokens import sentence
from errata.patch.patch import Patch
from errata.subjects import template_of
from errata.types import Edit

ALWAYS = {
    "method": "test",
    "encoder": TFIDF,
    "most": 1,
    "near": -2.0,
    "named": 0.0,
    "fact": "{fact} ",
    "layout": "{facts}{prompt}",
}
WHERE_NAMED = ALWAYS | {"most": 4, "named": 1.0}


class Scripted(LM):
    """A model whose outputs are given by a function of the prompt; it keeps the prompts that it gets."""

    def __init__(self, output: Callable[[str], str] = lambda prompt: " yes.") -> None:
        self.output, self.prompts = output, list[str]()

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 32, **how: Any) -> list[str]:
        self.prompts += prompts
        return [self.output(prompt) for prompt in prompts]

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Any]:
        self.prompts += prompts
        return []

    def next_logprobs(self, prompts: Sequence[str]) -> Any:
        self.prompts += prompts
        return np.zeros((len(prompts), 1))


@cache
def world() -> Any:
    return errata.load("world")


def facts(*edits: Edit) -> tuple[EditRecord, ...]:
    return tuple(EditRecord.of(edit) for edit in edits)


def extended(part: FactPrompt, *prompts: str) -> list[str]:
    """What the model gets to read."""
    inner = Scripted()
    part.wrap(inner).generate(prompts)
    return inner.prompts


# What is near ------------------------------------------------------------------------------------


def test_a_subject_is_named_by_its_words() -> None:
    share = Names(["Ann Lee", "Port Ann", "京都", "!!"]).named(
        ["ann LEE's home", "Annabel Leeds", "私は京都に住む", ""]
    )
    assert share.tolist() == [[1, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_tfidf_finds_the_same_text() -> None:
    near = Index(TFIDF, TEXTS).near(TEXTS)
    assert near.shape == (len(TEXTS), len(TEXTS))
    assert (near.argmax(1) == np.arange(len(TEXTS))).all() and near.diagonal() == pytest.approx(1.0, abs=1e-5)


def test_a_sentence_encoder_hears_the_same_in_other_words() -> None:
    assert default_encoder() == SENTENCES
    near = Index(SENTENCES, ["Ann Lee was born in", "The price of bread is"]).near(
        ["Where does Ann Lee come from?", "x"]
    )
    assert near.shape == (2, 2) and near[0, 0] > 0.5 > near[0, 1]
    assert np.abs(near).max() <= 1.0 + 1e-5


def test_an_encoder_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(BadInput, match="no encoder '/no/such/folder'"):
        method("ice", encoder="/no/such/folder").edit(lm, [EDIT])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(BadInput, match=r"pip install 'errata\[retrieval\]'"):
        method("ice", encoder="another").edit(lm, [EDIT])


# What is prepended -------------------------------------------------------------------------------


def test_only_where_the_subject_is_named() -> None:
    part = FactPrompt(facts(*EDITS), WHERE_NAMED)
    prompts = ["Where was Ann Lee born?", "Ann Ray lives in", "Lee", "", "Rome"]
    assert extended(part, *prompts) == ["Ann Lee was born in Oslo. Where was Ann Lee born?", *prompts[1:]]
    prompted = part.wrap(inner := Scripted())
    prompted.score(prompts, ["x"] * 5), prompted.next_logprobs(prompts)
    assert inner.prompts == 2 * extended(part, *prompts)
    assert prompted.explain(prompts[:2]) == [[f"test: edit {EDIT.id}, 'Ann Lee was born in Oslo.'"], []]


def test_always_the_nearest() -> None:
    part = FactPrompt(facts(*EDITS), ALWAYS)
    assert extended(part, "Bob Ray lives", "Ann Lee comes from") == [
        "Bob Ray lives in New York. Bob Ray lives",
        "Ann Lee was born in Oslo. Ann Lee comes from",
    ]
    assert extended(part, "") == [""]


def test_a_fact_that_is_far_is_not_prepended() -> None:
    part = FactPrompt(facts(*EDITS), WHERE_NAMED | {"near": 0.9})
    assert extended(part, EDIT.prompt, "Ann Lee's dog is called") == [
        "Ann Lee was born in Oslo. Ann Lee was born in",
        "Ann Lee's dog is called",
    ]


def test_the_newest_of_two_answers() -> None:
    later = Edit("Ann Lee  was born in", "Ann Lee", "Lima")
    part = FactPrompt(facts(EDIT, EDITS[1], later), WHERE_NAMED)
    assert extended(part, EDIT.prompt) == ["Ann Lee  was born in Lima. Ann Lee was born in"]
    assert [entry["in use"] for entry in part.entries()] == ["a newer one", "yes", "yes"]
    earlier = part.without(later.id)
    assert earlier == FactPrompt(facts(EDIT, EDITS[1]), WHERE_NAMED)
    assert extended(earlier, EDIT.prompt) == ["Ann Lee was born in Oslo. Ann Lee was born in"]
    assert FactPrompt(facts(EDIT), WHERE_NAMED).without(EDIT.id) is None


def test_of_several_facts_the_newest_stands_last() -> None:
    near, far = (
        Edit("Ann Lee lives in", "Ann Lee", "Lima"),
        Edit("The dog that belongs to Ann Lee is", "Ann Lee", "Rex"),
    )
    for edits in ((near, far), (far, near)):
        lines = " ".join(sentence(edit.prompt, edit.target_new) for edit in edits)
        assert extended(FactPrompt(facts(*edits), WHERE_NAMED), near.prompt) == [f"{lines} {near.prompt}"]


def test_the_same_edit_twice_is_prepended_once() -> None:
    part = FactPrompt(facts(EDIT, EDIT), WHERE_NAMED)
    assert extended(part, EDIT.prompt) == ["Ann Lee was born in Oslo. Ann Lee was born in"]


def test_sentences() -> None:
    assert sentence("Q: Where? A:", " Oslo") == "Q: Where? A: Oslo."
    assert sentence("Where? ", "Washington D.C.") == "Where? Washington D.C."


# Examples ----------------------------------------------------------------------------------------


def test_examples_of_a_case() -> None:
    examples = list(examples_of(CASES[0]))
    assert [example.kind for example in examples] == ["copy", "update", "update", "retain", "retain"]
    assert examples[0] == Example("Eve Stone was born in Rome", "Eve Stone was born in", "Rome", "copy")
    assert examples[3] == Example("Eve Stone was born in Rome", "Flo Ash was born in", "Oslo", "retain")


def test_examples_stand_before_the_fact_the_nearest_last_and_are_cut_from_the_far_end() -> None:
    lm = tiny_lm("gpt2")
    ike = method("ike", encoder=TFIDF, fill=1.0, shown=8)
    patch = ike.edit(lm, [EDIT], ike.prepare(lm, CASES))
    inner = Scripted()
    part: Any = patch.parts[0]
    whole = extended(part, EDIT.prompt)[0]
    blocks = whole.split("\n\n")
    assert blocks[-2:] == [  # as released: the edit's own demonstration, and the question, without full stops
        "New Fact: Ann Lee was born in Oslo\nPrompt: Ann Lee was born in Oslo",
        "New Fact: Ann Lee was born in Oslo\nPrompt: Ann Lee was born in",
    ]
    assert len(blocks) == 10
    texts = [part.laid_out([example.fact], example.prompt) for example in part.examples]
    near = dict(
        zip(map(part.demonstration, part.examples), Index(TFIDF, texts).near([EDIT.prompt])[0].tolist(), strict=True)
    )
    order = [near[block + "\n\n"] for block in blocks[:-2]]
    assert order == sorted(order)
    inner.tokens = lm.tokens  # type: ignore[attr-defined]
    part.wrap(inner).generate([EDIT.prompt])
    cut = inner.prompts[0]
    assert whole.endswith("\n\n".join(cut.split("\n\n")[-2:])) and 1 < len(cut.split("\n\n")) < 9
    assert lm.tokens.count(cut) + 32 <= lm.tokens.limit  # type: ignore[operator]


@pytest.mark.parametrize("room", [1, 4, 8, 16, 24, 31])
def test_examples_are_cut_alike_of_each_kind(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any number of them each kind has its share, 1 : 3 : 4, within one."""
    monkeypatch.setattr(
        "errata.methods.prompting.prompted.fitting", lambda tokens, before, text, reserved: before[-room - 1 :]
    )
    pool = [
        Example(f"{kind} {i} is {i}", f"{kind} {i} is", str(i), kind)
        for kind in ("copy", "update", "retain")
        for i in range(20)
    ]
    shown = {"copy": 4, "update": 12, "retain": 16}
    part = FactPrompt(facts(EDIT), ALWAYS | {"shown": shown, "own": True, "fact": "F: {fact}\n"}, tuple(pool))
    blocks = extended(part, "copy 3 is")[0].split("\n\n")[:-1]
    assert len(blocks) == room + 1 and blocks.pop() == "F: Ann Lee was born in Oslo.\nAnn Lee was born in Oslo"
    counts = [sum(block.startswith(f"F: {kind}") for block in blocks) for kind in shown]
    assert counts == pytest.approx([room / 8, 3 * room / 8, room / 2], abs=1)
    assert counts[0] or room < 4  # a copy among any four


def test_what_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    tokens = tiny_lm("gpt2").tokens
    assert fitting(tokens, [], "x" * 500, 1) == []
    parts = ["one " * 30, "two " * 8, "three "]
    with caplog.at_level("INFO", "errata"):
        assert fitting(tokens, parts, "four", 32) == parts[1:]
    assert "1 of 3 texts" in caplog.text
    lm = tiny_lm("gpt2")
    long = Edit("Ann Lee " + "went on and on " * 8 + "to", "Ann Lee", "Rome")
    with method("ice", encoder=TFIDF).edit(lm, [long]).applied(lm) as edited, caplog.at_level("WARNING", "errata"):
        assert edited.generate(["Ann Lee was"], 4) == edited.inner.generate(["Ann Lee was"], 4)
    assert "stays as it is" in caplog.text


# Thresholds and states ---------------------------------------------------------------------------


def test_a_threshold_is_a_quantile_of_pairs() -> None:
    lm = tiny_lm("llama")
    near = []
    for share in (0.0, 0.5, 1.0):
        rag = method("rag", encoder=TFIDF, share=share)
        near.append(rag.edit(lm, [EDIT], rag.prepare(lm, TEXTS)).meta["made"][0]["resolved"]["near"])
    pairs = Index(TFIDF, TEXTS).near(TEXTS)[np.triu_indices(len(TEXTS), 1)]
    assert near == pytest.approx([pairs.max(), np.median(pairs), pairs.min()], abs=1e-3)


@cache
def training() -> list[Any]:
    from errata.world.cases import cases
    from errata.world.facts import world

    return cases(world(60, 3), split="train")


@pytest.mark.parametrize("name", ["rag", "memprompt"])
def test_other_facts_of_the_subject_are_not_told(name: str) -> None:
    from errata.world.cases import cases
    from errata.world.facts import world

    lm, m = tiny_lm("gpt2"), method(name, encoder=TFIDF)
    asked = cases(world(60, 3), limit=20)
    part: Any = m.edit(lm, [case.edits[0] for case in asked], m.prepare(lm, training())).parts[0]
    told: dict[str, list[bool]] = {}
    for case in asked:
        for probe, found in zip(case.probes, part.retrieved([probe.prompt for probe in case.probes]), strict=True):
            told.setdefault(probe.kind, []).append(case.edits[0].id in [fact.id for fact in found])
    share = {kind: np.mean(values) for kind, values in told.items()}
    assert share["paraphrase"] > 0.95 and share["question"] > 0.95
    assert share["same_subject"] < 0.05 and share["neighborhood"] == share["unrelated"] == 0


def test_a_phrasing_is_known_by_the_nearest_one_and_else_by_its_own_cosine() -> None:
    groups = [["{} was born in", "The birthplace of {} is"], ["{} lives in", "{} has a home in"]]
    settings = WHERE_NAMED | {"near": 0.5, "phrasings": groups}
    part = RelationPrompt(facts(EDIT, Edit("{}'s dog is called", "Ann Lee", "Rex")), settings)
    asked = {
        "The birthplace of Ann Lee is": [0],  # other words, known to ask the same
        "The birthplace of Ann Lee was": [0],  # near a known one
        "Ann Lee lives in": [],  # known to ask something else, though near
        "Ann Lee's dog was called": [1],  # no known phrasing is near: the cosine counts
        "Ann Lee likes": [],
    }
    told = [[part.facts.index(fact) for fact in found] for found in part.retrieved(list(asked))]
    assert told == list(asked.values())
    plain = RelationPrompt(part.log, settings | {"phrasings": []})
    told = [len(found) for found in plain.retrieved(list(asked))]
    assert told[0] == told[4] == 0 and told[3] == 1  # the cosine alone


@pytest.mark.parametrize("most", [1, 2, 9])
def test_facts_of_named_subjects_alone_are_those_of_looking_at_all(most: int) -> None:
    """And one that is not named in full, of a subject that shares words with others."""
    names = ["Ann Lee", "Ann", "Lee Ann", "Port Ann", "Bo", "!!"]
    edits = [
        Edit(f"{{}} {what}", name, f"X{i}") for i, name in enumerate(names) for what in ("was born in", "lives in")
    ]
    part = RelationPrompt(facts(*edits), WHERE_NAMED | {"near": 0.3, "most": most, "phrasings": []})
    asked = [edit.prompt for edit in edits] + ["Ann Lee and Bo live in", "  ", "", "Port Lee was born in", "None"]
    told = part.retrieved(asked)
    assert told == FactPrompt.retrieved(part, asked) and any(told)
    assert [part.retrieved([one])[0] for one in asked] == told
    assert not told[asked.index("")] and not told[asked.index("  ")]


def test_a_text_of_the_index_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    index, again = Index(TFIDF, ["a cat", "a dog"]), list[str]()
    index.rows = np.asarray(index.rows.todense(), np.float32)
    inner = index.encode
    monkeypatch.setattr(
        index, "encode", lambda texts: again.extend(texts) or np.asarray(inner(texts).todense(), np.float32)
    )
    found = index.product(["a dog", "a cow", "a cat", "a cow"])
    assert again == ["a cow"]
    assert np.allclose(found, inner(["a dog", "a cow", "a cat", "a cow"]) @ index.rows.T)


def test_what_cases_teach_of_one_subject_sets_the_threshold() -> None:
    lm, rag = tiny_lm("gpt2"), method("rag", encoder=TFIDF, share=0.0)
    state = rag.prepare(lm, CASES)
    pairs = [
        (case.edits[0].template, template_of(probe.prompt, case.edits[0].subject))
        for case in CASES
        for probe in case.probes
        if probe.kind == "same_subject"
    ]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    near = Index(TFIDF, texts).near(texts)
    most = max(near[texts.index(a), texts.index(b)] for a, b in pairs)
    assert rag.resolve(lm, state).near == pytest.approx(most, abs=1e-6)


def test_states_that_do_not_fit() -> None:
    lm = tiny_lm("llama")
    rag, ike = method("rag", encoder=TFIDF), method("ike", encoder=TFIDF)
    state = rag.prepare(lm, CASES)
    with pytest.raises(BadInput, match="examples is missing; make one with ike's prepare"):
        ike.edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="the tensor alike is missing; make one with rag's prepare"):
        rag.edit(lm, [EDIT], ike.prepare(lm, CASES))
    with pytest.raises(BadInput, match="prepared with the encoder 'tfidf'"):
        method("rag", encoder=SENTENCES).edit(lm, [EDIT], state)
    with pytest.raises(WrongModel, match="prepare"):
        rag.edit(tiny_lm("gpt2"), [EDIT], state)


def test_going_on_with_other_settings() -> None:
    lm = tiny_lm("llama")
    patch = method("ice", encoder=TFIDF).edit(lm, [EDIT])
    with pytest.raises(BadInput, match="has encoder = 'tfidf'"):
        method("ice", encoder=SENTENCES).edit(lm, [EDITS[1]], None, patch)
    ike = method("ike", encoder=TFIDF)
    both = ike.edit(lm, [EDITS[1]], ike.prepare(lm, CASES), patch)
    assert [part.settings["method"] for part in both.of_kind(FactPrompt)] == ["ice", "ike"]
    with pytest.raises(BadInput, match="other examples"):
        ike.edit(lm, [EDITS[2]], ike.prepare(lm, CASES[:2]), both)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("ike", None, "made of cases"),
        ("ike", TEXTS, "found str"),
        ("ike", [], "no case has"),
        ("rag", ["the same", "the same"], "fewer than two"),
        ("rag", [3], "found int"),
    ],
)
def test_data_to_prepare_with(name: str, data: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        method(name, encoder=TFIDF).prepare(tiny_lm("gpt2"), data)


@pytest.mark.parametrize("bad", [{"share": 1.5}, {"named": 2.0}, {"texts": 1}, {"most": 0}])
def test_settings_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="rag"):
        method("rag", **bad)


def test_the_models_own_layout() -> None:
    lm = tiny_lm("llama")
    lm.resources = Resources(templates={"fact": "<{fact}> ", "reminder": "{prompt} | {facts} | {prompt}"})
    for name, layout in (("rag", "<{}> {}"), ("memprompt", "{1} | {0} | {1}")):
        m = method(name, encoder=TFIDF)
        part: Any = m.edit(lm, [EDIT], m.prepare(lm, TEXTS)).parts[0]
        assert extended(part, EDIT.prompt) == [layout.format("Ann Lee was born in Oslo.", EDIT.prompt)]


# The bundled model follows the facts in its context ------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("rag", 8), ("ice", 7), ("memprompt", 7), ("ike", 6)])  # of 8
def test_on_the_bundled_model(name: str, least: int) -> None:
    lm, cases, m = world(), errata.cases("world", limit=8), method(name, encoder=TFIDF)
    edits = [edit for case in cases for edit in case.edits]
    prompts = [edit.prompt for edit in edits]
    before = lm.score(prompts, [edit.target_new for edit in edits])
    stays = ["The capital of Vidlland is", "Nobody knows"]
    with m.edit(lm, edits, m.prepare(lm)).applied(lm) as edited:
        texts = edited.generate(prompts, 8, until_answer=True)
        after = edited.score(prompts, [edit.target_new for edit in edits])
        kept = edited.generate(stays, 8)
    assert sum(begins_with_answer(text, [edit.target_new]) for text, edit in zip(texts, edits, strict=True)) >= least
    assert all(now.total > then.total for now, then in zip(after, before, strict=True))
    if name in ("rag", "memprompt"):
        assert kept == lm.generate(stays, 8)


def test_two_hops_on_the_bundled_model() -> None:
    lm, cases, mello = world(), errata.cases("world", limit=30), method("mello", encoder=TFIDF)
    hops = [
        probe for case in cases for probe in case.probes if probe.kind == "multi_hop" and probe.prompt.startswith("Q:")
    ]
    with mello.edit(lm, [edit for case in cases for edit in case.edits]).applied(lm) as edited:
        texts = edited.generate([probe.prompt for probe in hops], 8, until_answer=True)
    right = [begins_with_answer(text, probe.answers) for text, probe in zip(texts, hops, strict=True)]
    assert len(right) > 5 and sum(right) >= 0.8 * len(right)


# MeLLo -------------------------------------------------------------------------------------------

LIVES = Edit("Bob Ray lives in", "Bob Ray", "Oslo")
COUNTRY = Edit("Oslo is a city in", "Oslo", "Peru")
STEPS = {
    "": "Subquestion: Where does Bob Ray live?\nGenerated answer: Rome.\nRetrieved fact: anything at all",
    "Bob Ray lives in Oslo.": "Intermediate answer: Oslo.\nSubquestion: In which country is Oslo?\n"
    "Generated answer: Norway.\nRetrieved fact: anything",
    "Oslo is a city in Peru.": "Intermediate answer: Peru.\nFinal answer: Peru.\n\nQuestion: and so on",
}
HOPS = "Q: In which country does Bob Ray live? A:"


def hop(prompt: str) -> str:
    """A model that takes one question apart, and otherwise says no."""
    if "In which country does Bob Ray live?\n" not in prompt:
        return " no."
    return STEPS[prompt.rpartition("Retrieved fact: ")[2].strip() if "Retrieved" in prompt else ""]


def loop(*edits: Edit) -> Any:
    lm = tiny_lm("llama")
    lm.resources = Resources(templates={"loop": "", "fact": "Fact: {fact} "})
    return method("mello", encoder=TFIDF).edit(lm, edits).parts[0]


def test_a_question_of_two_hops() -> None:
    inner = Scripted(hop)
    asker = loop(LIVES, COUNTRY, EDIT).wrap(inner)
    assert asker.generate([HOPS]) == [" Peru.\n"]
    assert inner.prompts[-1] == (
        "Question: In which country does Bob Ray live?\n"
        "Subquestion: Where does Bob Ray live?\nGenerated answer: Rome.\n"
        "Retrieved fact: Bob Ray lives in Oslo.\nIntermediate answer: Oslo.\nSubquestion: In which country is Oslo?\n"
        "Generated answer: Norway.\nRetrieved fact: Oslo is a city in Peru.\n"
    )
    assert [line.split(", ")[1] for line in asker.explain([HOPS])[0]] == [f"{f.text!r}" for f in facts(LIVES, COUNTRY)]


def test_what_is_no_question_of_several_hops() -> None:
    prompts = ["Bob Ray lives in", "Where does Bob Ray live?", "Rome is", "Who is Cy?", ""]
    inner = Scripted(hop)
    assert loop(LIVES).wrap(inner).generate(prompts) == [" no."] * 5
    assert inner.prompts[-5:] == [f"Fact: Bob Ray lives in Oslo. {prompt}" for prompt in prompts[:2]] + prompts[2:]


def test_the_loops_answer_counts_though_it_used_no_fact() -> None:
    """A plain question is no less the loop's: what the model says there stands, right or wrong."""
    steps = "Subquestion: Where does Bob Ray live?\nGenerated answer: Rome.\nRetrieved fact:"
    final = "The retrieved fact does not contradict the generated answer. Intermediate answer: Rome\nFinal answer: Rome"
    inner = Scripted(lambda prompt: final if "Retrieved fact: " in prompt else steps)
    asker = loop(LIVES).wrap(inner)
    assert asker.generate(["Where does Bob Ray live?"]) == [" Rome.\n"]
    assert asker.explain(["Where does Bob Ray live?"]) == [[]]
    assert not any("Fact: Bob" in prompt and prompt.startswith("Fact") for prompt in inner.prompts)
    at_once = loop(LIVES).wrap(Scripted(lambda prompt: "Final answer: Lima\n"))
    assert at_once.generate(["Where does Bob Ray live?"]) == [" Lima.\n"]


def test_a_loop_without_end() -> None:
    ever = "Subquestion: Where does Bob Ray live?\nGenerated answer: Rome.\nRetrieved fact:"
    inner = Scripted(lambda prompt: ever if prompt.startswith("Question") else " no.")
    assert loop(LIVES).wrap(inner).generate([HOPS]) == [" no."]
    assert len(inner.prompts) == 6  # four rounds, the end of the last, and the plain prompt


def test_one_text_is_no_list_of_texts() -> None:
    asker: Any = loop(LIVES).wrap(Scripted())
    for ask in (asker.generate, asker.explain, PromptedLM(asker.part, Scripted()).generate):
        with pytest.raises(BadInput, match="expected a list of texts"):
            ask(HOPS)


def test_mello_gives_no_scores() -> None:
    asker = loop(LIVES).wrap(Scripted())
    with pytest.raises(Unsupported, match="generate"):
        asker.score([HOPS], ["Peru"])
    with pytest.raises(Unsupported, match="generate"):
        asker.next_logprobs([HOPS])
    with pytest.raises(Unsupported, match="generate"):
        asker.prolong([HOPS], [40])


def test_a_text_goes_on_behind_facts_for_as_many_tokens_as_without() -> None:
    lm = tiny_lm("gpt2")
    prompts = [EDIT.prompt, "Rome is"]
    count = lm.tokens.count
    totals = [count(prompt) + 6 for prompt in prompts]
    with method("ice", encoder=TFIDF).edit(lm, [EDIT]).applied(lm) as edited:
        texts = [text for text, _ in edited.prompted(prompts)]  # type: ignore[attr-defined]
        for how in ({}, {"top_k": 5, "seeds": [3, 4]}):
            expected = edited.inner.prolong(texts, [count(text) + 6 for text in texts], **how)  # type: ignore[attr-defined]
            assert edited.prolong(prompts, totals, **how) == expected and all(expected)
    with pytest.raises(Unsupported, match="no prolong"):
        FactPrompt(facts(EDIT), ALWAYS).wrap(Scripted()).prolong(prompts, totals)


# Three kinds of part -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(("rome", "grace", "rag"))), ids=lambda o: "-".join(o))
def test_three_kinds_in_any_order(order: tuple[str, ...], tmp_path: Any) -> None:
    lm = tiny_lm("llama")
    made = {"rome": {"contexts": 0}, "grace": {"steps": 30}, "rag": {"encoder": TFIDF}}
    edits, patch = dict(zip(("rome", "grace", "rag"), EDITS, strict=True)), Patch()
    for name in order:
        m = method(name, **made[name])
        patch = m.edit(lm, [edits[name]], m.prepare(lm, TEXTS), patch)
    assert [edit.id for edit in patch.edits] == [edits[name].id for name in order] and len(patch.parts) == 3
    patch = Patch.load(patch.save(tmp_path / "p"))
    prompts = [edit.prompt for edit in EDITS]
    before = [score.total for score in lm.score(prompts, [edit.target_new for edit in EDITS])]
    with patch.applied(lm) as edited:
        after = [score.total for score in edited.score(prompts, [edit.target_new for edit in EDITS])]
        why = edited.explain(prompts)
    assert after[0] > before[0] and after[1] > before[1] and after[2] != before[2]
    assert why[0] == [] and why[1][0].startswith("grace: edit") and why[2][0].startswith("rag: edit")


# The newest of two edits of one fact, in whatever words ---------------------------------------------


def test_a_fact_that_a_newer_one_contradicts_in_other_words_is_not_told() -> None:
    newer = Edit("Home of Ann Lee is", "Ann Lee", "Lima")
    part = FactPrompt(facts(EDIT, EDITS[1], newer), WHERE_NAMED | {"reworded": {EDIT.id: [newer.id]}})
    assert part.in_use == [1, 2]
    assert part.entries()[0]["in use"] == "a newer one"
    assert part.without(newer.id) == FactPrompt(facts(EDIT, EDITS[1]), WHERE_NAMED)
    assert part.without(EDIT.id) == FactPrompt(facts(EDITS[1], newer), WHERE_NAMED)
    again = FactPrompt(facts(EDIT, newer, EDIT), WHERE_NAMED | {"reworded": {EDIT.id: [newer.id], newer.id: [EDIT.id]}})
    assert again.in_use == [2]  # which was made once more


@pytest.mark.parametrize("name", ["ice", "rag", "memprompt"])
def test_the_newest_edit_of_a_fact_is_told_in_whatever_words(name: str) -> None:
    lm, made = world(), method(name, encoder="tfidf")
    state = made.prepare(lm) if made.needs_prepare else None
    case = next(c for c in errata.cases("world", limit=5) if any(p.kind == "paraphrase" for p in c.probes))
    older = case.edits[0]
    reworded = next(p.prompt for p in case.probes if p.kind == "paraphrase")
    newer = Edit(reworded, older.subject, older.target_true or "")
    other = next(p for p in case.probes if p.kind == "same_subject")
    beside = Edit(other.prompt, older.subject, "Nowhere")
    patch = made.edit(lm, [newer, beside], state, made.edit(lm, [older], state))
    (part,) = patch.of_kind(FactPrompt)
    assert part.settings["reworded"] == {older.id: [newer.id]} and part.in_use == [1, 2]
    assert made.edit(lm, [older, newer, beside], state) == patch  # and in one call
    assert patch.without(newer.id) == made.edit(lm, [older, beside], state)
    back = made.edit(lm, [older], state, patch)
    assert back.of_kind(FactPrompt)[0].in_use == [2, 3]
