"""What a patch does to a model while it is in force, and what it refuses: beside test_patch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same_weights, tiny_lm, weights
from safetensors.torch import save_file
from tiny import build

from errata import tensor_files
from errata.errors import BadInput, Unsupported
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.patch.delta import Delta, difference, trainable
from errata.patch.low_rank import LowRank
from errata.patch.memory import GRAM, KEYS, remember
from errata.patch.patch import EMPTY, Patch
from errata.tensor_files import read_tensors, write_tensors

SITE = "transformer.h.1.mlp.c_proj"  # GPT-2's Conv1D
SQUARE = "transformer.h.1.attn.c_proj"  # its weight is square: turned the wrong way it fits all the same


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize(("architecture", "site"), [("gpt2", SQUARE), ("llama", "model.layers.1.self_attn.o_proj")])
def test_a_change_is_out_by_in_whatever_the_modules_order(architecture: str, site: str, rank: int | None) -> None:
    lm = tiny_lm(architecture)
    linear: Any = lm.model.get_submodule(site)
    change = draw(32, 32) if rank is None else LowRank(draw(32, rank), draw(rank, 32, seed=1))
    dense = change if isinstance(change, torch.Tensor) else change.dense()
    x = draw(3, 32, seed=2)
    before = linear(x)
    with Patch((Delta({f"{site}.weight": change}),)).applied(lm):
        assert torch.allclose(linear(x) - before, x @ dense.T, atol=1e-4)


def test_the_old_storage_is_put_back_and_never_written() -> None:
    lm = tiny_lm("gpt2")
    param = lm.model.get_parameter(f"{SITE}.weight")
    before, storage, held = weights(lm.model), param.data_ptr(), param.data
    with Patch((Delta({f"{SITE}.weight": draw(32, 64)}),)).applied(lm):
        assert param.data_ptr() != storage and torch.equal(held, before[f"{SITE}.weight"])
    assert param.data_ptr() == storage and same_weights(lm.model, before)


def test_a_merge_into_a_view_is_refused() -> None:
    lm = HFLM(build("gpt2", vocab_size=320), tiny_lm("gpt2").tokenizer)
    before, change = weights(lm.model), Patch((Delta({f"{SITE}.weight": draw(32, 64)}),))
    with EMPTY.applied(lm) as view, pytest.raises(Unsupported, match="in force"):
        change.merge(view)
    assert same_weights(lm.model, before)
    change.merge(lm)
    assert not same_weights(lm.model, before)


def test_rank_passes_half_of_the_smaller_side() -> None:
    half, more = (LowRank(draw(6, rank), draw(rank, 8)) for rank in (3, 4))
    assert half.compact() is half and isinstance(more.compact(), torch.Tensor)
    x = draw(5, 8)
    assert torch.allclose(half.product(x), x @ half.dense().T, atol=1e-5)
    assert torch.allclose((half * 3.0).dense(), 3 * half.dense(), atol=1e-5)


def test_keys_are_kept_while_they_are_fewer_than_their_width() -> None:
    one, two = draw(3, 5), draw(2, 5, seed=1)
    memory = remember(remember({}, "s", one), "s", two[:1])
    assert list(memory) == [KEYS + "s"] and torch.equal(memory[KEYS + "s"], torch.cat([one, two[:1]]))
    memory = remember(memory, "s", two[1:])
    every = torch.cat([one, two])
    assert list(memory) == [GRAM + "s"] and torch.allclose(memory[GRAM + "s"], every.T @ every)
    more = remember(memory, "s", one)
    assert torch.allclose(more[GRAM + "s"], every.T @ every + one.T @ one, atol=1e-5)


def test_the_memory_of_a_sum_holds_the_keys_of_both() -> None:
    keys, more, gram = draw(2, 5), draw(1, 5, seed=1), draw(5, 5, seed=2)
    moment = gram.T @ gram
    a, b, c = (Patch(memory=m) for m in ({KEYS + "s": keys}, {KEYS + "s": more}, {GRAM + "s": moment}))
    assert torch.equal((a + b).memory[KEYS + "s"], torch.cat([keys, more]))
    for both in (a + c, c + a):
        assert list(both.memory) == [GRAM + "s"]
        assert torch.allclose(both.memory[GRAM + "s"], moment + keys.T @ keys, atol=1e-5)
    assert torch.allclose((c + c).memory[GRAM + "s"], 2 * moment)
    other, same = Patch(memory={"anchor/s": torch.ones(1)}), Patch(memory={"anchor/s": torch.ones(1)})
    assert (other + same) == other != a
    with pytest.raises(Unsupported, match="anchor/s"):
        other + Patch(memory={"anchor/s": torch.zeros(1)})  # pyright: ignore[reportUnusedExpression]


def test_equal_is_equal_in_type_and_shape_too() -> None:
    def of(value: torch.Tensor) -> Patch:
        return Patch((Delta({"w": value}),))

    ones = torch.ones(2, 2)
    assert of(ones) == of(ones.clone())
    assert of(ones) != of(ones.double()) and of(ones) != of(torch.ones(2)) and of(ones) != of(2 * ones)
    assert of(ones) != Patch((Delta({"v": ones}),))


def test_records_are_in_the_order_of_edits_and_factors_multiply() -> None:
    change = Delta({"w": torch.ones(2, 2)})
    a, b = (Patch((change,), meta={"made": [{"method": name, "edits": []}]}) for name in ("first", "second"))
    assert [made["method"] for made in (a + b).meta["made"]] == ["first", "second"]
    assert ((a * 3) * 2).meta["scaled"] == 6 and torch.equal((a * 3).parts[0].tensors()["w"], 3 * torch.ones(2, 2))


def test_a_part_that_is_swapped_in_stands_where_the_old_one_did() -> None:
    one, two, three = (Delta({name: torch.ones(1)}) for name in "abc")
    patch = Patch((one, two))
    assert patch.swap(one, three).parts == (three, two) and patch.swap(one, None).parts == (two,)
    assert patch.swap(three, three).parts == (one, two, three)


def test_training_copies_share_nothing_and_their_difference_is_the_change() -> None:
    lm = tiny_lm("gpt2")
    before, name = weights(lm.model), f"{SITE}.weight"
    copies = trainable(lm, [name])
    assert copies[name].requires_grad
    with torch.no_grad():
        copies[name] += torch.arange(64.0)[:, None]  # (in, out), as the module has it
    assert same_weights(lm.model, before)
    change = difference(lm, copies).weights[name]
    assert torch.allclose(change, torch.arange(64.0).expand(32, 64), atol=1e-4)  # pyright: ignore


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.mkdir()
    (target / "inside").touch()
    with pytest.raises(BadInput, match="cannot write"):
        write_tensors(target, {"w": torch.ones(1)}, {}, "patch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    with pytest.raises(BadInput, match="no patch at"):
        read_tensors(tmp_path / "missing", "patch")


def test_a_file_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "patch.safetensors"
    monkeypatch.setattr(tensor_files, "FORMAT", "99")
    write_tensors(path, {}, {"parts": [], "meta": {}}, "patch")
    monkeypatch.undo()
    with pytest.raises(BadInput, match="format '99'; this Errata reads format 2: update Errata"):
        Patch.load(path)
    header = {"format": 1, "parts": [], "meta": {}}
    save_file({"x": torch.ones(1)}, path, {"errata": json.dumps(header)})  # as the first version wrote it
    with pytest.raises(BadInput, match="format '1'; this Errata reads format 2: make it again"):
        Patch.load(path)


def test_a_state_is_no_patch(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    State({"x": torch.ones(1)}, {}).save(path)
    with pytest.raises(BadInput, match="is a state; give a patch"):
        Patch.load(path)
    Patch().save(path)
    with pytest.raises(BadInput, match="is a patch; give a state"):
        State.load(path)
