"""What methods keep that leave the weights alone and remember their edits: the same answer however it is asked."""

from pathlib import Path
from typing import Any

import pytest
from conftest import EDIT, EDITS, TEXTS, data_for, quick, tiny_lm

from errata.methods.registry import METHODS, method
from errata.methods.state import State
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

MEMORIES = [name for name in METHODS if quick(name).tags.memory]
MANY = [
    Edit(f"{who} {what}", who, where)
    for who in ("Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn", "The old king")
    for what, where in (("was born in", "Lima"), ("lives in", "Oslo"), ("went by night to", "Paris"), ("met", "Rome"))
]
PROMPTS = [EDIT.prompt, "Rome", "The mayor is Cy Moor of", "A baker lives in", "Bob Ray lives in"]


@pytest.fixture(scope="module", params=MEMORIES)
def made(request: pytest.FixtureRequest) -> tuple[Any, Any, State, Patch]:
    lm, m = tiny_lm("llama"), quick(request.param)
    state = m.prepare(lm, data_for(m)) if m.needs_prepare else State()
    return lm, m, state, m.edit(lm, EDITS, state)


Made = tuple[Any, Any, State, Patch]


def test_alone_and_in_a_batch(made: Made) -> None:
    lm, _, _, patch = made
    targets = [" Oslo", " New York", " Rome", " Lima", " Paris"]
    with patch.applied(lm) as edited:
        assert edited.generate(PROMPTS, 6) == [edited.generate([prompt], 6)[0] for prompt in PROMPTS]
        together = [score.total for score in edited.score(PROMPTS, targets)]
        alone = [edited.score([p], [t])[0].total for p, t in zip(PROMPTS, targets, strict=True)]
        assert together == pytest.approx(alone, abs=1e-4)


def test_a_fold_of_twenty_survives_its_file(made: Made, tmp_path: Path) -> None:
    lm, m, state, _ = made
    patch = EMPTY
    for at in range(0, len(MANY), 5):
        patch = Patch.load(m.edit(lm, MANY[at : at + 5], state, patch).save(tmp_path / "p.safetensors"))
    assert patch.edits == MANY and len(patch.parts) == 1
    assert len(patch.parts[0].entries()) == len(MANY)
    prompts, targets = [e.prompt for e in MANY], [e.target_new for e in MANY]
    before = sum(score.total for score in lm.score(prompts, targets))
    with patch.applied(lm) as edited:
        after = sum(score.total for score in edited.score(prompts, targets))
        assert after != before if m.tags.reads_context else after > before


@pytest.mark.parametrize("name", MEMORIES)
def test_encoder_decoders(name: str, tmp_path: Path) -> None:
    """A model that reads the question in its encoder and answers in its decoder."""
    lm = tiny_lm("t5")
    m = quick(name)
    state = m.prepare(lm, data_for(m)) if m.needs_prepare else State()
    patch = m.edit(lm, [EDITS[1]], state, m.edit(lm, [EDIT], state))
    prompts, targets = [EDIT.prompt, EDITS[1].prompt], [EDIT.target_new, EDITS[1].target_new]
    before = [score.total for score in lm.score(prompts, targets)]
    with patch.applied(lm) as edited:
        after = [score.total for score in edited.score(prompts, targets)]
        assert all(now != then if m.tags.reads_context else now > then for now, then in zip(after, before, strict=True))
        alone = [edited.score([p], [t])[0].total for p, t in zip(prompts, targets, strict=True)]
        assert after == pytest.approx(alone, abs=1e-4)
        assert edited.generate([*prompts, "Rome"], 5)[:2] == [edited.generate([p], 5)[0] for p in prompts]
        assert all(edited.explain(prompts))
    with Patch.load(patch.save(tmp_path / "p")).applied(lm) as loaded:
        assert [score.total for score in loaded.score(prompts, targets)] == after


def test_beside_another_methods_patch(made: Made, tmp_path: Path) -> None:
    lm, m, state, _ = made
    rome: Any = method("rome", contexts=0)
    prior = rome.edit(lm, [EDITS[1]], rome.prepare(lm, TEXTS))
    patch = m.edit(lm, [EDIT], state, prior)
    assert patch.parts[0] == prior.parts[0] and len(patch.parts) == 2
    assert Patch.load(patch.save(tmp_path / "p")) == patch
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as edited:
        after = edited.score([EDIT.prompt], [EDIT.target_new])[0].total
        assert after != before if m.tags.reads_context else after > before
