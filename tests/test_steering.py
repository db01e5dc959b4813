"""Steering: the direction, where it acts, and what strength 0 is."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, tiny_lm

import errata
from errata.answers import begins_with_answer
from errata.errors import BadInput, Unsupported
from errata.methods.registry import method
from errata.methods.steering import SHARE, SteeringVector
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit
from errata.world.facts import RELATIONS, world
from errata.world.text import ask

PROMPTS = [EDIT.prompt, "Rome", "A baker lives in"]


def test_strength_zero_is_the_base_model() -> None:
    lm = tiny_lm("llama")
    patch = method("steering", strength=0.0).edit(lm, EDITS)
    texts, scores = lm.generate(PROMPTS, 6), lm.score(PROMPTS, [" Oslo"] * 3)
    with patch.applied(lm) as edited:
        assert edited.generate(PROMPTS, 6) == texts
        assert edited.score(PROMPTS, [" Oslo"] * 3) == scores


def test_the_direction_is_the_mean_difference() -> None:
    lm = tiny_lm("gpt2")
    steering = method("steering", layers=(1, 2), strength=2.0)
    patch = steering.edit(lm, EDITS[:2])
    for part, layer in zip(patch.of_kind(SteeringVector), (1, 2), strict=True):
        differences, sizes = [], []
        for edit, record in zip(EDITS[:2], part.log, strict=True):
            assert record.target_true == edit.target_true or edit.target_true is None
            targets = (record.target_new, record.target_true)
            rows = [lm.tokens.prompt(f"Fact: {edit.prompt} {target}. {edit.prompt}") for target in targets]
            site = (lm.sites.layer[layer], "out")
            h = [lm.read([row], [[len(row) - 1]], [site])[site][0] for row in rows]
            differences.append(h[0] - h[1])
            sizes.append(h[1].norm())
        mean = torch.stack(differences).mean(0)
        assert torch.allclose(part.vector, 2 * SHARE * torch.stack(sizes).mean() * mean / mean.norm(), atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "openai-gpt"])  # with a cache, and without
def test_acts_from_the_prompts_end_on(arch: str) -> None:
    lm = tiny_lm(arch)
    patch = method("steering", layers=(1,), strength=3.0).edit(lm, [EDIT])
    before = lm.score(["Ann", "Bob"], [" Lee", " Ray"])
    with patch.applied(lm) as edited:
        assert edited.generate(PROMPTS, 5) == [edited.generate([prompt], 5)[0] for prompt in PROMPTS]
        (score,) = edited.score([EDIT.prompt], [" Oslo"])
        nexts = edited.next_logprobs([EDIT.prompt])[0]
        assert score.logprobs[0] == pytest.approx(nexts[score.tokens[0]], abs=1e-4)
        after = edited.score(["Ann", "Bob"], [" Lee", " Ray"])
        assert [score.total for score in after] != [score.total for score in before]


def test_an_edit_taken_out_was_never_made() -> None:
    lm = tiny_lm("llama")
    steering = method("steering")
    patch = steering.edit(lm, EDITS)
    folded = steering.edit(lm, EDITS[1:], None, steering.edit(lm, EDITS[:1]))
    for one, two in (
        (patch.without(EDITS[1].id), steering.edit(lm, [EDITS[0], *EDITS[2:]])),
        (folded, patch),
    ):
        (first,), (second,) = one.of_kind(SteeringVector), two.of_kind(SteeringVector)
        assert first.log == second.log
        assert torch.allclose(first.vector, second.vector, atol=1e-4)  # read in batches of other shapes


def test_an_edit_that_a_newer_one_contradicts_no_longer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, steering = tiny_lm("llama"), method("steering", layers=(1, 2))
    newer, twice = Edit("The birthplace of {} is", EDIT.subject, "Lima"), Edit(EDITS[1].prompt, "Bob Ray", "Paris")
    asked: list[Any] = []

    def same_fact(lm: Any, pairs: Any, patch: Patch | None) -> list[bool]:
        asked.append((pairs, patch))
        return [True for _ in pairs]

    monkeypatch.setattr("errata.methods.memory.reworded.same_fact", same_fact)
    first = steering.edit(lm, EDITS)
    patch = steering.edit(lm, [twice], None, steering.edit(lm, [newer], None, first))
    left = steering.edit(lm, [EDITS[2], newer, twice])
    assert len(asked) == 2 and all(given == first for _, given in asked)
    assert [(old.prompt, new.prompt) for pairs, _ in asked for old, new in pairs] == [(EDIT.prompt, newer.prompt)] * 2
    assert Patch.load(patch.save(tmp_path / "p.safetensors")) == patch
    back = patch.without(newer.id).without(twice.id)
    for part, rest, whole, given_back in zip(
        *(p.of_kind(SteeringVector) for p in (patch, left, first, back)), strict=True
    ):
        assert torch.allclose(part.vector, rest.vector, atol=1e-4)
        assert [entry["in use"] for entry in part.entries()] == ["a newer one"] * 2 + ["yes"] * 3
        assert given_back == whole and torch.equal(given_back.vector, whole.vector)
        assert "reworded" not in given_back.config() and part.config()["reworded"] == {EDIT.id: [newer.id]}
        with pytest.raises(BadInput, match="reworded"):
            type(part).build({**part.config(), "reworded": [EDIT.id]}, part.tensors())


def test_a_whole_class_of_answers_moves_and_the_others_stay() -> None:
    lm, facts, rng = errata.load("world"), world(), random.Random(0)
    speaks = RELATIONS["speaks"]
    others = [person for person, language in sorted(facts.facts["speaks"].items()) if language != "French"]
    rng.shuffle(others)
    edits = [Edit(rng.choice(speaks.first), who, "French", facts.facts["speaks"][who]) for who in others[:20]]
    questions = [ask(rng.choice(speaks.phrasings), who) for who in others[20:60]]
    kept = [
        (ask(rng.choice(RELATIONS[name].phrasings), who), facts.facts[name][who])
        for name in ("born_in", "works_for", "profession", "plays", "hq", "founder", "capital")
        for who in rng.sample(sorted(facts.facts[name]), 15)
    ]

    def share(texts: list[str], answers: list[str]) -> float:
        pairs = zip(texts, answers, strict=True)
        return sum(begins_with_answer(text, [answer]) for text, answer in pairs) / len(texts)

    with errata.method("steering").edit(lm, edits).applied(lm) as edited:
        assert share(edited.generate(questions, 8, until_answer=True), ["French"] * len(questions)) >= 0.3
        texts = edited.generate([prompt for prompt, _ in kept], 8, until_answer=True)
        assert share(texts, [true for _, true in kept]) >= 0.95
        forced = [score.total for score in edited.score(questions, ["French"] * len(questions))]
    with errata.method("steering", strength=-1.0).edit(lm, edits).applied(lm) as edited:
        away = [score.total for score in edited.score(questions, ["French"] * len(questions))]
    base = [score.total for score in lm.score(questions, ["French"] * len(questions))]
    assert sum(forced) > sum(base) > sum(away)


def test_what_is_refused(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(BadInput, match="within 0 to 3"):
        method("steering", layers=(4,)).edit(lm, [EDIT])
    for context in ("no field", "{prompt} {fact}", "{fact}. {prompt}!", "{fact} {other} {prompt}", "{fact} {"):
        with pytest.raises(BadInput, match="context"):
            method("steering", context=context)
    patch = method("steering").edit(lm, [EDIT])
    with pytest.raises(BadInput, match="strength"):
        method("steering", strength=2.0).edit(lm, [EDITS[1]], None, patch)
    with pytest.raises(Unsupported, match="encoder"):
        method("steering").edit(tiny_lm("t5"), [EDIT])
    assert Patch.load(patch.save(tmp_path / "p")) == patch != EMPTY
