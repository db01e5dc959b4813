"""The distances d(x) = ‖w x‖ of prompts, and the penalty that parts those of edits from those of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.side_memory.matrix import At, deciding


@dataclass(frozen=True)
class PromptInputs:
    """Inputs at the site for the deciding tokens of some prompts: ``x`` (T, f), and the prompt ``of`` each (T,)."""

    x: Tensor
    of: Tensor
    n: int

    @classmethod
    def read(cls, xs: Sequence[Tensor], at: At) -> Self:
        """Of inputs (t, f) at all tokens of each prompt."""
        kept = [deciding(x, at) for x in xs]
        of = torch.arange(len(kept)).repeat_interleave(torch.tensor([len(x) for x in kept]))
        return cls(torch.cat(kept), of.to(kept[0].device), len(kept))

    def distances(self, w: Tensor) -> Tensor:
        """The mean of ‖w x‖ over each prompt's tokens. (n,)"""
        norms: Tensor = _Norms.apply(w, self.x)  # pyright: ignore[reportAssignmentType]
        return norms.new_zeros(self.n).index_add(0, self.of, norms) / torch.bincount(self.of)


class _Norms(torch.autograd.Function):
    """‖w x‖ of each x (T, f): its gradient is of those x that a penalty looks at, often few."""

    @staticmethod
    @override
    def forward(ctx: Any, w: Tensor, x: Tensor) -> Tensor:
        products = x @ w.T  # (T, d)
        norms = products.norm(dim=-1)
        ctx.save_for_backward(x, products, norms)
        return norms

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, products, norms = ctx.saved_tensors
        some = (gradient != 0) & (norms > 0)
        return ((gradient[some] / norms[some])[:, None] * products[some]).T @ x[some], None


@dataclass(frozen=True)
class Margins:
    """Equation 5's hinges, each a mean over what violates it: d of the edits ``inside`` is at least ``least`` (n,),
    d of what is ``outside`` at most ``alpha``, and less than that of every edit by ``gamma``."""

    inside: PromptInputs
    outside: PromptInputs
    least: Tensor
    alpha: float
    gamma: float

    def penalty(self, w: Tensor) -> Tensor:
        """The sum of the three, of a matrix w (d, f)."""
        d_in, d_out = self.inside.distances(w), self.outside.distances(w)
        apart = self.gamma - (d_in[:, None] - d_out)
        return _violated(d_out - self.alpha) + _violated(self.least - d_in) + _violated(apart)


def _violated(x: Tensor) -> Tensor:
    """The mean of what is above 0."""
    return x.clamp(min=0).sum() / (x > 0).sum().clamp(min=1)
