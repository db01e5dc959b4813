"""Finds what a block's experts are, in one run of it: for :mod:`errata.model.detect`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.model.experts import output_of, routed
from errata.model.recording import ModuleCall, acts_on_tokens, same
from errata.model.stacks import DOWN, is_stack

TOLERANCE = 0.02  # of a vector's length, within which it is what was computed


@dataclass(frozen=True)
class Mixture:
    """The module whose output is the MLP's, and the modules inside that its down projection is made of.

    ``parts`` are the stack of experts and, where there is one, the linear layer of the expert that all tokens share.
    """

    call: ModuleCall
    parts: tuple[str, ...]


def mixture_of(block: ModuleCall, calls: list[ModuleCall]) -> Mixture | str | None:
    """The mixture of experts in a block, given the calls of one run; None without, and in words why it is not known.

    Taken is the module around the stack if it adds nothing but a shared expert, weighted by a number for each token;
    else the stack itself.
    """
    inside = set(block.module.modules())
    stacks = [call for call in calls if call.module in inside and is_stack(call.module)]
    if not stacks:
        return None
    if len(stacks) > 1:
        return f"holds {len(stacks)} stacks of experts"
    (stack,) = stacks
    around = next((call for call in calls if call.name == stack.name.rpartition(".")[0]), None)
    if block.output_state is not None and block.output_state.is_meta:
        return _believed(block, around, stack, calls)
    if getattr(stack.module, DOWN).is_meta:
        return f"holds experts (`{stack.name}`) that hold no numbers here (offloaded, or on meta); load the model whole"
    if stack.output_state is None or block.output_state is None or not _is_sum(stack, stack.output_state):
        return f"holds experts (`{stack.name}`) whose output is not the sum of what their down projections give"
    if around is not None and around.module is not block.module:
        shared = [call for call in calls if _is_shared(call, around, stack)]
        if _adds_up(around, stack, shared) and acts_on_tokens(around):
            return Mixture(around, (stack.name, *(call.name for call in shared)))
    if stack.output_state.numel() == block.output_state.numel() and acts_on_tokens(stack):
        return Mixture(stack, (stack.name,))
    return f"holds experts (`{stack.name}`) and around them something else than an expert that all tokens share"


def _believed(block: ModuleCall, around: ModuleCall | None, stack: ModuleCall, calls: list[ModuleCall]) -> Mixture:
    """The mixture of a block without numbers: what is around a stack is believed to add one shared expert at most."""
    if around is None or around.module is block.module:
        return Mixture(stack, (stack.name,))
    shared = [call.name for call in calls if _is_shared(call, around, stack)]
    return Mixture(around, (stack.name, *shared)) if len(shared) < 2 else Mixture(stack, (stack.name,))


def _is_sum(stack: ModuleCall, out: Tensor) -> bool:
    """Whether the keys that :func:`routed` tells give the stack's output, up to what it gives without them."""
    module = stack.module
    zeros = {DOWN: torch.zeros_like(getattr(module, DOWN))}
    without = torch.func.functional_call(module, zeros, stack.args, stack.kwargs)
    return _near(output_of(module, routed(module, stack.args, stack.kwargs), out), out - without)


def _is_shared(call: ModuleCall, around: ModuleCall, stack: ModuleCall) -> bool:
    """Whether a linear layer beside the stack puts out hidden states, and reads others than the mixture does."""
    beside = call.name.startswith(f"{around.name}.") and not call.name.startswith(f"{stack.name}.")
    read, state, given, out = call.input_state, call.output_state, around.input_state, around.output_state
    if not (beside and call.is_linear) or read is None or state is None or given is None or out is None:
        return False
    return state.shape[-1] == out.shape[-1] and (
        read.numel() != given.numel() or not same(read.flatten(), given.flatten())
    )


def _adds_up(around: ModuleCall, stack: ModuleCall, shared: list[ModuleCall]) -> bool:
    """Whether the output is the stack's and, for each token, some multiple of the shared expert's."""
    out = around.output_state
    if out is None or stack.output_state is None or len(shared) > 1:
        return False
    rest = left_over(out, stack.output_state)
    if not shared:
        return _near(rest + out.reshape(rest.shape), out.reshape(rest.shape))
    own = shared[0].module(*shared[0].args).reshape(rest.shape)  # anew: some add to what it gave, in place
    return _near(gate_of(rest, own)[:, None] * own, rest)


def left_over(out: Tensor, stack_out: Tensor) -> Tensor:
    """(T, d): a mixture's output without its experts', which a stack gives for each token or each token and expert."""
    flat = out.reshape(-1, out.shape[-1]).to(torch.promote_types(out.dtype, torch.float32))
    return flat - stack_out.to(flat).reshape(-1, *flat.shape).sum(0)


def gate_of(rest: Tensor, own: Tensor) -> Tensor:
    """(T,): by what number for each token the shared expert's output ``own`` (T, d) is weighted to give ``rest``."""
    own = own.to(rest)
    return (rest * own).sum(-1) / own.square().sum(-1).clamp(min=torch.finfo(rest.dtype).tiny)


def _near(x: Tensor, expected: Tensor) -> bool:
    x, expected = x.float(), expected.float()
    return bool((x - expected).norm() <= TOLERANCE * expected.norm().clamp(min=1e-12))
