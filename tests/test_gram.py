"""The sum of k kᵀ, of which half is held: equal to the plain product, whatever comes when."""

import pytest
import torch
from conftest import TEXTS, tiny_lm
from torch.utils.flop_counter import FlopCounterMode

from errata.model.gram import STRIPS, WAITING, Gram
from errata.model.projection import KEY
from errata.model.second_moment import second_moments

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [1, 3, 7, 64, 100])
def test_a_sum_is_the_plain_product(width: int) -> None:
    """Of many keys at once, of single ones that wait, and of those that come behind what waits."""
    x = torch.randn(3 * width + 5, width, generator=torch.Generator().manual_seed(0))
    gram = Gram(width, CPU)
    for part in x.split([1, 2, width // WAITING, 0, width, len(x) - 3 - width // WAITING - width]):
        gram.add(part.clone())
    assert gram.count == len(x)
    assert torch.allclose(gram.matrix(), x.T @ x, rtol=1e-5, atol=1e-5 * len(x))
    assert torch.equal(gram.matrix(), gram.matrix().T)
    gram.add(x[:1])  # it goes on behind what was asked
    assert torch.allclose(gram.matrix(), x.T @ x + x[:1].T @ x[:1], rtol=1e-5, atol=1e-5 * len(x))


def test_what_waits_is_a_copy() -> None:
    gram, key = Gram(64, CPU), torch.ones(1, 64)
    gram.add(key)
    key.zero_()
    assert torch.equal(gram.matrix(), torch.ones(64, 64))


def test_sums_join() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    one, other = Gram(64, CPU), Gram(64, CPU)
    one.add(x[:3])
    other.add(x[3:49])
    other.add(x[49:])
    one.join(other)
    assert one.count == 50
    assert torch.allclose(one.matrix(), x.T @ x, atol=1e-4)


def test_little_more_than_half_is_held_and_computed() -> None:
    f, n = 64, 128
    gram, x = Gram(f, CPU), torch.randn(n, 64)
    with FlopCounterMode(display=False) as counter:
        gram.add(x)
    half = (1 + 1 / STRIPS) / 2
    assert counter.get_total_flops() == half * 2 * n * f * f
    assert sum(strip.nbytes for strip in gram.strips) == half * 4 * f * f


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3_text", "qwen2_moe"])
def test_second_moments_are_those_of_the_keys_that_are_read(arch: str, dtype: torch.dtype) -> None:
    """No padding among them, however ragged the rows; in a mixture each expert's own."""
    lm = tiny_lm(arch, dtype)
    lm.budget = 128
    ids = [lm.tokens.ids(text) for text in TEXTS[:12]]
    pieces = [row[: 1 + i % len(row)] for i, row in enumerate(ids)]
    paths = [lm.sites.mlp_out[layer] for layer in (0, 2)]
    moments, seen = second_moments(lm, pieces, paths)
    read = lm.read(pieces, [range(len(piece)) for piece in pieces], [(path, KEY) for path in paths])
    assert set(moments) == {name for name, _ in read}
    rough = 1e-4 if dtype == torch.float32 else 3e-2
    for (name, _), keys in read.items():
        expected = keys.T @ keys / sum(map(len, pieces))
        assert seen[name] <= len(keys) and (seen[name] == int(keys.any(1).sum()) or dtype != torch.float32)
        assert (moments[name] - expected).norm() <= rough * expected.norm()
