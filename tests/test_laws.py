"""The laws that every method keeps, over every method and three architectures (design: laws)."""

from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, EDIT, EDITS, data_for, quick, same_weights, tiny_lm, weights

import errata
from errata.cli.measure import eval_
from errata.errors import BadInput, InForce, NeedsPrepare, Unsupported, WrongModel
from errata.methods.base import Method
from errata.methods.registry import METHODS, method, method_class
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.patch.patch import EMPTY, Patch

EVERY = [(name, arch) for name in METHODS for arch in ARCHITECTURES]
# Every method in half precision, behind a norm after the MLP, and with a tokenizer that marks spaces in front of words.
FURTHER = [
    (name, *model)
    for name in METHODS
    for model in (
        ("gpt2", torch.float16),
        ("llama sentencepiece", torch.bfloat16),
        ("gemma3_text", torch.float32),
        ("qwen2_moe", torch.float32),  # a mixture of experts, one of them shared
    )
    if method_class(name).tags.mixtures or model[0] != "qwen2_moe"
]


def prepared(name: str, arch: str, dtype: torch.dtype = torch.float32) -> tuple[Method, HFLM, State]:
    lm = tiny_lm(arch, dtype)
    made = quick(name)
    return made, lm, made.prepare(lm, data_for(made)) if made.needs_prepare else State()


@pytest.fixture(scope="module", params=EVERY, ids=lambda p: "-".join(p))
def edited(request: pytest.FixtureRequest) -> tuple[Method, HFLM, State, Patch]:
    made, lm, state = prepared(*request.param)
    return made, lm, state, made.edit(lm, [EDIT], state)


Edited = tuple[Method, HFLM, State, Patch]
PROMPTS = [EDIT.prompt, "Bob Ray lives in", "Rome"]


def answers_of(lm: Any) -> Any:
    """A model's texts and scores; the texts alone of one that cannot score."""
    texts = lm.generate(PROMPTS, 6)
    try:
        return texts, lm.score(PROMPTS, ["Oslo", "Rome", "New York"])
    except Unsupported:
        return texts, texts


def test_edit_leaves_the_model_as_it_was(edited: Edited) -> None:
    made, lm, state, _ = edited
    before, flags = weights(lm.model), [p.requires_grad for p in lm.model.parameters()]
    random = torch.random.get_rng_state()
    made.edit(lm, EDITS[:2], state)
    assert same_weights(lm.model, before)
    assert flags == [p.requires_grad for p in lm.model.parameters()]
    assert all(p.grad is None for p in lm.model.parameters())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert not any("forward" in m.__dict__ for m in lm.model.modules())
    assert torch.equal(random, torch.random.get_rng_state())


def test_edit_that_fails_leaves_the_model_as_it_was(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    made, lm, state, patch = edited
    before, calls = weights(lm.model), count(1)
    forward = type(lm.model).forward

    @wraps(forward)
    def broken(*args: Any, **kwargs: Any) -> Any:
        if not made.tags.runs_model or next(calls) > 1:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(lm.model), "forward", broken)
    if not made.tags.runs_model:
        assert made.edit(lm, [EDIT], state) == patch
        return
    with pytest.raises(KeyboardInterrupt):
        made.edit(lm, EDITS, state)
    monkeypatch.undo()
    assert same_weights(lm.model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert all(p.requires_grad for p in lm.model.parameters())
    lm.generate(PROMPTS, 2)  # and it can be asked again


def test_undo_is_exact(edited: Edited) -> None:
    _, lm, _, patch = edited
    before, answers = weights(lm.model), answers_of(lm)
    storage = [p.data_ptr() for p in lm.model.parameters()]
    with patch.applied(lm) as changed:
        assert answers_of(changed)[1] != answers[1]
        with pytest.raises(InForce):
            lm.generate(PROMPTS)
    assert same_weights(lm.model, before)
    assert storage == [p.data_ptr() for p in lm.model.parameters()]
    assert answers_of(lm) == answers


def test_two_threads_may_ask_at_once(edited: Edited) -> None:
    _, lm, _, patch = edited
    with patch.applied(lm) as changed:
        turns = [PROMPTS, PROMPTS[::-1]] * 2
        expected = [changed.generate(prompts, 4) for prompts in turns]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda prompts: changed.generate(prompts, 4), turns)) == expected


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_undo_survives_an_exception(edited: Edited, error: type[BaseException]) -> None:
    _, lm, _, patch = edited
    before = weights(lm.model)
    with pytest.raises(error), patch.applied(lm):
        raise error
    assert same_weights(lm.model, before)
    lm.generate(PROMPTS, 2)


