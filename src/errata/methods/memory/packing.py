"""How tensors of a patch file are kept small: booleans as bits, and tensors that are mostly 0 without their zeros."""

from collections.abc import Collection, Mapping
from math import prod

import torch
from torch import Tensor

PIECES = (".bits", ".shape", ".values")


def pack(name: str, x: Tensor, mostly_zero: bool = False) -> dict[str, Tensor]:
    """The tensor under its name, or in pieces under ``name.bits``, ``name.shape`` and ``name.values``."""
    if x.dtype != torch.bool and not mostly_zero:
        return {name: x}
    pieces = {f"{name}.bits": to_bits(x != 0), f"{name}.shape": torch.tensor(x.shape)}
    return pieces if x.dtype == torch.bool else {**pieces, f"{name}.values": x[x != 0]}


def unpack(tensors: Mapping[str, Tensor], mostly_zero: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors that :func:`pack` took apart, by name; ``KeyError`` where a piece is missing."""
    whole = {name: x for name, x in tensors.items() if not name.endswith(PIECES)}
    for name in {key.rpartition(".")[0] for key in tensors if key.endswith(PIECES)}:
        shape = tensors[f"{name}.shape"].tolist()
        where = from_bits(tensors[f"{name}.bits"], prod(shape)).view(shape)
        if name in mostly_zero:
            values = tensors[f"{name}.values"]
            whole[name] = values.new_zeros(shape).masked_scatter(where, values)
        else:
            whole[name] = where
    return whole


def to_bits(x: Tensor) -> Tensor:
    """All booleans of a tensor, n in number, as bytes. (⌈n / 8⌉,)"""
    x = x.flatten().to(torch.uint8)
    x = torch.nn.functional.pad(x, (0, -len(x) % 8)).view(-1, 8)
    return (x << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def from_bits(x: Tensor, n: int) -> Tensor:
    """The n booleans that :func:`to_bits` packed. (n,)"""
    return ((x[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:n].bool()
