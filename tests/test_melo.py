"""MELO: the rule of the clusters, which block answers, where it is in force, and taking an edit out."""

from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, tiny_lm

from errata.errors import BadInput, Unsupported
from errata.methods.codebook.melo import Clusters, low_rank
from errata.methods.memory.log import EditRecord
from errata.methods.registry import method
from errata.model import hooks
from errata.patch.patch import Patch
from errata.types import Edit

QUICK: dict[str, Any] = {"steps": 40}
TWO = [
    Edit("Ann Lee was born in", "Ann Lee", "New York"),
    Edit("Bob Ray lives in", "Bob Ray", "Lima"),
    Edit("Dora Finn is the mayor of", "Dora Finn", "Paris"),
]


def record(i: int, target: int, prompt: int | None = None) -> EditRecord:
    ids = [i if prompt is None else prompt]
    return EditRecord(f"e{i}", f"prompt {i}", "prompt", "target", None, ids, [target])


def clusters(*placed: tuple[float, int], radius: float = 1.0) -> Clusters:
    """Clusters of prompts on a line: (position, target) in order."""
    log = tuple(record(i, target) for i, (_, target) in enumerate(placed))
    reach = torch.full((len(placed),), radius)
    return Clusters.empty(1, split=True).extended(log, torch.tensor([[x] for x, _ in placed]), reach)[0]


def test_a_cluster_moves_to_the_mean_of_its_questions() -> None:
    far = clusters((0, 1), (2.1, 1))
    assert far.owner.tolist() == [0, 1] and far.radii.tolist() == [1.0, 1.0]
    near = clusters((0, 1), (1.5, 1))
    assert near.owner.tolist() == [0, 0] and near.key(0).item() == 0.75
    assert near.radii[0] == 1.0 and near.radii[1] < 0  # the farthest is at 0.75, and it begins with 1
    grown = clusters((0, 1), (1.5, 1), (2.6, 1))
    centre = (0 + 1.5 + 2.6) / 3
    assert grown.key(0).item() == pytest.approx(centre) and grown.radii[0].item() == pytest.approx(centre)


def test_a_cluster_of_another_answer_halves_the_way_and_takes_apart_what_it_meets() -> None:
    halved = clusters((0, 1), (1.5, 2))
    assert halved.radii.tolist() == pytest.approx([0.75, 0.75], rel=1e-4) and halved.radii[0] < halved.radii[1]
    between = clusters((0, 1), (1.5, 1), (0.75, 2))  # right at the centre of the first two
    assert between.owner.tolist() == [0, 1, 2] and between.in_use.all()
    assert between.radii.tolist() == pytest.approx([0.375, 0.375, 0.375], rel=1e-4)
    entry, near = between.match(torch.tensor([[0.1], [0.7], [1.4], [0.0]]))
    assert entry.tolist() == [0, 2, 1, 0] and near.all()
    beyond = clusters((0, 1), (1.0, 1), (1.5, 2))  # the second no longer reached from the centre, 0.5
    assert beyond.owner.tolist() == [0, 1, 2] and beyond.radii.tolist() == pytest.approx([1.0, 0.25, 0.25], rel=1e-4)


def test_the_nearest_question_of_the_nearest_cluster_answers() -> None:
    book = clusters((0, 1), (1.5, 1), (10, 2))
    entry, near = book.match(torch.tensor([[0.7], [0.8], [9.5], [3.0], [-0.5]]))
    assert near.tolist() == [True, True, True, False, False] and entry[:3].tolist() == [0, 1, 2]


def test_blocks_of_a_few_edits() -> None:
    lm = tiny_lm("gpt2")
    made = method("melo", **QUICK, edits=2)
    state = made.prepare(lm, TEXTS)
    patch: Any = made.edit(lm, [EDIT], state, made.edit(lm, TWO, state))
    part = patch.parts[0]
    assert part.payload.of.tolist() == [0, 0, 1, 2]
    assert part.site == lm.sites.mlp_out[2] and list(part.payload.factors) == [lm.sites.mlp_in[3][0]]
    for path, (a, b) in part.payload.factors.items():
        out = lm.model.get_submodule(path)(torch.zeros(1, 1, 32)).shape[-1]
        assert a.shape == (3, 2, 32) and b.shape == (3, out, 2)
    with pytest.raises(Unsupported, match="together"):
        patch.without(TWO[0].id)
    assert patch.without(EDIT.id) == made.edit(lm, TWO, state)


def test_an_edit_taken_out_was_never_made() -> None:
    lm = tiny_lm("gpt2")
    made = method("melo", **QUICK, edits=1)
    state = made.prepare(lm, TEXTS)
    whole = with_one_less = Patch()
    for edit in TWO:
        whole = made.edit(lm, [edit], state, whole)
        if edit != TWO[1]:
            with_one_less = made.edit(lm, [edit], state, with_one_less)
    assert whole.without(TWO[1].id) == with_one_less


