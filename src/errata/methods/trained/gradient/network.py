"""The network that rewrites the factors of a gradient: normalised, then residual blocks of low rank."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

FEW = 1e-7


class Running(nn.Module):
    """Mean and standard deviation of vectors seen so far, by coordinate (Welford 1962; joined as in Chan 1979)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(width, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.zeros(width))  # Σ (x − mean)²
        self.count: Tensor
        self.mean: Tensor
        self.square: Tensor

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Counts vectors (k, width)."""
        if not len(x):
            return
        x = x.to(self.mean)
        mean, share = x.mean(0), len(x) / (self.count + len(x)).to(self.mean)
        off = mean - self.mean
        self.square += (x - mean).square().sum(0) + off.square() * self.count * share
        self.mean += off * share
        self.count += len(x)

    def forward(self, x: Tensor) -> Tensor:
        """(x − mean) / std; unchanged while fewer than two vectors were seen."""
        x = x.to(self.mean)
        if bool((self.count < 2).any()):
            return x
        std = (self.square / (self.count - 1)).sqrt()
        return (x - self.mean) / (std + FEW)


class Block(nn.Module):
    """z + max(0, s ⊙ (UVz + b) + o) (MEND), or with ``after`` z + s ⊙ max(0, UVz + b) + o (MALMEN).

    U is 0 at first; s and o are each layer's own. The maximum is a clamp, whose gradient at 0 is 1: where a ReLU begins
    at 0, nothing would ever be learned.
    """

    def __init__(self, width: int, rank: int, layers: int, after: bool) -> None:
        super().__init__()
        self.after = after
        self.down = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(layers, width))
        self.shift = nn.Parameter(torch.zeros(layers, width))

    def forward(self, z: Tensor, layer: int) -> Tensor:
        """(k, width), as ``z`` is."""
        new = z @ self.down.T @ self.up.T + self.bias
        if self.after:
            return z + self.scale[layer] * new.clamp(min=0) + self.shift[layer]
        return z + (self.scale[layer] * new + self.shift[layer]).clamp(min=0)


class GradientNetwork(nn.Module):
    """(u, δ) -> (ũ, δ̃) for every linear; linears of one shape share all but scales, shifts and step sizes."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, rank: int, blocks: int, after: bool) -> None:
        super().__init__()
        self.widths = {name: (into, out) for name, (out, into) in shapes.items()}
        kinds = sorted(set(shapes.values()))
        self.place = {
            name: (kinds.index(shape), [n for n, s in shapes.items() if s == shape].index(name))
            for name, shape in shapes.items()
        }
        count = [sum(kind == i for kind, _ in self.place.values()) for i in range(len(kinds))]
        self.normal = nn.ModuleList(Running(sum(shape)) for shape in kinds)
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(sum(shape), min(rank, sum(shape)), n, after) for _ in range(blocks))
            for shape, n in zip(kinds, count, strict=True)
        )
        self.log_step = nn.ParameterList(torch.zeros(n) for n in count)

    def observe(self, name: str, u: Tensor, delta: Tensor) -> None:
        """Counts a linear's vectors (k, f) and (k, d) in the statistics of its shape."""
        running = self.normal[self.place[name][0]]
        assert isinstance(running, Running)
        running.add(torch.cat([u, delta], -1))

    def forward(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(ũ, δ̃) of a linear. (k, f), (k, d)"""
        kind, layer = self.place[name]
        z = self.normal[kind](torch.cat([u, delta], -1))
        blocks = self.blocks[kind]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            z = block(z, layer)
        new_u, new_delta = z.split(self.widths[name], -1)
        return new_u, new_delta

    def step_of(self, name: str) -> Tensor:
        """The learned step size of a linear, above 0. ()"""
        kind, layer = self.place[name]
        return self.log_step[kind][layer].exp()

    @torch.no_grad()
    def set_step(self, name: str, step: float) -> None:
        """Sets the step size of a linear."""
        kind, layer = self.place[name]
        self.log_step[kind][layer] = math.log(max(step, FEW))
