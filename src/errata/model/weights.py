"""The weights of linear layers in whatever form they are stored: in either order, stacked, offloaded, quantised."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import Unsupported
from errata.model.stacks import STACKED, is_stack, stacked_transposed

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that sums are computed in


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer of any kind."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D) or hasattr(module, "in_features")


def transposed(module: nn.Module) -> bool:
    """Whether the weight is stored as (in, out), as in GPT-2's Conv1D; all others, and deltas, are (out, in)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def swapped(module: nn.Module, leaf: str) -> bool:
    """Whether the matrices of a parameter of this module are stored as (in, out)."""
    if leaf in STACKED and is_stack(module):
        return stacked_transposed(module)
    return leaf == "weight" and transposed(module)


def indexed(name: str) -> tuple[str, int | None]:
    """The name of a parameter, and which of its stacked matrices is meant: None where it is the whole."""
    match = re.fullmatch(r"(.+)\[(0|[1-9][0-9]{0,8})\]", name)
    return (match[1], int(match[2])) if match else (name, None)


def stem(weight: str) -> str:
    """A weight's name as states and memories have it: a linear's own path, or a matrix of a stack."""
    return weight.removesuffix(".weight")


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that a parameter of this name belongs to, and its own name there."""
    path, _, leaf = indexed(name)[0].rpartition(".")
    return model.get_submodule(path), leaf


def holds_integers(module: nn.Module) -> bool:
    """Whether matrices of integers belong to the module itself, as to those that pack a weight."""
    held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(x.ndim > 1 and not x.is_floating_point() and x.dtype != torch.bool for x in held)


def form(value: Any) -> str:
    """In which form a parameter is stored: ``plain`` (floats in this memory), ``offloaded`` or ``quantised``."""
    if type(value) is not nn.Parameter or (value.dtype not in FLOATS):  # other classes pack their values
        return "quantised"
    return "offloaded" if value.device.type == "meta" else "plain"


def is_plain(model: nn.Module, name: str) -> bool:
    """Whether a parameter can be read and replaced as it stands."""
    module, leaf = owner(model, name)
    return form(getattr(module, leaf, None)) == "plain"


def shape_of(model: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a parameter whatever its form; matrices are (out, in), not as they are packed.

    Raises :class:`AttributeError` for a name that the model does not have, and :class:`Unsupported` for a packed weight
    of a module that does not say how large it is.
    """
    (module, leaf), (_, index) = owner(model, name), indexed(name)
    value: Any = getattr(module, leaf, None)
    if form(value) != "quantised":
        shape = tuple(value.shape)
        if index is not None:
            if len(shape) != 3 or index >= shape[0]:
                raise AttributeError(f"the model has no matrix {name}")
            shape = shape[1:]
        return (*shape[:-2], shape[-1], shape[-2]) if swapped(module, leaf) else shape
    if index is not None:
        raise AttributeError(f"the model has no matrix {name}")
    if leaf == "weight" and hasattr(module, "in_features"):
        size: Any = module
        return size.out_features, size.in_features
    if value is None and (leaf != "weight" or not holds_integers(module)):
        raise AttributeError(f"the model has no parameter {name}")
    raise refusal(model, name, "its size is not known")


def weight_shape(model: nn.Module, name: str) -> tuple[int, int]:
    """(out, in) of a linear's weight, by parameter name."""
    rows, columns = shape_of(model, name)
    return rows, columns


def matrix_of(model: nn.Module, name: str) -> Tensor:
    """What is stored under a name: a parameter, or one matrix of a stack."""
    whole, index = indexed(name)
    param = model.get_parameter(whole)
    return param.data if index is None else param.data[index]


def oriented(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A change in (out, in) in the order in which the module stores the parameter, or the other way round."""
    return value.transpose(-1, -2) if swapped(*owner(model, name)) else value


def plain(model: nn.Module, name: str, reason: str) -> nn.Parameter:
    """The parameter as it is stored. Raises :class:`Unsupported`, with the reason, unless it holds floats in memory."""
    shape_of(model, name)
    if not is_plain(model, name):
        raise refusal(model, name, reason)
    return model.get_parameter(indexed(name)[0])


def refusal(model: nn.Module, name: str, reason: str) -> Unsupported:
    """The error about a weight that is not plain: what it is, why that is in the way, and what to load instead."""
    module, leaf = owner(model, name)
    kind = form(getattr(module, leaf, None))
    whole = "on one device" if kind == "offloaded" else "unquantised"
    return Unsupported(f"{name} ({type(module).__name__}) is {kind}, and {reason}; load the model {whole}")


def packed(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each linear layer whose weight is quantised."""
    for path, module in model.named_modules():
        if hasattr(module, "in_features") and form(getattr(module, "weight", None)) == "quantised":
            yield path, module


def check_gradients(model: nn.Module) -> None:
    """Raises :class:`Unsupported` where a quantised layer passes no gradient on, as kernels for inference do.

    Tries one layer of each kind: a search through it would go nowhere, and not say so.
    """
    kinds: dict[type, tuple[str, Any]] = {}
    for path, module in packed(model):
        kinds.setdefault(type(module), (path, module))
    for path, module in kinds.values():
        dtype = next((p.dtype for p in model.parameters() if form(p) == "plain"), torch.float32)
        held = next(chain(module.parameters(), module.buffers()))
        x = torch.ones(1, 2, module.in_features, dtype=dtype, device=held.device).requires_grad_()
        with torch.enable_grad():
            y = module(x)
        gradient = torch.autograd.grad(y.float().square().sum(), x, allow_unused=True)[0] if y.requires_grad else None
        if gradient is None or not gradient.any():
            raise Unsupported(
                f"{path} ({type(module).__name__}) is quantised and passes no gradient on, which this method needs; "
                "load the model unquantised, or quantised by bitsandbytes or torchao"
            )
