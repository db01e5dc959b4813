"""Steering: the direction, where it acts, and what strength 0 is."""

import random
from pathlib import Path

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
    said, scores = lm.generate(PROMPTS, 6), lm.score(PROMPTS, [" Oslo"] * 3)
    with patch.applied(lm) as edited:
        assert edited.generate(PROMPTS, 6) == said
        assert edited.score(PROMPTS, [" Oslo"] * 3) == scores


def test_the_direction_is_the_mean_difference() -> None:
    lm = tiny_lm("gpt2")
    steering = method("steering", layers=(1, 2), strength=2.0)
    patch = steering.edit(lm, EDITS[:2])
    for part, layer in zip(patch.of_kind(SteeringVector), (1, 2), strict=True):
        found, sizes = [], []
        for edit, pair in zip(EDITS[:2], part.pairs, strict=True):
            assert pair.away == edit.target_true or edit.target_true is None
            told = [lm.tokens.prompt(f"Fact: {edit.prompt} {its}. {edit.prompt}") for its in (pair.towards, pair.away)]
            site = (lm.sites.layer[layer], "out")
            h = [lm.read([row], [[len(row) - 1]], [site])[site][0] for row in told]
            found.append(h[0] - h[1])
            sizes.append(h[1].norm())
        mean = torch.stack(found).mean(0)
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
        assert [its.total for its in after] != [its.total for its in before]


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
        assert first.pairs == second.pairs
        assert torch.allclose(first.vector, second.vector, atol=1e-4)  # read in batches of other shapes


def test_a_whole_class_of_answers_moves_and_the_others_stay() -> None:
    lm, its, rng = errata.load("world"), world(), random.Random(0)
    speaks = RELATIONS["speaks"]
    others = [person for person, language in sorted(its.facts["speaks"].items()) if language != "French"]
    rng.shuffle(others)
    edits = [Edit(rng.choice(speaks.first), who, "French", its.facts["speaks"][who]) for who in others[:20]]
    asked = [ask(rng.choice(speaks.phrasings), who) for who in others[20:60]]
    kept = [
        (ask(rng.choice(RELATIONS[name].phrasings), who), its.facts[name][who])
        for name in ("born_in", "works_for", "profession", "plays", "hq", "founder", "capital")
        for who in rng.sample(sorted(its.facts[name]), 15)
    ]

    def share(said: list[str], wanted: list[str]) -> float:
        return sum(begins_with_answer(text, [its]) for text, its in zip(said, wanted, strict=True)) / len(said)

    with errata.method("steering").edit(lm, edits).applied(lm) as edited:
        assert share(edited.generate(asked, 8, until_answer=True), ["French"] * len(asked)) >= 0.3
        said = edited.generate([prompt for prompt, _ in kept], 8, until_answer=True)
        assert share(said, [true for _, true in kept]) >= 0.95
        forced = [its.total for its in edited.score(asked, ["French"] * len(asked))]
    with errata.method("steering", strength=-1.0).edit(lm, edits).applied(lm) as edited:
        away = [its.total for its in edited.score(asked, ["French"] * len(asked))]
    base = [its.total for its in lm.score(asked, ["French"] * len(asked))]
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
