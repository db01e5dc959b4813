"""Language patches: rules in words, the gate, the mixture, and the wrapper around them."""

from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, EDIT, EDITS, quick, tiny_lm

import errata
from errata.answers import begins_with_answer
from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.registry import method
from errata.methods.trained.examples import examples_of
from errata.methods.trained.routed.language_gate import Gate, read
from errata.methods.trained.routed.language_part import LanguagePatches, Open, PatchedLM, mixed
from errata.methods.trained.routed.language_questions import Questions
from errata.methods.trained.routed.language_routing import MOST
from errata.methods.trained.routed.language_rules import Rule, object_of, rule_of
from errata.model.lm import LM
from errata.patch.patch import Patch
from errata.subjects import words_of
from errata.types import Edit, Score

BORN = Edit("If {} was born in Rome, {} lives in", "a person", "Oslo")
PROMPTS = [EDIT.prompt, "Bob Ray lives in", "A baker met", ""]
TARGETS = ["Oslo", "Rome", "New York", "Rome"]


@cache
def made(name: str = "gpt2") -> tuple[Any, Any, Any]:
    lm, m = tiny_lm(name), quick("language-patches")
    return lm, m, m.prepare(lm, CASES)


def patched(*edits: Edit, name: str = "gpt2") -> Patch:
    lm, m, state = made(name)
    return m.edit(lm, list(edits), state)


def part_of(patch: Patch) -> LanguagePatches:
    (part,) = patch.of_kind(LanguagePatches)
    return part


# Rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "subject", "rule"),
    [
        ("{} speaks", "Ann Lee", Rule("{} speaks", "Ann Lee")),
        ("If {} was born in Rome, {} speaks", "a person", Rule("{} speaks", None, "{} was born in Rome")),
        (
            "If {}'s home is Rome, then the job of {} is",
            "a person",
            Rule("the job of {} is", None, "{}'s home is Rome"),
        ),
        ("If {} is from Rome, Italy, {} is", "someone", Rule("{} is", None, "{} is from Rome, Italy")),
        ("If {} was born in Rome, Q: Where is {}? A:", "x", Rule("Q: Where is {}? A:", None, "{} was born in Rome")),
        ("If {} was born in Rome, {} speaks", "Ann", Rule("If Ann was born in Rome, {} speaks", "Ann")),
        ("If it rains, {} speaks", "a person", Rule("If it rains, {} speaks", "a person")),
    ],
)
def test_what_an_edit_says(prompt: str, subject: str, rule: Rule) -> None:
    edit = Edit(prompt, subject, "Russian")
    assert rule_of(edit.prompt, edit.subject, edit.at) == rule
    assert Rule("the job of {} is", None).about("Ann Lee") == "The job of Ann Lee is"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("If Rome is the home of {}, {} speaks", "ends with its subject"),
        ("If {} was not born in Rome, {} speaks", "not one plain statement"),
        ("If {} wasn't born in Rome, {} speaks", "not one plain statement"),
    ],
)
def test_conditions_that_no_gate_can_look_up(prompt: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.methods.trained.routed.language_rules.WORDS", 1)  # a random model knows no statement
    with pytest.raises(BadInput, match=says):
        patched(Edit(prompt, "a person", "Russian"))


@pytest.mark.parametrize(
    ("clause", "ends"),
    [
        ("{} was born in Port Dudal", "Port Dudal"),
        ("{}'s employer is Gresox Labs", "Gresox Labs"),
        ("{} has mastered the oboe", "oboe"),
        ("{} thinks and dreams in Korean", "Korean"),
        ("{} was born in Rome and works as a baker", None),
    ],
)
def test_where_a_conditions_object_begins(clause: str, ends: str | None) -> None:
    """Seen on the bundled model's persons, whatever the object."""
    from errata.world.facts import world

    persons = [subject for subject in world().subjects("train") if " " in subject][:24]
    edit = Edit(f"If {clause}, {{}} speaks", "a person", "Greek")
    if ends is not None:
        assert object_of(world_model(), edit, clause, persons) == ends
        return
    with pytest.raises(BadInput, match="not one plain statement"):
        object_of(world_model(), edit, clause, persons)


@cache
def world_model() -> Any:
    return errata.load("world")


# The mixture ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [(1, 2, 3), (1, 2), (1, 0, 2), (0, 2, 1), (1,)])
def test_a_mixture_of_texts(target: tuple[int, ...]) -> None:
    """p(y₁ … yⱼ) = g I(y₁ … yⱼ) + (1 − g) f(y₁ … yⱼ), with I that says 1 2 and then goes on as f."""
    f, g, answer = [0.2, 0.05, 0.4][: len(target)], 0.7, [1, 2]
    score = mixed(Score(target, tuple(np.log(f)), (9,) * len(target)), Open(0, g, answer))
    says = [1.0 if y == a else 0.0 for y, a in zip(target, answer, strict=False)] + f[len(answer) :]
    whole = [g * np.prod(says[:j]) + (1 - g) * np.prod(f[:j]) for j in range(1, len(target) + 1)]
    assert np.cumsum(score.logprobs) == pytest.approx(np.log(whole))
    kept = next((j for j, (y, a) in enumerate(zip(target, answer, strict=False)) if y != a), len(answer) - 1) + 1
    assert score.argmax == tuple([*answer[:kept], 9, 9, 9][: len(target)])


@pytest.mark.parametrize("name", ["gpt2", "llama sentencepiece", "t5"])
def test_the_verbs_agree(name: str) -> None:
    lm, patch = made(name)[0], patched(EDITS[1], name=name)
    prompt = EDITS[1].prompt
    with patch.applied(lm) as edited:
        logprobs = edited.next_logprobs([prompt])[0]
        (score,) = edited.score([prompt], [EDITS[1].target_new])
        (text,), (short,) = edited.generate([prompt], 8), edited.generate([prompt], 1)
        longer = edited.prolong([prompt], [lm.tokens.count(prompt) + 8])
    assert np.logaddexp.reduce(logprobs) == pytest.approx(0, abs=1e-4)
    assert score.logprobs[0] == pytest.approx(logprobs[score.tokens[0]], abs=1e-4)
    assert score.correct and logprobs.argmax() == score.tokens[0]
    assert text.strip().startswith("New York") and longer == [text]
    assert text.startswith(short) and lm.tokens.continuation(lm.tokens.prompt(prompt), score.tokens[:1]) == short


def test_prolong_counts_the_answer() -> None:
    lm, patch = made()[0], patched(EDIT)
    n, long = lm.tokens.count(EDIT.prompt), len(lm.tokens.target(EDIT.prompt, EDIT.target_new))
    with patch.applied(lm) as edited:
        texts = [edited.prolong([EDIT.prompt], [n + more])[0] for more in (-1, 0, long, long + 3)]
        drawn = edited.prolong([EDIT.prompt, "A baker met"], [n + long + 3] * 2, top_k=3, seeds=[4, 5])
    assert texts[:3] == ["", "", " Oslo"] and texts[3].startswith(" Oslo") and len(texts[3]) > len(" Oslo")
    assert drawn[0].startswith(" Oslo")
    assert drawn[1:] == lm.prolong(["A baker met"], [n + long + 3], top_k=3, seeds=[5])


def test_under_no_patch_the_model_answers_bit_for_bit() -> None:
    lm, patch = made()[0], patched(EDIT)
    rest = PROMPTS[1:]
    before = lm.generate(rest, 6), lm.score(rest, TARGETS[1:]), lm.next_logprobs(rest)
    with patch.applied(lm) as edited:
        assert edited.generate(PROMPTS, 6)[1:] == before[0]
        assert edited.score(rest, TARGETS[1:]) == before[1]
        assert np.array_equal(edited.next_logprobs(rest), before[2])
        assert edited.explain(PROMPTS) == [
            ["language-patches: edit " + f"{EDIT.id}, {EDIT.prompt!r}, gate 1.00"],
            [],
            [],
            [],
        ]
        for prompts in (PROMPTS, PROMPTS[:1]):
            with pytest.raises(BadInput, match="at least 1"):
                edited.generate(prompts, 0)


# The gate ------------------------------------------------------------------------------------------


def gated(monkeypatch: pytest.MonkeyPatch, rows: list[list[float]], *edits: Edit) -> list[int | None]:
    part = part_of(patched(*edits))
    monkeypatch.setattr(PatchedLM, "gates", lambda self, prompts: np.array(rows))
    found = PatchedLM(part, made()[0]).opened(["Ann Lee was born in"] * len(rows))
    return [one and one.patch for one in found]


def test_the_highest_gate_wins_and_of_equals_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[0.9, 0.6, 0.2], [0.98, 0.3, 0.96], [0.5, 0.4, 0.1], [0.51, 0.0, 0.0]]
    assert gated(monkeypatch, rows, *EDITS) == [0, 2, None, 0]


