"""How tensors of a patch file are kept small: booleans as bits, and tensors that are mostly 0 without their zeros."""

from collections.abc import Collection, Mapping
from math import prod

import torch
from torch import Tensor

from errata.errors import BadInput

PIECES = (".bits", ".shape", ".values")
MOST_SIDES = 8  # of a tensor


def pack(name: str, x: Tensor, mostly_zero: bool = False) -> dict[str, Tensor]:
    """The tensor under its name, or in pieces under ``name.bits``, ``name.shape`` and ``name.values``."""
    if x.dtype != torch.bool and not mostly_zero:
        return {name: x}
    where = x != 0
    pieces = {f"{name}.bits": to_bits(where), f"{name}.shape": torch.tensor(x.shape)}
    return pieces if x.dtype == torch.bool else {**pieces, f"{name}.values": x[where]}


def unpack(tensors: Mapping[str, Tensor], mostly_zero: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors that :func:`pack` took apart, by name.

    Raises :class:`BadInput` where a piece is missing or does not fit the others, before room is made for a tensor that
    is larger than its bits.
    """
    whole = {name: x for name, x in tensors.items() if not name.endswith(PIECES)}
    for name in sorted({key.rpartition(".")[0] for key in tensors if key.endswith(PIECES)}):
        pieces = [f"{name}{piece}" for piece in (PIECES if name in mostly_zero else PIECES[:2])]
        if missing := [piece for piece in pieces if piece not in tensors]:
            raise BadInput(f"the tensor {missing[0]} is missing")
        bits, shape, *values = (tensors[piece] for piece in pieces)
        where = from_bits(bits, _n(name, shape, bits)).view(shape.tolist())
        if values and values[0].shape != (int(where.sum()),):
            raise BadInput(f"{name}.values has the shape {tuple(values[0].shape)}, expected {int(where.sum())} numbers")
        whole[name] = values[0].new_zeros(where.shape).masked_scatter(where, values[0]) if values else where
    return whole


def _n(name: str, shape: Tensor, bits: Tensor) -> int:
    """How many booleans of that shape are packed. Raises :class:`BadInput` where that is no number of the bits."""
    fits = shape.dtype == torch.int64 and shape.ndim == 1 and shape.numel() <= MOST_SIDES and bool((shape >= 0).all())
    n = prod(shape.tolist()) if fits else -1
    if bits.dtype != torch.uint8 or bits.shape != (-(-n // 8),):
        sizes = "x".join(map(str, shape.flatten()[:MOST_SIDES].tolist()))
        raise BadInput(f"{name}.bits of the shape {tuple(bits.shape)} are not those of a tensor of {sizes}")
    return n


def to_bits(x: Tensor) -> Tensor:
    """All booleans of a tensor, n in number, as bytes. (⌈n / 8⌉,)"""
    x = x.flatten().to(torch.uint8)
    x = torch.nn.functional.pad(x, (0, -len(x) % 8)).view(-1, 8)
    return (x << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def from_bits(x: Tensor, n: int) -> Tensor:
    """The n booleans that :func:`to_bits` packed. (n,)"""
    return ((x[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:n].bool()
