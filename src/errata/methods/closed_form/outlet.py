"""How what a down projection puts out reaches the residual stream: by a factor, or through a norm.

Behind a norm (Gemma 2 and 3, OLMo 2, GLM-4) the block's output is h = A + f(x), f(x) = g u + b, where u is x brought to
mean square 1 (by a layer norm to mean 0, too). So f(x) is always on one ellipsoid: most moves of h no x can give, and
those it can a whole ray gives.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from errata.methods.closed_form.keys import Site
from errata.model.hf import HFLM
from errata.model.projection import Projection

HALVINGS = 60  # of the interval that holds a multiplier: to float64's precision


@dataclass(frozen=True)
class Norm:
    """f(x) = g u + b, whatever the module: g (d), b (d), and whether it takes off the mean; float64."""

    g: Tensor
    b: Tensor
    centred: bool

    @classmethod
    def of(cls, module: nn.Module, width: int) -> "Norm":
        """What an RMS or layer norm does, asked of it."""
        scale = next(module.parameters(), torch.empty(0))  # some have no weights
        signs = torch.ones(width, dtype=scale.dtype, device="cpu" if scale.is_meta else scale.device)
        signs[1::2] = -1
        with torch.no_grad():
            b, out, raised = (module(x[None])[0].double().cpu() for x in (0 * signs, signs, signs + 1))
        return cls((out - b) * signs.double().cpu(), b, bool((raised - out).norm() < 0.1 * (out - b).norm()))

    def __call__(self, x: Tensor) -> Tensor:
        """f(x) (n, d)"""
        x, _ = self._split(x)
        return self.g * x / _rms(x) + self.b

    def nearest(self, y: Tensor) -> Tensor:
        """(n, d): the u of mean square 1 for which g u + b is nearest to ``y``: u = g (y − b) / (g² + μ)."""
        gy, g2 = self.g * (y - self.b), self.g**2
        low, high = torch.zeros_like(gy[:, :1]), gy.abs().amax(-1, keepdim=True)  # of μ + min g²
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            long = _rms(gy / (g2 - g2.min() + middle)) > 1
            low, high = torch.where(long, middle, low), torch.where(long, high, middle)
        u = gy / (g2 - g2.min() + high)
        return u / _rms(u)

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """(n, d): with f nearest to ``y``, as long as ``x`` is and with its mean where f does not see it."""
        centred, mean = self._split(x)
        return self.nearest(y) * _rms(centred) + mean

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x without what f takes off, and that."""
        mean = x.mean(-1, keepdim=True) * self.centred
        return x - mean, mean


@dataclass(frozen=True)
class Outlet:
    """The way from a down projection's output to the hidden state that targets are measured at.

    Where nothing is between, ``inside`` is the projection's own output, of which ``gain`` times as much arrives
    ``outside``; else ``inside`` is what the norm reads, which the projection's output is a summand of.
    """

    inside: Site
    outside: Site
    gain: float = 1.0
    norm: Norm | None = None

    @classmethod
    def own(cls, lm: HFLM, layer: int) -> "Outlet":
        """To the projection's own output, where nothing is between."""
        value = (lm.sites.mlp_out[layer], "out")
        return cls(value, value)

    @classmethod
    def of(cls, lm: HFLM, layer: int) -> "Outlet":
        """To the block's output; where a norm that is not known is between, to the projection's own."""
        value, block, gain = (lm.sites.mlp_out[layer], "out"), (lm.sites.layer[layer], "out"), lm.sites.gain[layer]
        if gain is not None:
            return cls(value, block, gain)
        path = lm.sites.mlp_norm[layer] if lm.sites.mlp_norm else None
        if path is None:
            return cls.own(lm, layer)
        width, _ = Projection.of(lm.sites, layer).shape(lm.model)
        return cls((path, "in"), block, norm=Norm.of(lm.model.get_submodule(path), width))

    def moved(self, x: Tensor, change: Tensor) -> Tensor:
        """(n, d): how the hidden state moves when ``x``, what is ``inside``, changes."""
        return change * self.gain if self.norm is None else self.norm(x + change) - self.norm(x)

    def unmet(self, x: Tensor, moved: Tensor) -> Tensor:
        """(n, d): what no change of ``x`` can give of a move of the hidden state."""
        if self.norm is None:
            return torch.zeros_like(moved)
        y = self.norm(x) + moved
        return y - self.norm(self.norm.nearest(y))

    def change(self, x: Tensor, moved: Tensor, like: Tensor) -> Tensor:
        """(n, d): the change of ``x`` that moves the hidden state so, or as near as can be.

        Behind a norm ``x`` is then as long as ``like``, since any length gives the same.
        """
        if self.norm is None:
            return moved / self.gain
        return self.norm.inverse(self.norm(x) + moved, like) - x


def _rms(x: Tensor) -> Tensor:
    """(n, 1)"""
    return x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
