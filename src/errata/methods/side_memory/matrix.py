"""Payloads that are a second matrix: y + ΔW x for the rows whose prompt was found."""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.memory.adapter import Payload
from errata.model.lm import Call
from errata.model.passes import at_least_float32

At = Literal["last", "mean"]  # which tokens of a prompt decide: its last one, or the mean over all


class SideMatrix(Payload):
    """Adds the product of a side matrix with x to the rows that have an entry."""

    @abstractmethod
    def added(self, x: Tensor, entry: Tensor) -> Tensor:
        """What is added for rows x (b, t, f) with entries (b,) of 0 or more. (b, t, d)"""

    @override
    def apply(self, call: Call, x: Tensor, y: Tensor, entry: Tensor) -> Tensor:
        entry = entry.to(y.device)
        rows = (entry >= 0).nonzero()[:, 0]
        return y.index_add(0, rows, self.added(at_least_float32(x[rows]), entry[rows]).to(y)) if len(rows) else y


def of_prompts(call: Call, z: Tensor, at: At) -> Tensor:
    """z (b, t, …) at the last token of each row's prompt, or its mean over the prompt's tokens. (b, …)"""
    assert call.prompt_end is not None
    end = call.prompt_end.to(z.device)
    if at == "last":
        return z[torch.arange(len(z), device=z.device), end]
    prompt = (call.mask.to(z.device) > 0) & (torch.arange(z.shape[1], device=z.device) <= end[:, None])  # (b, t)
    share = prompt.to(z) / prompt.sum(-1, keepdim=True)
    return torch.einsum("bt,bt...->b...", share, z)


def deciding(x: Tensor, at: At) -> Tensor:
    """Those of a prompt's tokens x (t, f) that decide: the last, or all of them."""
    return x[-1:] if at == "last" else x
