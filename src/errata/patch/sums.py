# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A weight and its change summed, in the type that the weight is stored in; and what rounding leaves of the change."""

from collections.abc import Generator
from math import isfinite

import torch
from torch import Tensor, nn

from errata.model import weights as stored
from errata.model.passes import at_least_float32, float64_device
from errata.patch.low_rank import LowRank, Weight

BLOCK = 2**22  # entries of a matrix in half precision that are summed at a time, in float32


def changed_weight(model: nn.Module, name: str, w: Weight) -> Tensor:
    """W + ΔW in new storage, in the module's own order and type. Summed in float32 or more precisely."""
    stored.plain(model, name, "cannot be changed for good")
    value = stored.matrix_of(model, name)
    if at_least_float32(value[:0]).dtype != value.dtype:
        summed = torch.empty_like(value, memory_format=torch.contiguous_format)
        for rows, delta in _blocks(model, name, w, value):
            summed[rows] = (value[rows] + delta).to(value.dtype)  # the sum is of delta's type
        return summed
    if isinstance(w, LowRank):
        a, b = w.a.to(value), w.b.to(value)
        summed = (
            torch.addmm(value, b.T, a.T) if stored.swapped(*stored.owner(model, name)) else torch.addmm(value, a, b)
        )
    else:
        wide = _wide(w, value)
        summed = (value.to(wide) + stored.oriented(model, name, w.to(value.device, wide))).to(value.dtype)
    return summed.contiguous()


def _wide(w: Tensor, value: Tensor) -> torch.dtype:
    """The type of a sum: float32, or float64 where one of both has it and the device too."""
    wide = torch.promote_types(torch.promote_types(w.dtype, value.dtype), torch.float32)
    return wide if wide != torch.float64 or float64_device(value.device) == value.device else torch.float32


def _blocks(model: nn.Module, name: str, w: Weight, held: Tensor) -> Generator[tuple[slice, Tensor], None, None]:
    """Some rows of a matrix, as it is stored, and their ΔW, float32 or finer: so that no copy of the whole is made."""
    step = max(1, BLOCK // max(1, held[:1].numel()))
    left, right = (w.a, w.b) if isinstance(w, LowRank) else (w, None)
    if right is not None and stored.swapped(*stored.owner(model, name)):
        left, right = right.T, left.T
    elif right is None:
        left = stored.oriented(model, name, left)
    wide = _wide(left, held)
    right = right if right is None else right.to(held.device, wide)
    for start in range(0, len(held), step):
        rows = slice(start, start + step)
        some = left[rows].to(held.device, wide)
        yield rows, some if right is None else some @ right


def left_by_rounding(model: nn.Module, name: str, w: Weight, summed: Tensor) -> float:
    """The share of a change ΔW that is left in ``summed``, as :func:`changed_weight` made it: 1.0 where all of it is.

    In bfloat16 an entry of W has 8 bits; what is less than half of the last one is gone. Each entry of Δ counts by its
    size: Σ sign(Δ) (summed − W) / Σ |Δ|. A patch knows no keys; of the Δk of its edits about as much is left: ten edits
    by MEMIT, scaled to ‖Δ‖ = 0.001 ‖W‖, have 0.47 here, and over their keys 0.56 in the mean and 0.42 at least; scaled
    to 0.01 ‖W‖ 0.96, and 0.98 in the mean and at least.
    """
    held = stored.matrix_of(model, name)
    if held.dtype not in (torch.float16, torch.bfloat16):
        return 1.0
    size = left = 0.0
    for rows, delta in _blocks(model, name, w, held):
        size += float(delta.abs().sum())
        left += float(((summed[rows].float() - held[rows].float()) * delta.sign()).sum())
    return 0.0 if not isfinite(left) else left / size if size else 1.0  # past float16's largest number nothing is left
