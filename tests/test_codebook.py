"""Codebooks: the rule that places edits, taking one out, where a value is put, answers of several tokens."""

from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, tiny_lm

from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.codebook.grace import GraceCodebook
from errata.methods.codebook.horen import Directions
from errata.methods.codebook.keys import KeyTable, Spheres
from errata.methods.codebook.values import Values
from errata.methods.memory.log import EditRecord
from errata.methods.registry import method
from errata.model import passes
from errata.model.lm import Call
from errata.patch.patch import Patch
from errata.types import Edit

QUICK: dict[str, Any] = {"steps": 40, "stop": 0.1}
BOTH = ("grace", "horen")
HOREN = {"recent": 0.5, "alpha": 0.1, "beta": 20.0, "threshold": 0.9}
TWO = [
    Edit("Ann Lee was born in", "Ann Lee", "New York"),
    Edit("Bob Ray lives in", "Bob Ray", "Lima"),
    Edit("Dora Finn is the mayor of", "Dora Finn", "Paris"),
]


def record(i: int, target: int, prompt: int | None = None) -> EditRecord:
    ids = [i if prompt is None else prompt]
    return EditRecord(f"e{i}", f"prompt {i}", "prompt", "target", None, ids, [target])


def spheres(*placed: tuple[float, int], radius: float = 1.0) -> Spheres:
    """Keys on a line: (position, target) in order."""
    log = tuple(record(i, target) for i, (_, target) in enumerate(placed))
    return Spheres.empty(1, radius=radius).extended(log, torch.tensor([[x] for x, _ in placed]))


def test_graces_rule() -> None:
    """Far: a key of its own. Near, same answer: the older reaches that far. Near, another answer: half way each."""
    assert spheres((0, 1), (2.1, 1)).radii.tolist() == [1.0, 1.0]
    grown = spheres((0, 1), (1.5, 1))
    assert grown.radii.tolist() == [1.5, -1.0] and grown.owner.tolist() == [0, 0] and grown.group(1) == [0, 1]
    within = spheres((0, 1), (0.5, 1))
    assert within.radii.tolist() == [1.0, -1.0]
    split = spheres((0, 1), (1.5, 2))
    assert split.radii.tolist() == pytest.approx([0.75, 0.75], rel=1e-4) and split.radii[0] < split.radii[1]
    assert spheres((0, 1), (0.5, 2), (-0.9, 3)).radii.tolist() == pytest.approx(
        [0.25, 0.25, 0.45], rel=1e-4
    )  # none grows


def test_the_value_of_the_nearest_key_answers_within_its_radius() -> None:
    keys = spheres((0, 1), (1.5, 2), (10, 3), (10.5, 3))
    entry, near = keys.match(torch.tensor([[0.7], [0.8], [3.0], [10.9], [12.0]]))
    assert entry.tolist() == [0, 1, 1, 2, 2] and near.tolist() == [True, True, False, True, False]
    assert keys.latest[entry].tolist() == [0, 1, 1, 3, 3]  # of a joint entry the value that was trained last


def test_the_same_question_again_has_its_new_answer() -> None:
    log = record(0, 1), record(1, 2), record(2, 2, prompt=0)
    q = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), dim=-1)
    empty: tuple[KeyTable, ...] = (Spheres.empty(2, radius=0.3), Directions.empty(2, **HOREN))
    for keys in (table.extended(log, q) for table in empty):
        entry, near = keys.match(q[:1])
        assert entry.tolist() == [2] and near.all()
        assert keys.kept(log, [0, 1]).match(q[:1])[0].tolist() == [0]  # and the old one, if that is taken back


