"""The distances d(x) = ‖w x‖ of prompts, and the penalty that parts those of edits from those of others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.side_memory.matrix import At, deciding

MANY = 0.8  # share of prompts that may be above a limit, beyond which all are looked at
ROUNDING = 1e-3  # of a limit: distances in float32 come nearer than this to what they are


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

    @classmethod
    def joined(cls, parts: Sequence["PromptInputs"], factor: float = 1.0) -> Self:
        """Of all prompts, one part behind the other, each input times ``factor``."""
        before = [0, *accumulate(part.n for part in parts)]
        of = [part.of + n for part, n in zip(parts, before, strict=False)]
        return cls(torch.cat([part.x for part in parts]).mul_(factor), torch.cat(of), before[-1])

    def some(self, chosen: Tensor) -> "PromptInputs":
        """Those prompts that are ``chosen`` (n,)."""
        tokens = chosen[self.of]
        places = chosen.cumsum(0) - 1
        return PromptInputs(self.x[tokens], places[self.of[tokens]], int(chosen.sum()))

    def sizes(self) -> Tensor:
        """The mean of |x| over each prompt's tokens. (n, f)"""
        if len(self.x) == self.n:
            return self.x.abs()
        sums = self.x.new_zeros(self.n, self.x.shape[-1]).index_add(0, self.of, self.x.abs())
        return sums / torch.bincount(self.of)[:, None]

    def distances(self, w: Tensor) -> Tensor:
        """The mean of ‖w x‖ over each prompt's tokens. (n,)"""
        norms: Tensor = _Norms.apply(w, self.x)  # pyright: ignore[reportAssignmentType]
        return norms.new_zeros(self.n).index_add(0, self.of, norms) / torch.bincount(self.of, minlength=self.n)


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


class Above:
    """Distances of those prompts that may be above a limit, as a matrix is trained.

    ‖w' x‖ is at most ‖w x‖ + Σ_c ‖w'_c − w_c‖ |x_c|, over columns c: with each matrix what bounds a prompt's distance
    grows by that, and the prompt is looked at again where its bound passes the limit.
    """

    def __init__(self, inputs: PromptInputs):
        self.inputs, self.sizes = inputs, inputs.sizes()
        self._known: tuple[Tensor, Tensor] | None = None  # the last matrix (d, f), and bounds of all distances (n,)

    def distances(self, w: Tensor, limit: float) -> Tensor:
        """By a matrix w (d, f), of every prompt above the limit, in their order, and of some or all that are not."""
        at = w.detach().clone()
        if self._known is None and not at.any():
            return w.new_zeros(self.inputs.n)  # by a new matrix
        bounds = self._bounds(at) if limit > 0 else at.new_full((self.inputs.n,), torch.inf)
        chosen = bounds > (1 - ROUNDING) * limit
        if int(chosen.sum()) > MANY * len(bounds):
            d = self.inputs.distances(w)
            self._known = at, d.detach()
            return d
        d = self.inputs.some(chosen).distances(w)
        self._known = at, bounds.masked_scatter(chosen, d.detach())
        return d

    def _bounds(self, w: Tensor) -> Tensor:
        """What all distances by w are at most (n,): infinite before any is known."""
        if self._known is None:
            return w.new_full((self.inputs.n,), torch.inf)
        earlier, bounds = self._known
        return bounds + self.sizes @ (w - earlier).square_().sum(0).sqrt_()


@dataclass(frozen=True)
class Margins:
    """Equation 5's hinges, each a mean over what violates it: d of the edits ``inside`` is at least ``least`` (n,),
    d of what is ``outside`` at most ``alpha``, and less than that of every edit by ``gamma``."""

    inside: PromptInputs
    outside: PromptInputs
    least: Tensor
    alpha: float
    gamma: float
    above: Above = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "above", Above(self.outside))

    def penalty(self, w: Tensor) -> Tensor:
        """The sum of the three, of a matrix w (d, f); what is outside and violates nothing adds nothing to them."""
        d_in = self.inside.distances(w)
        d_out = self.above.distances(w, min(self.alpha, float(d_in.detach().min()) - self.gamma))
        apart = self.gamma - (d_in[:, None] - d_out)
        return _violated(d_out - self.alpha) + _violated(self.least - d_in) + _violated(apart)


def _violated(x: Tensor) -> Tensor:
    """The mean of what is above 0."""
    return x.clamp(min=0).sum() / (x > 0).sum().clamp(min=1)
