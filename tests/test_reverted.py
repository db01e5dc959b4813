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
from errata.methods.reverting import ALONE, DROPPED
from errata.patch.delta import Delta
from errata.patch.memory import TARGETS, joined_memory, remember_targets
from errata.patch.patch import EMPTY, Patch
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
    """In float64 to 1e-6 of the change: exact in one batch; one after another with the later ones searched for anew."""
    made, lm, state = made_with(name, arch, seed=3)
    before = weights(lm.model)
    patch, never = made.edit(lm, MORE, state), made.edit(lm, OTHERS, state)
    left, how = errata.reverted(lm, patch, TAKEN.id, state, search=made.one_by_one)
    assert how == (SEARCHED if made.one_by_one else EXACT)
    assert left.edits == OTHERS and left.meta["reverted"] == [{"edit": TAKEN.id, "how": how}]
    assert apart(never, left) < 1e-6 and same_memory(never, left, 1e-6)
    assert left.meta["made"][0]["outcomes"].keys() == {edit.id for edit in OTHERS}
    assert same_weights(lm.model, before)
    assert apart(patch, left) > 1e-2