def test_a_closed_gate_closes_no_other_and_a_tenth_is_equal_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[0.54, 0.46, 0.0], [0.66, 0.58, 0.0], [0.84, 0.745, 0.63], [0.98, 0.85, 0.1]]
    assert gated(monkeypatch, rows, *EDITS) == [0, 1, 1, 0]


def test_a_later_edit_of_one_prompt_wins_and_can_be_taken_out() -> None:
    lm, m, state = made()
    one = m.edit(lm, [EDIT, EDITS[1]], state)
    later = Edit(EDIT.prompt, EDIT.subject, "Lima")
    both = m.edit(lm, [later], state, one)
    with both.applied(lm) as edited:
        assert edited.generate([EDIT.prompt], 4)[0].startswith(" Lima")
    assert both.without(later.id) == one
    assert [line["then"] for line in part_of(both).entries()] == ["Oslo", "New York", "Lima"]


def test_an_edit_joins_the_outermost_patches_that_it_fits() -> None:
    lm, m, state = made()
    later = Edit(EDIT.prompt, EDIT.subject, "Lima")
    strict = replace(m, threshold=0.9).edit(lm, [EDITS[2]], state)
    for two, joins in ((patched(EDITS[1]) + patched(EDIT), 1), (patched(EDIT) + strict, 0)):
        parts = m.edit(lm, [later], state, two).of_kind(LanguagePatches)
        lengths = [1, 1]
        lengths[joins] += 1
        assert [len(part.log) for part in parts] == lengths
    with m.edit(lm, [later], state, patched(EDITS[1]) + patched(EDIT)).applied(lm) as edited:
        assert edited.generate([EDIT.prompt], 4)[0].startswith(" Lima")


def test_a_condition_answers_its_own_prompt() -> None:
    lm, patch = made()[0], patched(BORN)
    with patch.applied(lm) as edited:
        assert edited.generate([BORN.prompt], 4)[0].startswith(" Oslo")
    assert part_of(patch).entries()[0]["if"] == "the subject was born in Rome"


def test_a_gate_reads_words_at_their_last_tokens() -> None:
    lm = tiny_lm("gpt2")
    (one,) = read(lm, ["The mayor is Cy Moor's of"], (0, 1))
    assert [one.text[a:b] for a, b in one.words] == ["The", "mayor", "is", "Cy", "Moor", "s", "of"]
    at = one.text.index("Cy")
    span = one.span_of(at, "Cy Moor")
    assert span is not None and one.subject(span) == "Cy Moor" and one.span_of(at, "Cy Moo") is None
    ids = lm.tokens.prompt(one.text)
    block = lm.sites.layer[1]
    column = lm.tokens.last_of_subject(one.text, "Cy Moor")
    plain = lm.read([ids], [[column, len(ids) - 1]], [(block, "out")])[block, "out"]
    wide = torch.nn.functional.layer_norm(plain, plain.shape[-1:])
    assert torch.allclose(one.hidden[[4, 7]][:, plain.shape[-1] :], wide, atol=1e-5)
    assert words_of("北京 of Ann") == [(0, 1), (1, 2), (3, 5), (6, 9)]