@pytest.mark.parametrize("answers", [2, 30])
def test_without_is_never_made(answers: int) -> None:
    """Every edit of a crowded codebook taken out: as the rule would have it without, or refused."""
    where = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) * 2
    values, refused = torch.randn(30, 3), 0

    def made(rows: list[int]) -> GraceCodebook:
        log = tuple(record(i, i % answers) for i in rows)
        keys = Spheres.empty(2, radius=0.5).extended(log, where[rows])
        return GraceCodebook("site", log, keys, Values(replace="last", add=False, values=values[rows]))

    whole = made(list(range(30)))
    for i in range(30):
        never = made([j for j in range(30) if j != i])
        try:
            assert whole.without(f"e{i}") == never
        except Unsupported:
            refused += 1
    assert refused < 30 and (refused == 0) == (answers == 30)
    assert whole.without("unknown") is whole


def test_horens_query_and_step() -> None:
    x = torch.randn(1, 7, 4)
    left = Call(torch.tensor([[0, 0, 1, 1, 1, 1, 1]]), torch.tensor([6]))
    right = Call(torch.tensor([[1, 1, 1, 1, 1, 1, 0]]), torch.tensor([4]))
    empty = Directions.empty(4, **HOREN)
    expected = x[0, 4:].mean(0) / x[0, 4:].mean(0).norm()  # 3 of 5: half, rounded up
    assert torch.allclose(empty.query(left, x)[0], expected, atol=1e-6)
    assert torch.allclose(empty.query(right, x.roll(-2, 1))[0], expected, atol=1e-6)
    keys = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    full = empty.extended(tuple(record(i, i) for i in range(3)), keys)
    p = [float(torch.exp(20 * (k @ expected))) for k in keys]
    r = torch.stack([w / sum(p) * k for w, k in zip(p, keys, strict=True)]).sum(0)
    q = 0.9 * expected + 0.1 * r / r.norm()
    best = max(range(3), key=lambda i: float(keys[i] @ q))
    entry, near = full.match(expected[None])
    assert entry.item() == best and near.item() == (float(keys[best] @ q / q.norm()) > 0.9)


