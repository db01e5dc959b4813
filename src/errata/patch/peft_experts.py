# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Changes of stacked experts as peft holds them: one adapter of a parameter (``target_parameters``), of all experts.

    ΔW[e] = B[:, :, e] A[e],   A (E · r, in) as (E, r, in),   B (out, r · E) as (out, r, E)

as of peft 0.19.1. Every parameter has the adapter's rank r; what changes by fewer terms, or not at all, has zeros.
Parameters of one module are wrapped one in the other, in the module's own order, the first one innermost.
"""

import re
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from errata.errors import Unsupported
from errata.model import weights as stored
from errata.model.stacks import is_stack
from errata.patch.low_rank import LowRank

FORM = "0.19.1"  # the version of peft from which on a stack's factors lie as above

# Linear layers with the names that experts had before they were stacked: peft takes them for the stack where they are
# in ``target_modules`` of a mixture, so the adapter names their parameter too.
RENAMED = ("gate_proj", "up_proj", "down_proj", "gate", "w1", "w2", "w3")


def check_stack(model: nn.Module, name: str) -> None:
    """Raises :class:`Unsupported` unless the weight is one expert's, of a stack that is there in floats."""
    module, _ = stored.owner(model, name)
    if not is_stack(module):
        raise Unsupported(f"{name} is no expert of a stack that an adapter could name; keep the patch, or merge it")
    stored.plain(model, name, "an adapter is of what it holds")


def by_parameter(model: nn.Module | None, path: str) -> bool:
    """Whether the adapter must name a linear layer's parameter, not the layer."""
    return model is not None and path.rpartition(".")[2] in RENAMED and any(map(is_stack, model.modules()))


def stacked(model: nn.Module, experts: Mapping[str, LowRank], r: int) -> dict[str, tuple[str, LowRank]]:
    """Parameter -> the path under which its factors are saved, and those: B (out, r · E) and A (E · r, in)."""
    by_stack: dict[str, dict[int, LowRank]] = {}
    for name, w in experts.items():
        parameter, index = stored.indexed(name)
        assert index is not None
        by_stack.setdefault(parameter, {})[index] = w
    return {
        name: (_place(model, name, by_stack), _joined(model, name, changes, r)) for name, changes in by_stack.items()
    }


def padded(w: LowRank, r: int) -> LowRank:
    """The product with r terms, those beyond its own zero."""
    more = r - w.rank
    return LowRank(nn.functional.pad(w.a, (0, more)), nn.functional.pad(w.b, (0, 0, 0, more)))


def _joined(model: nn.Module, name: str, changes: Mapping[int, LowRank], r: int) -> LowRank:
    """The factors of a stack's experts in one."""
    module, leaf = stored.owner(model, name)
    count = len(getattr(module, leaf))
    turned = _turned(model, name)
    pairs = {e: (w.b.T, w.a.T) if turned else (w.a, w.b) for e, w in changes.items()}
    first = next(iter(pairs.values()))
    left = torch.zeros(first[0].shape[0], r, count, dtype=first[0].dtype)  # (out, r, E)
    right = torch.zeros(count, r, first[1].shape[1], dtype=first[1].dtype)  # (E, r, in)
    for e, (b, a) in pairs.items():
        left[:, : b.shape[1], e], right[e, : a.shape[0]] = b, a
    return LowRank(left.flatten(1), right.flatten(0, 1))


def _place(model: nn.Module, name: str, targets: Collection[str]) -> str:
    """Where the factors of a parameter lie: below ``base_layer`` for each other one of its module that comes later."""
    path, _, leaf = name.rpartition(".")
    own = [other for other, _ in stored.owner(model, name)[0].named_parameters(recurse=False)]
    wrapped = [other for other in own if f"{path}.{other}" in targets]
    return path + ".base_layer" * (len(wrapped) - 1 - wrapped.index(leaf))


def _turned(model: nn.Module, name: str) -> bool:
    """Whether peft takes a stack's inputs for its outputs: it reads (E, out, in) unless the module says otherwise, and
    some that do not say are (E, in, out)."""
    module, leaf = stored.owner(model, name)
    return stored.swapped(module, leaf) != bool(getattr(module, "is_transposed", False))


# As they are read ---------------------------------------------------------------------------------


def is_of_form(version: object) -> bool:
    """Whether a version of peft, as an adapter names it, writes stacks in this form."""
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    return numbers is not None and tuple(map(int, numbers.groups())) >= tuple(map(int, FORM.split(".")))


def places(model: nn.Module, targets: Collection[str]) -> dict[str, str]:
    """The path under which factors lie -> the parameter that they are of: each that ``target_parameters`` names, whole
    or by the end of its name."""
    named = {
        name: None
        for name, _ in model.named_parameters(remove_duplicate=False)
        if any(name == target or name.endswith(f".{target}") for target in targets)
    }
    return {_place(model, name, named): name for name in named}


def matrices(model: nn.Module, name: str) -> list[str]:
    """The names of the matrices that a parameter holds: all of a stack, or itself; none where it is of another kind."""
    module, leaf = stored.owner(model, name)
    value = getattr(module, leaf)
    if value.ndim == 3 and is_stack(module):
        return [f"{name}[{e}]" for e in range(len(value))]
    return [name] if leaf == "weight" and value.ndim == 2 and stored.is_linear(module) else []


def as_factors(model: nn.Module, name: str) -> tuple[int, int]:
    """How peft takes the shape of each of a parameter's matrices: outputs and inputs of its factors."""
    first = matrices(model, name)[0]
    out, into = stored.shape_of(model, first)
    return (into, out) if first != name and _turned(model, name) else (out, into)


def parted(model: nn.Module, name: str, w: LowRank) -> Iterator[tuple[str, LowRank]]:
    """Of the factors of a parameter the change of each matrix that they change, by its name, without terms of zeros."""
    names = matrices(model, name)
    turned = names != [name] and _turned(model, name)
    left = w.a.unflatten(1, (-1, len(names))).unbind(2)  # (out, r) each
    right = w.b.unflatten(0, (len(names), -1)).unbind(0)  # (r, in) each
    for each, b, a in zip(names, left, right, strict=True):
        there = (b != 0).any(0) & (a != 0).any(1)  # (r,)
        if there.any():
            b, a = b[:, there], a[there]
            yield each, LowRank(a.T.contiguous(), b.T.contiguous()) if turned else LowRank(b, a)