def test_an_untrained_gate_believes_what_the_model_does() -> None:
    gate = Gate.drawn(8, 4)
    p = torch.tensor([0.9, 0.5, 0.01])
    assert torch.allclose(torch.sigmoid(gate.holds(p.log())), p, atol=1e-5)
    assert bool(gate.holds(torch.zeros(1)).isfinite())
    a = torch.randn(2, 8)
    assert gate.asks(a, a).tolist() == [4.0, 4.0] and bool((gate.asks(a, -a) < 4).all())


def test_the_questions_that_cases_give() -> None:
    lm = tiny_lm("gpt2")
    examples = examples_of(lm, "language-patches", CASES, kinds=("same_subject",))[:2]
    asked = Questions.of(lm, examples, (0, 1), Random(0))
    subjects = [example.edit.subject for example in examples]
    assert [one.subject(span) for one, span in asked.known] == [s for s in subjects for _ in range(4)]
    first = [one.end for one, _ in asked.known[:4]]  # the edit's prompt, two other phrasings, another fact
    pairs = [(0, 1, 1.0), (0, 2, 1.0), (0, 3, 0.0), (1, 2, 1.0), (1, 3, 0.0), (2, 3, 0.0)]
    assert asked.same.tolist() == [same for _, _, same in pairs] * 2
    for k, (i, j, _) in enumerate(pairs):
        assert torch.equal(asked.pairs[0][k], first[i]) and torch.equal(asked.pairs[1][k], first[j])
    assert asked.true.tolist() == [1.0, 0.0, 1.0, 0.0] and len(asked.logprobs) == 4
    fact = examples[0].keep[0]
    assert asked.logprobs[0] == pytest.approx(lm.score([fact.prompt], [fact.answer])[0].total, abs=1e-4)


