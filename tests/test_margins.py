"""WISE's penalty: prompts that are far from the margin are left out of it, and it stays the same."""

from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, tiny_lm

from errata.methods.registry import method
from errata.methods.side_memory import margins
from errata.methods.side_memory.margins import Above, Margins, PromptInputs


def side(patch: Any) -> Any:
    (part,) = patch.parts
    return part


def tokens_of(lengths: list[int], size: float, seed: int) -> PromptInputs:
    draw = torch.Generator().manual_seed(seed)
    return PromptInputs.read([size * torch.rand(n, 6, generator=draw) for n in lengths], "mean")


def test_far_prompts_are_looked_at_again_where_they_may_be_above_the_limit() -> None:
    """Sizes of 2 and 3 tokens; the third prompt comes near by its own column alone, step by step."""
    x = [torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]] * 3)]
    inputs = PromptInputs.read([*x, torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, 4.0]]), *x[:1] * 3], "mean")
    assert inputs.sizes()[:3].tolist() == [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]]
    above, w = Above(inputs), torch.diag(torch.tensor([0.1, 0.1, 0.1]))
    assert above.distances(w, 1.0).tolist() == pytest.approx([0.2, 0.1, 0.3, 0.2, 0.2, 0.2])  # nothing was known
    assert above.distances(w, 1.0).tolist() == []
    near = w.clone()
    near[2, 2] = 0.3332  # 0.9996: the limit less a rounding
    assert above.distances(near, 1.0).tolist() == pytest.approx([0.9996])
    near[2, 2], near[1, 2] = -0.4, 0.3
    assert above.distances(near, 1.0).tolist() == pytest.approx([1.5])
    near[1, 1] = 1.2
    assert above.distances(near, 1.0).tolist() == pytest.approx([1.2, 1.5])  # by the mean of three tokens and of two
    near[0, 0] = 1.2  # too many: all are looked at, and known from here on
    everything = above.distances(near, 1.0).tolist()
    assert everything == pytest.approx([2.4, 1.2, 1.5, 2.4, 2.4, 2.4])
    assert above.distances(near, 2.0).tolist() == pytest.approx([2.4] * 4)
    assert len(above.distances(w, -1.0)) == 6 and above.distances(w, 1.0).tolist() == []
    w[1, 1] = 1.2  # in place
    assert above.distances(w, 1.0).tolist() == pytest.approx([1.2])


def test_bounds_grow_with_each_matrix_and_end_where_a_prompt_is_looked_at() -> None:
    inputs = PromptInputs.read([torch.eye(3)[i : i + 1] for i in (0, 1, 2, 2, 2)], "last")
    above, w = Above(inputs), torch.diag(torch.tensor([0.1, 0.1, 0.1]))
    assert len(above.distances(w, 1.0)) == 5
    for size, found in ((0.8, []), (0.1, [0.1]), (0.8, []), (1.1, [1.1]), (0.1, [0.1]), (0.9, []), (0.1, [0.1])):
        w[0, 0] = size  # there and back: what is left of the first step counts, until the prompt is looked at
        assert above.distances(w, 1.0).tolist() == pytest.approx(found)


def test_a_new_matrix_is_multiplied_with_nothing_until_it_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = PromptInputs.distances
    monkeypatch.setattr(PromptInputs, "distances", lambda of, w: looked.append(of.n) or real(of, w))
    above, w = Above(tokens_of([1, 2], 1.0, 0)), torch.zeros(3, 6)
    assert above.distances(w, 1.0).tolist() == above.distances(w, -1.0).tolist() == [0.0, 0.0] and not looked
    w[2, 5] = 1.0
    assert len(above.distances(w, 0.1)) == 2 and above.distances(0 * w, -1.0).tolist() == [0.0, 0.0]
    assert looked == [2, 2]


def test_the_penalty_without_far_prompts_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a walk that brings prompts to the margin and away from it, with gradients, in float64."""
    inside, outside = tokens_of([2, 3], 4.0, 0), tokens_of([1, 2, 3, 4] * 10, 1.0, 1)
    asked: list[int] = []
    real = PromptInputs.some
    monkeypatch.setattr(PromptInputs, "some", lambda of, chosen: asked.append(int(chosen.sum())) or real(of, chosen))
    inside, outside = (PromptInputs(one.x.double(), one.of, one.n) for one in (inside, outside))
    near = Margins(inside, outside, torch.full((2,), 5.0).double(), 1.2, 0.6)
    draw, w, penalties = torch.Generator().manual_seed(2), torch.zeros(4, 6).double(), list[float]()
    for step in range(60):
        w = (w + 0.08 * torch.randn(4, 6, generator=draw)).detach() * (0.93 if step % 20 > 14 else 1)
        found: list[tuple[Any, Any]] = []
        for one in (near, Margins(inside, outside, near.least, 1.2, 0.6)):
            at = w.clone().requires_grad_()
            penalty = one.penalty(at)
            penalty.backward()
            found.append((penalty.item(), at.grad))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
        assert torch.allclose(found[0][1], found[1][1], rtol=1e-10, atol=1e-12)
        penalties.append(found[0][0])
    assert asked and any(0 < n < 14 for n in asked), asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_edit_is_the_same_with_far_prompts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama", dtype)
    m: Any = method("wise", contexts=1, shard=500, steps=30, alpha=4.0, beta=6.0, gamma=0.5, lr=0.3)
    state = m.prepare(lm, TEXTS)
    left: list[int] = []
    real = PromptInputs.some

    def some(of: PromptInputs, chosen: torch.Tensor) -> PromptInputs:
        left.append(of.n - int(chosen.sum()))
        return real(of, chosen)

    monkeypatch.setattr(PromptInputs, "some", some)
    fast = side(m.edit(lm, EDITS[:2], state)).payload.weights
    assert sum(left) > 0
    count = len(left)
    monkeypatch.setattr(margins, "MANY", -1.0)
    plain = side(m.edit(lm, EDITS[:2], state)).payload.weights
    assert len(left) == count
    assert torch.allclose(fast, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