def test_the_prompt_itself_is_read_with_the_block_in_force() -> None:
    """Above the clusters every token of the prompt, the row of another question not at all."""
    lm = tiny_lm("gpt2")
    made = method("melo", **QUICK, share=0.0)
    patch: Any = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    (part,) = patch.parts
    path, (a, b) = next(iter(part.payload.factors.items()))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = lm.model.get_submodule(path)
    prompts = [EDIT.prompt, "A baker went by night to"]
    with patch.applied(lm) as edited, hooks.after(plain, lambda args, kwargs, y: seen.append((args[0], y))):
        edited.score(prompts, ["Rome", "Lima"])
    x, y = seen[0]
    added = y - plain(x)
    n = len(lm.tokens.prompt(EDIT.prompt))
    assert torch.allclose(added[:1], low_rank(x[:1], a[:1], b[:1]), atol=1e-4)
    assert (added[0, :n].norm(dim=-1) > 1e-3).all() and not added[1].any()


@pytest.mark.parametrize("cache", [True, False])
def test_generated_as_scored(cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    made = method("melo", steps=150, lr=0.2, halve=0, edits=1)
    patch = made.edit(lm, TWO, made.prepare(lm, TEXTS))
    if not cache:
        monkeypatch.setattr("errata.model.decoding.new_cache", lambda model: None)
    prompts, targets = [e.prompt for e in TWO], [e.target_new for e in TWO]
    with patch.applied(lm) as edited:
        assert all(score.correct for score in edited.score(prompts, targets))
        assert all(text.strip().startswith(t) for text, t in zip(edited.generate(prompts, 8), targets))
        assert edited.generate(prompts, 8) == [edited.generate([prompt], 8)[0] for prompt in prompts]
        assert all(e.id in line for e, (line,) in zip(TWO, edited.explain(prompts), strict=True))


def test_questions_of_others_are_answered_bit_for_bit_as_before() -> None:
    lm = tiny_lm("llama")
    made = method("melo", **QUICK, share=0.0)
    patch = made.edit(lm, EDITS, made.prepare(lm, TEXTS))
    others = ["A baker went by night to", "Rome"]
    before = lm.score(others, ["Lima", "Oslo"]), lm.generate(others, 6)
    with patch.applied(lm) as edited:
        assert (edited.score(others, ["Lima", "Oslo"]), edited.generate(others, 6)) == before
        assert edited.explain(others) == [[], []]


def test_blocks_are_trained_alike_alone_and_in_a_batch() -> None:
    lm = tiny_lm("gpt2", torch.float64)
    made = method("melo", steps=8, stop=0.0, edits=1)
    state = made.prepare(lm, TEXTS)
    together: Any = made.edit(lm, TWO, state).parts[0]
    for i, edit in enumerate(TWO):
        alone: Any = made.edit(lm, [edit], state).parts[0]
        for path, (a, b) in together.payload.factors.items():
            assert torch.allclose(a[i], alone.payload.factors[path][0][0], atol=1e-6)
            assert torch.allclose(b[i], alone.payload.factors[path][1][0], atol=1e-6)


def test_both_halves_of_an_encoder_decoder() -> None:
    lm: Any = tiny_lm("t5")
    made = method("melo", **QUICK, layer=1, targets=("mlp_in", "mlp_out"))
    part: Any = made.edit(lm, [EDIT], made.prepare(lm, TEXTS)).parts[0]
    stacks = (lm.sites.encoder, lm.sites.decoder)
    expected = {p for s in stacks for i in (2, 3) for p in (*s.mlp_in[i], s.mlp_out[i])}
    assert part.site == lm.sites.encoder.mlp_out[1] and set(part.payload.factors) == expected


def test_bad_input() -> None:
    lm = tiny_lm("gpt2")
    made = method("melo", **QUICK)
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, [EDIT], state)
    for layers in ((1,), (4,)):
        with pytest.raises(BadInput, match="above its clusters"):
            method("melo", layers=layers).prepare(lm, TEXTS)
    with pytest.raises(BadInput, match="above its clusters"):
        method("melo", layer=3).prepare(lm, TEXTS)
    with pytest.raises(BadInput, match="prepared without"):
        method("melo", targets=("mlp_out",)).edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="rank = 2"):
        method("melo", rank=3).edit(lm, [EDITS[1]], state, patch)
    lower = method("melo", layer=0)
    with pytest.raises(BadInput, match="the melo memory in prior has site"):
        lower.edit(lm, [EDITS[1]], lower.prepare(lm, TEXTS), patch)
    with pytest.raises(BadInput, match="targets"):
        method("melo", targets=())
