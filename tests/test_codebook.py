"""Codebooks: the rule that places edits, taking one out, where a value is put, answers of several tokens."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, tiny_lm

from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.codebook.grace import GraceCodebook
from errata.methods.codebook.horen import Directions
from errata.methods.codebook.keys import KeyTable, half_way
from errata.methods.codebook.melo import Clusters
from errata.methods.codebook.spheres import Spheres
from errata.methods.codebook.values import Values
from errata.methods.memory.log import EditRecord
from errata.methods.registry import method
from errata.model.lm import Call
from errata.patch.patch import Patch
from errata.types import Edit

QUICK: dict[str, Any] = {"steps": 40, "stop": 0.1}
BOTH = ("grace", "horen")
HOREN = {"recent": 0.5, "alpha": 0.1, "beta": 20.0}
TWO = [
    Edit("Ann Lee was born in", "Ann Lee", "New York"),
    Edit("Bob Ray lives in", "Bob Ray", "Lima"),
    Edit("Dora Finn is the mayor of", "Dora Finn", "Paris"),
]


def record(i: int, target: int, prompt: int | None = None, subject: str = "prompt") -> EditRecord:
    ids = [i if prompt is None else prompt]
    return EditRecord(f"e{i}", f"{subject} {i}", subject, "target", None, ids, [target])


def spheres(*placed: tuple[float, int], radius: float = 1.0) -> Spheres:
    """Keys on a line: (position, target) in order."""
    log = tuple(record(i, target) for i, (_, target) in enumerate(placed))
    return extended(Spheres.empty(1, split=True), log, torch.tensor([[x] for x, _ in placed]), radius)


def extended(table: Any, log: Sequence[EditRecord], queries: torch.Tensor, radius: float) -> Any:
    return table.extended(tuple(log), queries, torch.full((len(queries),), radius))[0]


def on_a_line(table: type[KeyTable], *at: float) -> torch.Tensor:
    """Queries at those places of a line; of directions, at those angles in degrees."""
    x = torch.tensor(at, dtype=torch.float32)[:, None]
    return torch.cat([x.deg2rad().cos(), x.deg2rad().sin()], 1) if table is Directions else x


def tables() -> list[tuple[type[KeyTable], KeyTable, float]]:
    """Each kind of table, empty, and a radius of 10 on its line."""
    radius = 2 * math.sin(math.radians(10) / 2)
    return [
        (Spheres, Spheres.empty(1, split=True), 10.0),
        (Clusters, Clusters.empty(1, split=True), 10.0),
        (Spheres, Spheres.empty(1, split=False), 10.0),
        (Clusters, Clusters.empty(1, split=False), 10.0),
        (Directions, Directions.empty(2, **HOREN), radius),
    ]


def test_graces_rule() -> None:
    """Far: a key of its own. Near, same answer: the older reaches that far. Near, another answer: half way each."""
    assert spheres((0, 1), (2.1, 1)).radii.tolist() == [1.0, 1.0]
    grown = spheres((0, 1), (1.5, 1))
    assert grown.radii.tolist() == [1.5, -1.0] and grown.owner.tolist() == [0, 0] and grown.latest[0] == 1
    within = spheres((0, 1), (0.5, 1))
    assert within.radii.tolist() == [1.0, -1.0]
    split = spheres((0, 1), (1.5, 2))
    assert split.radii.tolist() == pytest.approx([0.75, 0.75], rel=1e-4) and split.radii[0] < split.radii[1]
    assert spheres((0, 1), (0.5, 2), (-0.9, 3)).radii.tolist() == pytest.approx(
        [0.25, 0.25, 0.45], rel=1e-4
    )  # none grows


def test_radii_that_were_measured_stay() -> None:
    log = record(0, 1), record(1, 2)
    keys = extended(Spheres.empty(1, split=False), log, torch.tensor([[0.0], [1.0]]), 0.9)
    assert keys.radii.tolist() == pytest.approx([0.9, 0.9])
    entry, near = keys.match(torch.tensor([[-0.8], [0.4], [0.6], [1.8]]))
    assert entry.tolist() == [0, 0, 1, 1] and near.all()


def test_the_value_of_the_nearest_key_answers_within_its_radius() -> None:
    keys = spheres((0, 1), (1.5, 2), (10, 3), (10.5, 3))
    entry, near = keys.match(torch.tensor([[0.7], [0.8], [3.0], [10.9], [12.0]]))
    assert entry.tolist() == [0, 1, -1, 2, -1] and near.tolist() == [True, True, False, True, False]
    assert keys.rows(entry).tolist() == [0, 1, -1, 3, -1]  # of a joint entry the value that was trained last
    assert keys.rows(torch.tensor([-1])).tolist() == [-1]


def test_a_key_reaches_half_way_to_where_other_texts_begin() -> None:
    texts, none = torch.arange(1.0, 101.0)[:, None], torch.zeros(1, 100, dtype=torch.bool)
    assert half_way(torch.zeros(1, 1), texts, none, 0.0).tolist() == [0.5]  # the nearest
    at = torch.tensor([[0.0], [-7.0]])
    assert half_way(at, texts, none.expand(2, -1), 0.05).tolist() == [3.0, 6.5]  # 5 of 99 are nearer
    own = torch.arange(100)[None] < torch.tensor([[10], [100]])  # the nearest 10 name the subject; all do
    assert half_way(at, texts, own, 0.0).tolist() == [5.5, 4.0]
    lm = tiny_lm("gpt2")
    made: Any = method("grace", **QUICK)
    about = [f"{edit.prompt} Rome and not in" for edit in EDITS[1:3]]
    states = [made.prepare(lm, texts) for texts in (TEXTS, TEXTS + about)]
    assert len(states[1].info["texts"]) == len(states[0].info["texts"]) + 2
    reach = [made.edit(lm, EDITS[1:3], state).parts[0].lookup.reach for state in states]
    assert torch.allclose(*reach)  # texts that name an edit's subject do not count


@pytest.mark.parametrize("table, empty, radius", tables())
def test_the_same_question_again_has_its_new_answer(table: Any, empty: Any, radius: float) -> None:
    log = record(0, 1), record(1, 2), record(2, 2, prompt=0)
    q = on_a_line(table, 0, 60, 0)
    keys = extended(empty, log, q, radius)
    entry, near = keys.match(q[:1])
    assert entry.tolist() == [2] and near.all()
    assert keys.kept(log, [0, 1]).match(q[:1])[0].tolist() == [0]  # and the old one, if that is taken back


@pytest.mark.parametrize("table, empty, radius", tables())
def test_edits_that_share_an_entry_outlive_what_happens_to_its_key(table: Any, empty: Any, radius: float) -> None:
    """Three on a line share the entry of the first; then one of them is asked again, or another edit comes between."""
    joined = [record(0, 1), record(1, 1), record(2, 1)]
    shared = extended(empty, joined, on_a_line(table, 0, 5, -5), radius)
    assert shared.owner.tolist() == [0, 0, 0] and shared.in_use.all()
    later = [(prompt, (0, 5, -5)[prompt]) for prompt in range(3)] + [(3, 4.0), (3, -4.0), (3, 2.5), (3, 0.5)]
    for prompt, at in later:
        log, q = [*joined, record(3, 2, prompt)], on_a_line(table, 0, 5, -5, at)
        keys = extended(empty, log, q, radius)
        assert keys.in_use.tolist() == [prompt != 0, prompt != 1, prompt != 2, True]
        entry, near = keys.match(q)
        assert near.all() and [log[i].target_ids for i in entry.tolist()] == [
            [2] if i == prompt or i == 3 else [1] for i in range(4)
        ]
        states = [keys.details(log, i)["in use"] for i in range(4)]
        assert states == ["yes" if used else "a newer one" for used in keys.in_use.tolist()]
        rows = keys.rows(entry).tolist()
        old = [2 if keys.together else i for i in range(3)]  # the payload that the three had in the end
        assert rows == [3 if i == prompt or i == 3 else old[i] for i in range(4)]


@pytest.mark.parametrize("table, empty, radius", tables())
def test_another_subject_has_an_entry_of_its_own(table: Any, empty: Any, radius: float) -> None:
    """Though it has the same answer, and its prompt is near."""
    log = record(0, 1, subject="Ann"), record(1, 1, subject="Bob"), record(2, 1, subject="Ann")
    keys = extended(empty, log, on_a_line(table, 0, 6, -3), radius)
    assert keys.owner.tolist() == [0, 1, 0] and keys.in_use.all()
    assert "shares" not in keys.details(log, 1) and keys.details(log, 2)["shares"] == "e0"


@pytest.mark.parametrize("table, empty, radius", tables())
def test_of_two_prompts_that_read_the_same_the_newer_is_answered(table: Any, empty: Any, radius: float) -> None:
    log = record(0, 1), record(1, 1), record(2, 2)
    q = on_a_line(table, 20, 24, 20 + 1e-4)
    keys = extended(empty, log, q, radius)
    assert keys.in_use.tolist() == [False, True, True]
    assert keys.match(q)[0].tolist() == [2, 1, 2] and keys.radii[2] > 1e-2


@pytest.mark.parametrize("table, empty, radius", tables())
def test_every_edit_is_found_or_a_newer_one_is(table: Any, empty: Any, radius: float) -> None:
    """In a crowd: few answers, prompts that come again."""
    generator = torch.Generator().manual_seed(0)
    at = torch.rand(20, generator=generator) * 90
    prompts = torch.randint(20, (60,), generator=generator).tolist()
    targets = torch.randint(3, (60,), generator=generator).tolist()
    log = [record(i, t, p) for i, (t, p) in enumerate(zip(targets, prompts, strict=True))]
    q = on_a_line(table, *at[prompts].tolist())
    keys = extended(empty, log, q, radius)
    newest = dict(zip(prompts, targets, strict=True))
    later = [{targets[j] for j in range(i, 60) if prompts[j] == p} for i, p in enumerate(prompts)]
    assert keys.in_use.tolist() == [len(answers) == 1 for answers in later]
    entry, near = keys.match(q)
    assert near.all() and [targets[i] for i in entry.tolist()] == [newest[p] for p in prompts]


@pytest.mark.parametrize("answers", [2, 30])
def test_without_is_never_made(answers: int) -> None:
    """Every edit of a crowded codebook taken out: as the rule would have it without, or refused."""
    where = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) * 2
    values, refused = torch.randn(30, 3), 0

    def made(rows: list[int]) -> GraceCodebook:
        log = tuple(record(i, i % answers) for i in rows)
        keys = extended(Spheres.empty(2, split=True), log, where[rows], 0.5)
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
    full = extended(empty, [record(i, i) for i in range(3)], keys, (2 - 2 * 0.9) ** 0.5)  # τ = 0.9
    p = [float(torch.exp(20 * (k @ expected))) for k in keys]
    r = torch.stack([w / sum(p) * k for w, k in zip(p, keys, strict=True)]).sum(0)
    q = 0.9 * expected + 0.1 * r / r.norm()
    best = max(range(3), key=lambda i: float(keys[i] @ q))
    cosine = (0.9 * 0.5 + 0.1) / (0.9**2 + 0.1**2 + 2 * 0.9 * 0.1 * 0.5) ** 0.5  # of keys 60 degrees apart
    assert float(empty.measured(torch.tensor(1.0))) == pytest.approx((2 - 2 * cosine) ** 0.5, rel=1e-5)
    entry, near = full.match(expected[None])
    reached = float(keys[best] @ q / q.norm()) > 0.9
    assert near.item() == reached and entry.item() == (best if reached else -1)


@pytest.mark.parametrize("how", ["last", "prompt", "all"])
@pytest.mark.parametrize("cache", [True, False])
def test_generated_as_scored(how: Any, cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of several tokens comes out of generate where score has it right, with and without a cache."""
    lm = tiny_lm("gpt2")
    made = method("grace", replace=how, steps=150, layer=1)
    patch = made.edit(lm, TWO, made.prepare(lm, TEXTS))
    if not cache:
        monkeypatch.setattr("errata.model.decoding.new_cache", lambda model: None)
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


