"""Symmetric matrices of which half is held, and how many of them are held at a time."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

STRIPS = 32  # that a matrix is cut into: half of it is held, and half of a strip's width more
ROOM = 4_000_000_000  # bytes of inverses that are held between edits; or one for each layer that is edited

T = TypeVar("T")


class Symmetric:
    """A symmetric matrix (f, f), float64 on the CPU, held as strips of rows up to the diagonal: some 4 f² bytes.

    inverse = Symmetric.of(solve.inverse_of(c))
    inverse @ keys                              # (f, n)
    """

    def __init__(self, strips: Sequence[Tensor]):
        self.strips = list(strips)

    @classmethod
    def of(cls, matrix: Tensor) -> "Symmetric":
        """A copy of what is below a matrix's diagonal, and on it."""
        rows = -(-len(matrix) // STRIPS)
        ends = range(rows, len(matrix) + rows, rows)
        parts = (matrix[end - rows : end, :end] for end in ends)
        return cls([part.to("cpu", torch.float64, copy=True).contiguous() for part in parts])

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(strip.nbytes for strip in self.strips)

    def __matmul__(self, x: Tensor) -> Tensor:
        """(f, n) for ``x`` (f, n): each strip acts as it is and, left of its square on the diagonal, turned over."""
        x = x.to(self.strips[0])
        product = torch.zeros_like(x)
        for start, end, strip in self._placed():
            product[start:end] += strip @ x[:end]
            product[:start] += strip[:, :start].T @ x[start:end]
        return product

    def less(self, half: Tensor, *, in_place: bool = False) -> "Symmetric":
        """The matrix without half · halfᵀ, ``half`` (f, n)."""
        made: list[Tensor] = []
        for start, end, strip in self._placed():
            out = strip if in_place else None
            made.append(torch.addmm(strip, half[start:end], half[:end].T, alpha=-1, out=out))
        return self if in_place else Symmetric(made)

    def _placed(self) -> Iterator[tuple[int, int, Tensor]]:
        """Each strip with the rows that it begins and ends at."""
        for strip in self.strips:
            yield strip.shape[1] - len(strip), strip.shape[1], strip


class Kept(Generic[T]):
    """What was used last, by name; the rest is made again when it is asked for."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, T] = OrderedDict()
        self._nbytes: dict[str, int] = {}

    def get(self, name: str, make: Callable[[], T], nbytes: int, least: int) -> T:
        """What ``make()`` gave, or gives now; what was used longest ago makes room for its ``nbytes`` before.

        That is, for more than ROOM of all together, while ``least`` others are held or more.
        """
        while name not in self._held and len(self._held) >= least and self._full(nbytes):
            self._nbytes.pop(self._held.popitem(last=False)[0])
        if name not in self._held:
            self._held[name], self._nbytes[name] = make(), nbytes
        self._held.move_to_end(name)
        return self._held[name]

    def _full(self, nbytes: int) -> bool:
        return bool(self._held) and sum(self._nbytes.values()) + nbytes > ROOM

    def find(self, name: str) -> T | None:
        """What is held under a name."""
        return self._held.get(name)
