# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A change of one weight: a matrix, or a product of two."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """A matrix Δ as a product of two: ``a @ b``."""

    a: Tensor
    """(out, r)."""
    b: Tensor
    """(r, in)."""

    @property
    def rank(self) -> int:
        """r, the number of columns of ``a``."""
        return self.a.shape[1]

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return torch.Size((self.a.shape[0], self.b.shape[1]))

    def __repr__(self) -> str:
        return f"<LowRank: {' x '.join(map(str, self.shape))}, rank {self.rank}>"

    def dense(self) -> Tensor:
        """The whole matrix. (out, in)."""
        return self.a @ self.b

    def norm(self) -> float:
        """‖ab‖: by tr(aᵀa bbᵀ) where that is smaller than ab, so that no more room is taken than by the factors."""
        a, b = self.a.double(), self.b.double()
        if self.rank**2 > self.shape.numel():
            return float((a @ b).norm())
        return float(((a.T @ a) * (b @ b.T)).sum().clamp(min=0).sqrt())

    def compact(self) -> "LowRank | Tensor":
        """This product, or the dense matrix where the rank is more than half of the smaller side."""
        return self if self.rank <= min(self.shape) // 2 else self.dense()

    def product(self, x: Tensor) -> Tensor:
        """x Δᵀ for x (…, in), without computing Δ. (…, out)."""
        return (x @ self.b.T) @ self.a.T

    def to(self, like: Tensor) -> "LowRank":
        """The product on the device and in the type of another tensor."""
        return LowRank(self.a.to(like), self.b.to(like))

    def __add__(self, other: "LowRank | Tensor") -> "LowRank | Tensor":
        if isinstance(other, Tensor):
            return self.dense() + other
        return LowRank(torch.cat([self.a, other.a], 1), torch.cat([self.b, other.b], 0)).compact()

    __radd__ = __add__

    def __mul__(self, factor: float) -> "LowRank":
        return LowRank(self.a * factor, self.b)


Weight = LowRank | Tensor


def product(w: Weight, x: Tensor) -> Tensor:
    """x Δᵀ for x (…, in). (…, out)."""
    return w.product(x) if isinstance(w, LowRank) else x @ w.T