@pytest.mark.parametrize("how", ["last", "prompt", "all"])
@pytest.mark.parametrize("cache", [True, False])
def test_generated_as_scored(how: Any, cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of several tokens comes out of generate where score has it right, with and without a cache."""
    lm = tiny_lm("gpt2")
    made = method("grace", replace=how, steps=150, layer=1)
    patch = made.edit(lm, TWO, made.prepare(lm, TEXTS))
    if not cache:
        monkeypatch.setattr(passes, "new_cache", lambda model: None)
    prompts, targets = [e.prompt for e in TWO], [e.target_new for e in TWO]
    assert max(len(lm.tokens.target(p, t)) for p, t in zip(prompts, targets, strict=True)) > 1
    with patch.applied(lm) as edited:
        right = [score.correct for score in edited.score(prompts, targets)]
        assert [text.strip().startswith(t) for text, t in zip(edited.generate(prompts, 8), targets)] == right
        assert sum(right) >= 2
        assert edited.generate(prompts, 8) == [edited.generate([prompt], 8)[0] for prompt in prompts]


@pytest.mark.parametrize("name", BOTH)
def test_questions_of_others_are_answered_bit_for_bit_as_before(name: str) -> None:
    lm = tiny_lm("llama")
    made = method(name, **QUICK, share=0.0)
    patch = made.edit(lm, EDITS, made.prepare(lm, TEXTS))
    others = ["A baker went by night to", "Rome"]
    before = lm.score(others, ["Lima", "Oslo"]), lm.generate(others, 6)
    with patch.applied(lm) as edited:
        assert (edited.score(others, ["Lima", "Oslo"]), edited.generate(others, 6)) == before
        assert edited.explain([*others, EDIT.prompt])[:2] == [[], []]
        (line,) = edited.explain([EDIT.prompt])[0]
        assert EDIT.id in line and EDIT.prompt in line


@pytest.mark.parametrize("name", BOTH)
def test_an_edit_taken_out_was_never_made(name: str) -> None:
    lm = tiny_lm("gpt2")
    made = method(name, **QUICK)
    state = made.prepare(lm, TEXTS)
    whole = with_one_less = Patch()
    for edit in TWO:
        whole = made.edit(lm, [edit], state, whole)
        if edit != TWO[1]:
            with_one_less = made.edit(lm, [edit], state, with_one_less)
    assert whole.without(TWO[1].id) == with_one_less


def test_edits_of_one_entry_are_trained_together() -> None:
    """Two questions so near that they share a key: both are answered; only the last can be taken out."""
    lm = tiny_lm("gpt2")
    made = method("grace", **QUICK, radius=1e4)
    first, second = Edit("Ann Lee was born in", "Ann Lee", "Oslo"), Edit("Bob Ray lives in", "Bob Ray", "Oslo")
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, [second], state, made.edit(lm, [first], state))
    (entry,) = patch.parts[0].entries()
    assert first.id in entry["edit"] and second.id in entry["edit"]
    with patch.applied(lm) as edited:
        assert all(score.correct for score in edited.score([first.prompt, second.prompt], ["Oslo", "Oslo"]))
    assert patch.without(second.id) == made.edit(lm, [first], state)
    with pytest.raises(Unsupported, match="together"):
        patch.without(first.id)


@pytest.mark.parametrize("name", BOTH)
def test_values_are_trained_alike_alone_and_in_a_batch(name: str) -> None:
    lm = tiny_lm("gpt2", torch.float64)
    made = method(name, steps=8, stop=0.0)
    state = made.prepare(lm, TEXTS)
    together: Any = made.edit(lm, TWO, state).parts[0]
    for i, edit in enumerate(TWO):
        alone: Any = made.edit(lm, [edit], state).parts[0]
        assert torch.allclose(together.payload.values[i], alone.payload.values[0], atol=1e-6)
        assert torch.allclose(together.lookup.queries[i], alone.lookup.queries[0], atol=1e-9)


@pytest.mark.parametrize("name", BOTH)
def test_encoder_decoders_have_it_in_the_encoder(name: str) -> None:
    lm: Any = tiny_lm("t5")
    made = method(name, **QUICK, share=0.0)
    patch: Any = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    assert patch.parts[0].site in lm.sites.encoder.mlp_out
    others = lm.score(["A baker met the old king"], ["Rome"])
    with patch.applied(lm) as edited:
        assert edited.score(["A baker met the old king"], ["Rome"]) == others


@pytest.mark.parametrize("name", BOTH)
def test_bad_input(name: str) -> None:
    lm = tiny_lm("gpt2")
    state = method(name).prepare(lm, TEXTS)
    with pytest.raises(BadInput, match="prepare anew"):
        method(name, layer=2).edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="prepare anew"):
        method("horen" if name == "grace" else "grace").edit(lm, [EDIT], state)
    with pytest.raises(WrongModel):
        method(name).edit(tiny_lm("llama"), [EDIT], state)
    with pytest.raises(BadInput, match="0 to 3"):
        method(name, layer=4).prepare(lm, TEXTS)
    with pytest.raises(BadInput, match="two different texts"):
        method(name).prepare(lm, ["Rome"])
    with pytest.raises(BadInput, match="no text"):
        method(name).prepare(lm, [EDIT])
    with pytest.raises(BadInput, match="share"):
        method(name, share=2.0)
    patch = method(name, **QUICK).edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="replace = last"):
        method(name, **QUICK, replace="all").edit(lm, [EDITS[1]], state, patch)


def test_a_state_is_made_from_the_model_itself_where_no_text_is_given() -> None:
    lm = tiny_lm("gpt2")
    made = method("grace", **QUICK, texts=40)
    state = made.prepare(lm)
    assert made.edit(lm, [EDIT], state).meta["made"][0]["resolved"]["radius"] > 0
    assert torch.equal(state.tensors["apart"], made.prepare(lm).tensors["apart"])
