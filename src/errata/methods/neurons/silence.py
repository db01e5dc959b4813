"""Where neurons shall add nothing: hidden states of other texts, and what the neurons make of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from typing_extensions import override

FEW = 16  # neurons, for which a product of many states with them is faster than one of them with many states


@dataclass(frozen=True)
class Memory:
    """Hidden states (m, d), and at which of them each neuron is to be silent: there ``barred`` (n, m) is 0, and -inf
    at the others."""

    states: Tensor
    barred: Tensor

    @classmethod
    def of(cls, states: Tensor, silent: Tensor) -> "Memory":
        """``silent`` (n, m) as booleans."""
        return cls(states, torch.zeros_like(silent, dtype=states.dtype).masked_fill_(~silent, -torch.inf))

    @torch.no_grad()
    def strongest(self, keys: Tensor, most: int) -> "Strongest":
        """The ``most`` states where K x is largest for each neuron, of keys (n, d)."""
        if len(keys) < FEW:
            scores = (self.states @ keys.T).T.contiguous() + self.barred
        else:
            scores = torch.addmm(self.barred, keys, self.states.T)
        at = scores.topk(most, -1, sorted=False).indices
        used, place = at.unique(return_inverse=True)
        return Strongest(self.states[used], place, self.barred.gather(1, at))


@dataclass(frozen=True)
class Strongest:
    """Some ``states`` (m', d), and the numbers ``at`` (n, most) of those of each neuron; ``barred`` as in a memory."""

    states: Tensor
    at: Tensor
    barred: Tensor  # (n, most)

    def activity(self, keys: Tensor) -> Tensor:
        """K x of each neuron at its states, in no order; -inf where it need not be silent. (n, most)"""
        return _At.apply(keys, self.states, self.at) + self.barred  # pyright: ignore[reportOperatorIssue, reportReturnType]


class _At(torch.autograd.Function):
    """The products of each key with states of its own: its gradient is a sum of these, not of all."""

    @staticmethod
    @override
    def forward(ctx: Any, keys: Tensor, states: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at, states)
        return (keys @ states.T).gather(1, at)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        at, states = ctx.saved_tensors
        return embedding_bag(at, states, mode="sum", per_sample_weights=gradient), None, None


def added_noise(act: Callable[[Tensor], Tensor], x: Tensor, keys: Tensor, biases: Tensor, values: Tensor) -> Tensor:
    """The mean over states x (m, d) of the mean square of what neurons add there: V act(K x + b). 0 for no states.

    As tr(V AᵀA Vᵀ): AᵀA is as wide as there are neurons, where A V is as wide as the hidden state. ``keys`` are (n, d),
    ``values`` (n, d).
    """
    a = act(torch.addmm(biases, x, keys.T))  # (m, n)
    return ((a.T @ a) * (values @ values.T)).sum() / max(1, len(x) * values.shape[1])
