"""Experts whose weights are stacked in three dimensions: how they are told, and how their matrices lie."""

from typing import Any

from torch import nn

STACKED = ("down_proj", "gate_up_proj", "up_proj")  # parameters of a module of experts, one matrix of each
DOWN = "down_proj"  # the stacked down projections of a module of experts, (E, out, in) or (E, in, out)


def is_stack(module: Any) -> bool:
    """Whether a module holds the weights of experts stacked in three dimensions."""
    down = getattr(module, DOWN, None)
    return isinstance(down, nn.Parameter) and down.ndim == 3 and _into(module) is not None


def stacked_transposed(module: Any) -> bool:
    """Whether a stack of experts keeps its matrices as (in, out)."""
    declared = getattr(module, "is_transposed", None)
    if declared is not None:
        return bool(declared)
    into, down = _into(module), getattr(module, DOWN)
    return bool(into.shape[1] == down.shape[2] and into.shape[2] == 2 * down.shape[1])


def _into(module: Any) -> Any:
    """The stacked weights that read the hidden state, gate and up projection in one; None where there are none."""
    named = (getattr(module, name, None) for name in STACKED[1:])
    return next((p for p in named if isinstance(p, nn.Parameter) and p.ndim == 3), None)