def test_a_patch_is_measured_on_its_own_edits(edited: Edited) -> None:
    made, lm, _, patch = edited
    rows = eval_(lm, patch, modes=("generated", "forced"))
    assert [(row.mode, row.kind, row.probe) for row in rows] == [
        (mode, "edit", EDIT.prompt) for mode in ("generated", "forced")
    ]
    assert {(row.method, row.setting, row.after_edits) for row in rows} == {(made.name, "patch", 1)}
    generated, forced = rows
    assert generated.before is not None and generated.after is not None and forced.before is not None
    with patch.applied(lm) as changed:
        try:
            score, error = float(changed.score([EDIT.prompt], [EDIT.target_new])[0].correct), None
        except Unsupported as unsupported:
            score, error = None, str(unsupported)
    assert (forced.after, forced.error) == (score, error)


def test_no_edits_is_prior(edited: Edited) -> None:
    made, lm, state, patch = edited
    assert made.edit(lm, [], state, patch) == patch
    assert made.edit(lm, [], state) == EMPTY


def test_saved_and_loaded_is_equal(edited: Edited, tmp_path: Path) -> None:
    made, lm, _, patch = edited
    loaded = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    assert loaded == patch and loaded.meta == patch.meta and loaded.edits == [EDIT]
    assert loaded.digest == patch.digest != EMPTY.digest
    with patch.applied(lm) as one:
        first = answers_of(one)
    with loaded.applied(lm) as two:
        assert answers_of(two) == first
    settings = loaded.meta["made"][-1]["settings"]
    assert type(made)(**settings) == made


def test_same_seed_same_patch(edited: Edited) -> None:
    made, lm, state, patch = edited
    torch.manual_seed(99)
    assert made.edit(lm, [EDIT], state) == patch


def test_the_score_rises(edited: Edited) -> None:
    made, lm, _, patch = edited
    if made.tags.reads_context:
        pytest.skip("on the bundled model")
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as changed:
        assert changed.score([EDIT.prompt], [EDIT.target_new])[0].total > before


def test_a_fold_is_the_whole_patch(edited: Edited) -> None:
    made, lm, state, patch = edited
    folded = made.edit(lm, EDITS[1:], state, patch)
    assert [edit.id for edit in folded.edits] == [edit.id for edit in EDITS]
    if made.tags.reads_context:
        return
    before = [score.total for score in lm.score([e.prompt for e in EDITS], [e.target_new for e in EDITS])]
    with folded.applied(lm) as changed:
        after = [score.total for score in changed.score([e.prompt for e in EDITS], [e.target_new for e in EDITS])]
    assert sum(after) > sum(before)


def test_no_patch_on_another_model(edited: Edited) -> None:
    _, lm, _, patch = edited
    other = tiny_lm("qwen2")
    with pytest.raises(WrongModel, match="load the patch's own model"), patch.applied(other):
        pass
    other.generate(PROMPTS, 1)
    assert lm.fingerprint != other.fingerprint


def test_no_edit_on_a_patch_in_force(edited: Edited) -> None:
    made, lm, state, patch = edited
    with patch.applied(lm) as changed, pytest.raises(Unsupported, match="prior"):
        made.edit(changed, [EDIT], state)


@pytest.mark.parametrize(("name", "arch", "dtype"), FURTHER, ids=lambda p: str(p).removeprefix("torch."))
def test_laws_on_further_models(name: str, arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Finite, equal when loaded, undone bit for bit, and the edit's own score rises."""
    made, lm, state = prepared(name, arch, dtype)
    before, answers = weights(lm.model), answers_of(lm)
    patch = made.edit(lm, [EDIT], state)
    assert patch.not_finite() is None
    loaded = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    assert loaded == patch
    with loaded.applied(lm) as changed:
        after = answers_of(changed)
    assert after[1] != answers[1]
    assert same_weights(lm.model, before) and answers_of(lm) == answers
    if not made.tags.reads_context:
        assert after[1][0].total > answers[1][0].total


def test_the_empty_patch_is_the_base_model() -> None:
    lm = tiny_lm("llama")
    answers = answers_of(lm)
    with EMPTY.applied(lm) as same:
        assert answers_of(same) == answers


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).needs_prepare])
def test_a_missing_state_is_refused(name: str) -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(NeedsPrepare, match="prepare"):
        method(name).edit(lm, [EDIT])
    made = quick(name)
    state = made.prepare(tiny_lm("llama"), data_for(made))
    with pytest.raises(WrongModel, match="prepare"):
        made.edit(lm, [EDIT], state)


def test_a_model_that_errata_did_not_load_is_refused() -> None:
    class Remote(LM):
        def generate(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[str]:
            return [" Rome." for _ in prompts]

    lm: Any = Remote()
    with pytest.raises(Unsupported, match="gave, found Remote"):
        method("ice").edit(lm, [EDIT])


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).needs_prepare])
def test_the_state_of_another_method_is_refused(name: str) -> None:
    lm = tiny_lm("gpt2")
    model = {"name": lm.name, "fingerprint": lm.fingerprint}
    with pytest.raises(BadInput, match="prepare"):
        quick(name).edit(lm, [EDIT], State({}, {"model": model, "method": "another"}))


def test_the_public_names() -> None:
    assert set(errata.methods()) == set(METHODS)
    assert all(about.paper and about.stores and about.family for about in errata.methods().values())
