"""One edit taken out of a patch: of closed forms by solving for the others again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, EDIT, EDITS, data_for, quick, same_weights, tiny_lm, weights

import errata
from errata.errors import BadInput, Unsupported
from errata.methods.base import Method
from errata.methods.closed_form.again import EXACT, KEPT, SEARCHED
from errata.methods.registry import METHODS, method_class
from errata.patch.delta import Delta
from errata.patch.memory import TARGETS, joined_memory, remember_targets
from errata.patch.patch import EMPTY, Patch
from errata.patch.reverting import ALONE, DROPPED
from errata.types import Edit

SOLVED = [name for name in METHODS if method_class(name).without is not Method.without]
MORE = [
    *EDITS,
    Edit("Dora Finn was born in", "Dora Finn", "Paris"),
    Edit("A baker lives in", "baker", "Lima"),
]
TAKEN = MORE[1]
OTHERS = [edit for edit in MORE if edit != TAKEN]


def dense(patch: Patch) -> dict[str, torch.Tensor]:
    (delta,) = patch.of_kind(Delta)
    return {name: (w if isinstance(w, torch.Tensor) else w.dense()).double() for name, w in delta.weights.items()}


def apart(one: Patch, two: Patch) -> float:
    """How far two changes of weights are apart, in lengths of the first: the largest over weights."""
    a, b = dense(one), dense(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / a[name].norm()) for name in a)


def same_memory(one: Patch, two: Patch, rtol: float) -> bool:
    assert one.memory.keys() == two.memory.keys()
    return all(
        one.memory[name].shape == two.memory[name].shape
        and (one.memory[name] - two.memory[name]).norm() <= rtol * one.memory[name].norm()
        for name in one.memory
    )


def made_with(name: str, arch: str, dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[Any, Any, Any]:
    lm = tiny_lm(arch, dtype)
    made = replace(quick(name), **settings)
    return made, lm, made.prepare(lm, data_for(made))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", SOLVED)
def test_without_an_edit_is_as_if_it_had_never_been_made(name: str, arch: str) -> None:
    """In float64 to 1e-6 of the change: exact in one batch; in several with the later ones searched for anew."""
    made, lm, state = made_with(name, arch, seed=3)
    made = replace(made, together=2) if made.one_by_one else made
    before = weights(lm.model)
    patch, never = made.edit(lm, MORE, state), made.edit(lm, OTHERS, state)
    left, how = errata.reverted(lm, patch, TAKEN.id, state, search=made.one_by_one)
    assert how == (SEARCHED if made.one_by_one else EXACT)
    assert left.edits == OTHERS and left.meta["reverted"] == [{"edit": TAKEN.id, "how": how}]
    assert apart(never, left) < 1e-6 and same_memory(never, left, 1e-6)
    assert left.meta["made"][0]["outcomes"].keys() == {edit.id for edit in OTHERS}
    assert same_weights(lm.model, before)
    assert apart(patch, left) > 1e-2


def test_nothing_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, lm, state = made_with("memit", "gpt2", torch.float32, layers=(0, 1))
    patch = made.edit(lm, MORE, state)
    monkeypatch.setattr("errata.methods.closed_form.choices.find_deltas", None)
    _, how = errata.reverted(lm, patch, TAKEN.id, state)
    assert how == EXACT


@pytest.mark.parametrize(
    ("name", "settings", "search", "how"),
    [
        ("memit", {"blue": True, "layers": (0, 1)}, False, KEPT),  # the last layer's targets see the first one's change
        ("memit", {"blue": True, "layers": (0, 1)}, True, SEARCHED),
        ("memit", {"nas": True}, False, EXACT),
        ("memit", {"layers": (0, 1)}, False, EXACT),
        ("rome", {}, False, EXACT),  # all were searched for at once
        ("rome", {"together": 1}, False, KEPT),
        ("r-rome", {"together": 1}, True, SEARCHED),
        ("r-rome", {"together": 2}, False, KEPT),
        ("alphaedit", {"history": True}, False, EXACT),
    ],
)
def test_settings(name: str, settings: dict[str, Any], search: bool, how: str) -> None:
    made, lm, state = made_with(name, "llama", **settings)
    patch, never = made.edit(lm, MORE, state), made.edit(lm, OTHERS, state)
    left, found = errata.reverted(lm, patch, TAKEN.id, state, search=search)
    assert found == how
    assert (apart(never, left) < 1e-6) == how.startswith("exact")
    with left.applied(lm) as changed:  # what was kept is met all the same
        after = changed.score([e.prompt for e in OTHERS], [e.target_new for e in OTHERS])
    before = lm.score([e.prompt for e in OTHERS], [e.target_new for e in OTHERS])
    assert sum(score.total for score in after) > sum(score.total for score in before)


@pytest.mark.parametrize(
    ("arch", "dtype", "most"),
    [
        ("gemma3_text", torch.float64, 1e-6),  # a norm behind the projection
        ("qwen2_moe", torch.float32, 1e-3),  # a mixture of experts, which torch does not run in float64
    ],
)
def test_further_models(arch: str, dtype: torch.dtype, most: float) -> None:
    made, lm, state = made_with("memit", arch, dtype, layers=(0, 1))
    left, how = errata.reverted(lm, made.edit(lm, MORE, state), TAKEN.id, state)
    assert how == EXACT and apart(made.edit(lm, OTHERS, state), left) < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    """What the patch holds is what is solved again, in the model's own type."""
    made, lm, state = made_with("memit", "llama", dtype, layers=(0, 1))
    patch = made.edit(lm, MORE, state)
    left, how = errata.reverted(lm, patch, TAKEN.id, state)
    kept = {name: t[[i for i, e in enumerate(MORE) if e != TAKEN]] for name, t in patch.memory.items()}
    assert how == EXACT and kept.keys() == left.memory.keys()
    assert all(torch.equal(t, left.memory[name]) for name, t in kept.items())


