# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Changes that run beside their weights, which are offloaded, quantised or too coarse to be changed themselves."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from errata.model import hooks
from errata.model import weights as stored
from errata.model.experts import routed
from errata.model.passes import at_least_float32
from errata.model.stacks import DOWN, is_stack
from errata.patch.low_rank import Weight, product


def can_run_beside(model: nn.Module, name: str) -> bool:
    """Whether a change can run beside the parameter: a linear's own, which no other module reads, or a stack's."""
    module, leaf = stored.owner(model, name)
    if stored.indexed(name)[1] is not None:
        return leaf == DOWN and is_stack(module)
    param = model.get_parameter(name)
    readers = [n for n, p in model.named_parameters(remove_duplicate=False) if p is param]
    return stored.is_linear(module) and leaf in ("weight", "bias") and len(readers) == 1


def side_products(model: nn.Module, weights: Mapping[str, Weight]) -> list[Any]:
    """Context managers: linears output y + x Δᵀ, and stacks of experts y + Σ g x Δᵀ over the tokens of each expert.

    For weights that are offloaded, quantised or too coarse.
    """
    stacks: dict[nn.Module, dict[int, Weight]] = {}
    contexts: list[Any] = []
    for name, w in weights.items():
        module, leaf = stored.owner(model, name)
        index = stored.indexed(name)[1]
        if index is not None and leaf == DOWN and is_stack(module) and not getattr(module, DOWN).is_meta:
            stacks.setdefault(module, {})[index] = w
        elif leaf == "bias" or (leaf == "weight" and stored.is_linear(module)):
            contexts.append(_beside_linear(module, leaf, w))
        else:
            raise stored.refusal(model, name, "belongs to no linear layer, beside which its change could run")
    return [*contexts, *(_beside_experts(module, changes) for module, changes in stacks.items())]


def _beside_linear(module: nn.Module, leaf: str, w: Weight) -> Any:
    def add(args: hooks.Args, kwargs: hooks.Kwargs, y: Tensor) -> Tensor:
        nonlocal w
        wide = at_least_float32(y)
        w = w.to(wide)  # moved once
        if leaf == "bias":
            return (wide + (w if isinstance(w, Tensor) else w.dense())).to(y)
        return (wide + product(w, args[0].to(wide))).to(y)

    return hooks.after(module, add)


def _beside_experts(module: nn.Module, changes: dict[int, Weight]) -> Any:
    def add(args: hooks.Args, kwargs: hooks.Kwargs, y: Tensor) -> Tensor:
        wide = at_least_float32(y).reshape(-1, y.shape[-1])
        for call in routed(module, args, kwargs, only=changes):
            w = changes[call.expert] = changes[call.expert].to(wide)  # moved once
            wide = wide.index_add(0, call.rows, product(w, call.keys.to(wide)))
        return wide.view_as(y).to(y)

    return hooks.after(module, add)