def test_what_is_too_long_to_read_is_under_no_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, patch = made()[0], patched(BORN)
    monkeypatch.setattr(Gate, "asks", lambda self, a, b: torch.full((1,), 9.0))
    monkeypatch.setattr(Gate, "holds", lambda self, p: torch.full((len(p),), 9.0))
    with patch.applied(lm) as edited:
        assert edited.gates(["Ann met"]).tolist() == [[pytest.approx(MOST, abs=1e-3)]]
        monkeypatch.setattr(lm.tokens, "limit", lm.tokens.count("Ann was born in"))
        assert edited.gates(["Ann met"]).tolist() == [[0.0]]


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_behind_a_long_prompt_an_answer_is_cut_to_the_room_that_is_left(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Edit("Ann Lee, who met a baker by night in Rome, lives in", "Ann Lee", "New York by the sea")
    lm, patch = made(name)[0], patched(long, name=name)
    ids = lm.tokens.target(long.prompt, long.target_new)
    room = 2 if name == "gpt2" else len(ids)
    with patch.applied(lm) as edited:
        limit = lm.tokens.count(long.prompt) + 1 if name == "gpt2" else lm.tokens.count(long.prompt)
        monkeypatch.setattr(lm.tokens, "limit", limit)
        (score,), (text,) = edited.score([long.prompt], ["New"]), edited.generate([long.prompt], 12)
        assert edited.opened([long.prompt])[0].ids == ids[:room]
        assert score.argmax[0] == ids[0] == edited.next_logprobs([long.prompt])[0].argmax()
        assert edited.explain([long.prompt]) != [[]]
    assert text == lm.tokens.continuation(lm.tokens.prompt(long.prompt), ids[:room])


# Whole groups, on the bundled model ----------------------------------------------------------------


@cache
def trained() -> tuple[Any, Any, Any]:
    lm = world_model()
    m = method("language-patches", steps=60, check_every=60)
    return lm, m, m.prepare(lm, lm.resources.draw(0))


def test_a_condition_changes_those_who_meet_it_and_nobody_else() -> None:
    from errata.world.facts import world

    lm, m, state = trained()
    facts, people = world().facts, [p for p in world().subjects("validation") if p in world().facts["born_in"]]
    meeting = [p for p in people if facts["speaks"][p] == "Korean"]
    others = [p for p in people if p not in meeting][:8]
    edit = Edit("If {}'s mother tongue is Korean, {} works as a", "a person", "pilot")
    patch = m.edit(lm, [edit], state)
    assert part_of(patch).objects == ("Korean",)
    ways = ["{} works as a", "{}'s profession is", "Q: What is the job of {}? A:", "The occupation of {} is"]
    asked = [way.replace("{}", p) for way in ways for p in meeting]
    rest = [f"{p} {what}" for p in meeting for what in ("was born in", "plays the")]
    rest += [way.replace("{}", p) for way in ways[1:3] for p in others]
    before = lm.generate(rest, 8)
    with patch.applied(lm) as edited:
        replies = edited.generate(asked, 8)
        after = edited.generate(rest, 8)
    assert meeting
    assert sum(begins_with_answer(reply, ["pilot"]) for reply in replies) >= 0.85 * len(replies)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 0.04 * len(rest)


# What is refused, and what stands beside it ---------------------------------------------------------


def test_cases_without_the_subjects_other_facts() -> None:
    bare = [replace(c, probes=tuple(p for p in c.probes if p.kind != "same_subject")) for c in CASES]
    with pytest.raises(BadInput, match="same_subject"):
        quick("language-patches").prepare(tiny_lm("gpt2"), bare)


def test_another_gate_or_threshold_in_prior() -> None:
    lm, m, state = made()
    with pytest.raises(BadInput, match="another gate or threshold"):
        replace(m, threshold=0.9).edit(lm, [EDITS[1]], state, patched(EDIT))
    with pytest.raises(BadInput, match="layers lie within"):
        replace(m, layers=(7,)).prepare(lm, CASES)


def test_a_file_that_makes_no_sense() -> None:
    part = part_of(patched(EDIT, BORN))
    assert part.objects[0] == "" and "a person was born in Rome".endswith(part.objects[1]) and part.objects[1]
    part.check_content()
    for broken in (replace(part, objects=("", "Oslo")), replace(part, objects=("in", "Rome"))):
        with pytest.raises(BadInput, match="does not end the clause"):
            broken.check_content()
    with pytest.raises(BadInput, match="wide"):
        replace(part, look=part.look[:, 1:]).check_content()
    with pytest.raises(WrongModel, match="blocks"):
        replace(part, layers=(0, 9)).check_model(made()[0])


def test_around_and_inside_other_wrappers() -> None:
    lm, m, state = made()
    rag = method("ice", encoder="tfidf")
    inside = m.edit(lm, [EDIT], state, rag.edit(lm, [EDITS[1]]))
    outside = rag.edit(lm, [EDITS[1]], prior=m.edit(lm, [EDIT], state))
    for patch in (inside, outside):
        with patch.applied(lm) as edited:
            assert edited.generate(["Ann Lee was born in"], 4)[0].startswith(" Oslo") or patch is outside
            assert len(edited.score(PROMPTS, TARGETS)) == 4

    class Remote(LM):
        def generate(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[str]:
            return [" Rome." for _ in prompts]

    with pytest.raises(Unsupported, match="hidden states, and Remote"):
        part_of(patched(EDIT)).wrap(Remote()).generate([EDIT.prompt])


def test_an_encoder_is_read_whole() -> None:
    lm = tiny_lm("t5")
    rows = [lm.tokens.prompt(text) for text in ("Ann Lee was born in", "Ann Lee was born by night")]
    site = (lm.sites.prompt_stack.layer[1], "out")
    together = lm.read(rows, [[len(row) - 1] for row in rows], [site])[site]
    alone = [lm.read([row], [[len(row) - 1]], [site])[site] for row in rows]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_tokens_tell_where_parts_end() -> None:
    for name in ("gpt2", "llama sentencepiece"):
        tokens = tiny_lm(name).tokens
        text = "The mayor is Cy Moor of"
        ends = [end for _, end in words_of(text)]
        words = [text[a:b] for a, b in words_of(text)]
        assert tokens.last_of_parts(text, ends) == [tokens.last_of_subject(text, word) for word in words]