def folded(made: Any, lm: Any, state: Any, batches: list[list[Edit]], prior: Patch = EMPTY) -> Patch:
    for batch in batches:
        prior = made.edit(lm, batch, state, prior)
    return prior


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_of_a_fold_the_last_call_comes_out_exactly_and_an_earlier_one_as_it_says(name: str) -> None:
    made, lm, state = made_with(name, "gpt2")
    patch = folded(made, lm, state, [MORE[:2], MORE[2:]])
    last, how = errata.reverted(lm, patch, MORE[3].id, state)
    never = folded(made, lm, state, [MORE[:2], [MORE[2], MORE[4]]])
    assert how == EXACT and apart(never, last) < 1e-6 and same_memory(never, last, 1e-6)
    never = folded(made, lm, state, [[MORE[0]], MORE[2:]])
    kept, how = errata.reverted(lm, patch, TAKEN.id, state)
    assert how == KEPT and 1e-6 < apart(never, kept) < apart(never, patch)
    anew, how = errata.reverted(lm, patch, TAKEN.id, state, search=True)
    assert how == SEARCHED and apart(never, anew) < 1e-6 and same_memory(never, anew, 1e-6)
    assert [len(record["edits"]) for record in anew.meta["made"]] == [1, 3]
    one, how = errata.reverted(lm, errata.reverted(lm, patch, MORE[0].id, state)[0], TAKEN.id, state)
    assert [len(record["edits"]) for record in one.meta["made"]] == [3]  # a call of which nothing is left is gone
    assert len(one.meta["reverted"]) == 2
    assert errata.reverted(lm, one, MORE[3].id, state)[1] == KEPT  # which what is left cannot know better


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grace"}, "grace cannot take one edit out"),
        ({"method": "none"}, "without the model"),
        ({"resolved": {"no": 1}}, "unknown setting"),
        ({"resolved": {"layers": [99]}}, "must rise within"),
        ({"resolved": {}}, "does not say where"),
        ({"targets": ["transformer.h.0.mlp.c_proj"]}, "does not say where"),
    ],
)
def test_a_record_that_lies_is_refused(change: dict[str, Any], message: str) -> None:
    made, lm, state = made_with("memit", "gpt2", torch.float32, layers=(1,))
    patch = made.edit(lm, MORE[:2], state)
    lies = replace(patch, meta={**patch.meta, "made": [{**patch.meta["made"][0], **change}]})
    with pytest.raises(Unsupported, match=message):
        errata.reverted(lm, lies, TAKEN.id, state)


def test_a_patch_keeps_targets_while_they_are_fewer_than_a_key_is_wide(tmp_path: Path) -> None:
    delta = torch.ones(2, 3)
    memory = remember_targets(remember_targets({}, "s", delta, 5), "s", delta, 5)
    assert memory[TARGETS + "s"].shape == (4, 3)
    assert remember_targets(memory, "s", delta[:1], 5) == {}
    assert joined_memory(memory, memory)[TARGETS + "s"].shape == (8, 3)
    made, lm, state = made_with("memit", "gpt2", torch.float32)
    patch = made.edit(lm, MORE, state)
    (name,) = (name for name in patch.memory if name.startswith(TARGETS))
    assert patch.memory[name].shape == (len(MORE), 32)
    bare = Patch.load(patch.save(tmp_path / "p.safetensors", memory=False))
    with pytest.raises(Unsupported, match=r"keeps none, or not all, of 5 targets.*make the other edits again"):
        errata.reverted(lm, bare, TAKEN.id, state)
    assert not made.edit(lm, [EDIT], state, bare).memory  # where some are missing, more would be of no use
    loaded = Patch.load(patch.save(tmp_path / "whole.safetensors"))
    assert errata.reverted(lm, loaded, TAKEN.id, state)[0] == errata.reverted(lm, patch, TAKEN.id, state)[0]