SHARED = [Edit(f"Ann Lee {words}", "Ann Lee", "Oslo") for words in ("was born in", "comes from", "is a native of")]
NEAR: dict[str, dict[str, Any]] = {"grace": {"radius": 1e4}, "horen": {"threshold": 0.0}, "melo": {"radius": 1e4}}


def test_edits_of_one_entry_are_trained_together() -> None:
    """Two questions so near that they share a key: both are answered; only the last can be taken out."""
    lm = tiny_lm("gpt2")
    made = method("grace", **QUICK, **NEAR["grace"])
    first, second = SHARED[:2]
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, [second], state, made.edit(lm, [first], state))
    entries = patch.parts[0].entries()
    assert [entry["edit"] for entry in entries] == [first.id, second.id] and entries[1]["shares"] == first.id
    with patch.applied(lm) as edited:
        assert all(score.correct for score in edited.score([first.prompt, second.prompt], ["Oslo", "Oslo"]))
    assert patch.without(second.id) == made.edit(lm, [first], state)
    with pytest.raises(Unsupported, match="together"):
        patch.without(first.id)


@pytest.mark.parametrize("name", NEAR)
def test_the_others_of_an_entry_are_answered_when_one_is_asked_again(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny_lm("gpt2")
    made = method(name, steps=80, **NEAR[name])
    state = made.prepare(lm, TEXTS)
    lm_replies = lm.generate([edit.prompt for edit in SHARED], 4)
    patch = made.edit(lm, SHARED, state)
    assert [entry.get("shares") for entry in patch.parts[0].entries()] == [None, SHARED[0].id, SHARED[0].id]
    prompts = [edit.prompt for edit in SHARED]
    with patch.applied(lm) as edited:
        before = edited.generate(prompts, 4)
    again = Edit(SHARED[0].prompt, "Ann Lee", "Lima")
    patch = Patch.load(made.edit(lm, [again], state, patch).save(tmp_path / "p.safetensors"))
    entries = patch.parts[0].entries()
    assert [entry["in use"] for entry in entries] == ["a newer one", "yes", "yes", "yes"]
    assert "no longer in force" in caplog.text and SHARED[0].id in caplog.text and SHARED[1].id not in caplog.text
    with patch.applied(lm) as edited:
        first, *others = edited.generate(prompts, 4)
        assert first.strip().startswith("Lima") and others == before[1:] != lm_replies[1:]
        assert SHARED[0].id not in "".join(line for lines in edited.explain(prompts) for line in lines)


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
        method(name, layer=0).edit(lm, [EDIT], state)
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
    assert made.edit(lm, [EDIT], state).parts[0].entries()[0]["radius"] > 0
    assert torch.equal(state.tensors["queries"], made.prepare(lm).tensors["queries"])


# Contradicted in other words ------------------------------------------------------------------------


@pytest.mark.parametrize("table, empty, radius", tables())
def test_the_key_of_an_edit_that_is_contradicted_in_other_words_finds_the_newer_one(
    table: Any, empty: Any, radius: float
) -> None:
    log = tuple(record(i, target) for i, target in enumerate((1, 2, 3, 4)))
    q, reach = on_a_line(table, 10, 60, 80, 40), torch.full((4,), radius / 10)
    first, _ = empty.extended(log[:2], q[:2], reach[:2])
    second, (training,) = first.extended(log[:3], q[2:3], reach[2:3], [[0]])
    assert training.edits == [2, 0] and training.start == 2
    entry, near = second.match(q[:3])
    assert near.all() and second.rows(entry).tolist() == [2, 1, 2]
    assert second.in_use.tolist() == [False, True, True] and second.details(log, 0) == {"in use": "a newer one"}
    third, (training,) = second.extended(log, q[3:], reach[3:], [[2]])
    assert training.edits == [3, 0, 2]  # what the second one answered, the third does
    assert third.rows(third.match(q)[0]).tolist() == [3, 1, 3, 3]
    same = record(4, 5, prompt=0)  # the first one's own prompt, asked again
    asked, _ = third.extended((*log, same), q[:1], reach[:1])
    assert asked.rows(asked.match(q)[0]).tolist() == [4, 1, 3, 3]


@pytest.mark.parametrize("table, empty, radius", tables())
def test_without_the_newer_one_the_older_is_found_again(table: Any, empty: Any, radius: float) -> None:
    log = tuple(record(i, target) for i, target in enumerate((1, 2, 3, 4)))
    q, reach = on_a_line(table, 10, 60, 80, 40), torch.full((4,), radius / 10)
    first, _ = empty.extended(log[:2], q[:2], reach[:2])
    second, _ = first.extended(log[:3], q[2:3], reach[2:3], [[0]])
    third, _ = second.extended(log, q[3:], reach[3:], [[2]])
    left = second.kept(log[:3], [0, 1])
    assert torch.equal(left.owner, first.owner) and torch.equal(left.radii, first.radii)
    assert second.kept(log[:3], [0, 2]).rows(torch.tensor([0])).tolist() == [1]  # the pair stays one
    for keep in ([1, 2], [0, 1, 3], [0, 1, 2]):  # trained together; or which of two gave the other up is not known
        with pytest.raises(Unsupported, match="together"):
            (second if len(keep) < 3 else third).kept(log[: max(keep) + 1] if len(keep) < 3 else log, keep)


@pytest.mark.parametrize("name", [*BOTH, "melo"])
def test_the_newer_edit_is_answered_at_both_prompts(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm, made = tiny_lm("gpt2"), method(name, steps=120, stop=0.1)
    state = made.prepare(lm, TEXTS)
    newer = Edit("Ann Lee comes from", "Ann Lee", "Lima")
    first = made.edit(lm, [EDIT, TWO[1]], state)
    monkeypatch.setattr("errata.methods.memory.replacing.same_fact", lambda lm, pairs, patch: [True] * len(pairs))
    patch = Patch.load(made.edit(lm, [newer], state, first).save(tmp_path / "p.safetensors"))
    with patch.applied(lm) as edited:
        new, old = (edited.score([EDIT.prompt, newer.prompt], [answer] * 2) for answer in ("Lima", "Oslo"))
        assert all(newer.id in line for (line,) in edited.explain([EDIT.prompt, newer.prompt]))
    assert all(a.total > b.total + 1 for a, b in zip(new, old, strict=True))
    assert [entry["in use"] for entry in patch.parts[0].entries()] == ["a newer one", "yes", "yes"]
    assert patch.without(newer.id) == first
    with pytest.raises(Unsupported, match="together"):
        patch.without(EDIT.id)
