"""Mixtures of experts: what a block's experts add up to is one linear map of all their keys.

    v = Σₑ gₑ Wₑ kₑ = [W₁ … W_E] [g₁k₁ … g_E k_E]

over the experts e that a token is routed to, each weighted by its gate g. So a token's key is made of parts, one for
each expert, and zero where it was not sent. transformers keeps the Wₑ stacked in one parameter; one of them is named by
its index: ``model.layers.3.mlp.experts.down_proj[17]``.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import Unsupported
from errata.model import hooks
from errata.model.stacks import DOWN, is_stack, stacked_transposed


def stand_ins(model: nn.Module, show: Callable[[nn.Module, int], None]) -> AbstractContextManager[None]:
    """Context manager: each stack of experts runs its first one in the place of those that a token is sent to.

    The shapes and the operations are the same, and nothing depends on numbers: for models without them. ``show`` gets
    each stack and how many rows its experts got.
    """

    def forward(module: nn.Module) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            given, index, _ = _call(args, kwargs)
            states = given.reshape(-1, given.shape[-1])
            times = 1 if index is None else index.shape[-1]
            out = _keys(module, states.repeat_interleave(times, 0), 0) @ down(module, 0).T
            show(module, len(out))
            return out.view(-1, times, out.shape[-1]).sum(1).view_as(given)

        return run

    return hooks.forward_replaced({module: forward(module) for module in model.modules() if is_stack(module)})


@dataclass(frozen=True)
class Routed:
    """What one expert of a stack got in a pass.

    ``rows`` (m,) are where its outputs go in the stack's output, ``tokens`` (m,) which tokens they are of, both among
    all b·t; ``keys`` (m, f) are weighted by the gate, float32 or finer.
    """

    expert: int
    rows: Tensor
    tokens: Tensor
    keys: Tensor


def routed(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], only: Collection[int] | None = None
) -> Iterator[Routed]:
    """What each expert that was called got, of those in ``only``; ``args`` and ``kwargs`` are of the stack's call.

    With hidden states come each token's experts and gates (T, k); without those the hidden states are the tokens of one
    expert after another, weighted already. Raises :class:`Unsupported` where the experts are offloaded.
    """
    if getattr(module, DOWN).is_meta:
        raise Unsupported("the experts of this model are offloaded, and their keys cannot be read; load it whole")
    given, index, gates = _call(args, kwargs)
    hidden = given.reshape(-1, given.shape[-1])
    count = len(getattr(module, DOWN))
    wanted = sorted(range(count) if only is None else only)
    if index is None or gates is None:
        each = len(hidden) // count
        for e in wanted:
            states = hidden[e * each : (e + 1) * each]
            tokens = states.abs().amax(-1).nonzero()[:, 0]
            if len(tokens):
                yield Routed(e, tokens + e * each, tokens, _wide(_keys(module, states[tokens], e)))
        return
    called = set(index.unique().tolist())
    for e in (e for e in wanted if e in called):
        tokens, places = (index == e).nonzero(as_tuple=True)
        if len(tokens):
            gate = gates[tokens, places] if gates.shape == index.shape else gates[tokens, e]
            yield Routed(e, tokens, tokens, _wide(_keys(module, hidden[tokens], e)) * _wide(gate)[:, None])


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The hidden states, each token's experts and their gates in the call of a stack."""
    hidden, *others = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    index = next((x for x in others if not x.is_floating_point()), None)
    return hidden, index, next((x for x in others if x.is_floating_point()), None)


def output_of(module: Any, calls: Iterator[Routed], like: Tensor) -> Tensor:
    """The stack's output as the weighted sum of its experts', without their biases; as ``like``."""
    total = torch.zeros_like(_wide(like).reshape(-1, like.shape[-1]))
    for call in calls:
        total.index_add_(0, call.rows, call.keys @ _wide(down(module, call.expert)).T)
    return total.view_as(like)


def down(module: Any, expert: int) -> Tensor:
    """The down projection of an expert, (out, in)."""
    weight = getattr(module, DOWN)[expert]
    return weight.T if stacked_transposed(module) else weight


def _keys(module: Any, states: Tensor, expert: int) -> Tensor:
    """What goes into an expert's down projection, (m, f), for hidden states (m, d)."""
    name = "gate_up_proj" if getattr(module, "gate_up_proj", None) is not None else "up_proj"
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    out = states.to(weight.device) @ (weight if stacked_transposed(module) else weight.T)
    out = out if bias is None else out + bias[expert]
    if name == "up_proj":
        return module.act_fn(out)
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(out)
    gate, up = out.chunk(2, -1)
    return module.act_fn(gate) * up


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