def test_past_that_no_more_are_kept() -> None:
    made, lm, state = made_with("memit", "gpt2", torch.float32, steps=1)
    width = 64  # of the tiny GPT-2's keys
    many = [Edit(f"{who} lives in", who, "Oslo") for who in (f"Person {n}" for n in range(width))]
    patch = made.edit(lm, many[:-1], state)
    assert any(name.startswith(TARGETS) for name in patch.memory)
    patch = made.edit(lm, many[-1:], state, patch)
    assert not patch.memory
    assert not made.edit(lm, [EDIT], state, patch).memory
    with pytest.raises(Unsupported, match="as many as a key is wide"):
        errata.reverted(lm, patch, many[0].id, state)


def test_what_cannot_be_solved_again_is_refused() -> None:
    made, lm, state = made_with("memit", "gpt2", torch.float32)
    patch = made.edit(lm, MORE[:3], state)
    with pytest.raises(BadInput, match=r"no edit 'none'"):
        errata.reverted(lm, patch, "none", state)
    with pytest.raises(Unsupported, match=r"errata\.reverted"):
        patch.without(TAKEN.id)
    with pytest.raises(Unsupported, match="scaled"):
        errata.reverted(lm, 0.5 * patch, TAKEN.id, state)
    with pytest.raises(Unsupported, match=r"another one.*give the state"):
        errata.reverted(
            lm, patch, TAKEN.id, made.prepare(lm, ["Rome is a city of many words.", "Oslo lies in the north."])
        )
    tuned = errata.method("ft-m", steps=2).edit(lm, MORE[3:], None, patch)
    with pytest.raises(Unsupported, match="other changes of weights"):
        errata.reverted(lm, tuned, TAKEN.id, state)
    with pytest.raises(Unsupported, match="ft-m cannot take one edit out"):
        errata.reverted(lm, tuned, MORE[3].id, state)
    with pytest.raises(Unsupported, match="joined of two"):
        errata.reverted(lm, patch + made.edit(lm, MORE[3:], state), TAKEN.id, state)
    grace = quick("grace")
    memory = grace.edit(lm, MORE[3:], grace.prepare(lm, data_for(grace)), patch)
    with pytest.raises(Unsupported, match="holds a memory"):
        errata.reverted(lm, memory, TAKEN.id, state)


def test_facts_that_are_told_stay_in_their_place() -> None:
    made, lm, state = made_with("memit", "gpt2", torch.float32)
    told = quick("ice").edit(lm, MORE[3:4])
    patch = made.edit(lm, MORE[:3], state, told)
    left, how = errata.reverted(lm, patch, TAKEN.id, state)
    never = made.edit(lm, [MORE[0], MORE[2]], state, told)
    assert how == EXACT and [part.kind for part in left.parts] == [part.kind for part in patch.parts]
    assert apart(never, left) < 1e-4 and left.edits == [MORE[3], MORE[0], MORE[2]]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_an_edit_up_or_says_that_it_cannot(name: str) -> None:
    lm, made = tiny_lm("gpt2"), quick(name)
    state = made.prepare(lm, data_for(made)) if made.needs_prepare else None
    one = made.edit(lm, [EDIT], state)
    assert errata.reverted(lm, one, EDIT.id, state) == (EMPTY, ALONE)
    try:
        left, how = errata.reverted(lm, made.edit(lm, EDITS[:2], state), EDIT.id, state)
    except Unsupported as error:
        assert name not in SOLVED and ("cannot" in str(error) or "keep the patch" in str(error))
        return
    assert left.edits == [EDITS[1]] and (how == DROPPED or name in SOLVED)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_of_a_hundred() -> None:
    """On the bundled model, float32: 4e-6 of the change when this was written, as batches round differently."""
    lm, memit = errata.load("world"), errata.method("memit")
    edits = [edit for case in errata.cases("world", limit=100) for edit in case.edits]
    state = memit.prepare(lm)
    taken, others = edits[40], [*edits[:40], *edits[41:]]
    patch, never = memit.edit(lm, edits, state), memit.edit(lm, others, state)
    left, how = errata.reverted(lm, patch, taken.id)
    assert how == EXACT and left.edits == others
    assert apart(never, left) < 1e-4 and apart(never, patch) > 0.05
    with left.applied(lm) as one:
        ours = one.score([e.prompt for e in others], [e.target_new for e in others])
        text = one.generate([taken.prompt], 8, until_answer=True)
    with never.applied(lm) as two:
        theirs = two.score([e.prompt for e in others], [e.target_new for e in others])
    assert text == lm.generate([taken.prompt], 8, until_answer=True)
    assert all(abs(a.total - b.total) < 1e-3 for a, b in zip(ours, theirs, strict=True))
