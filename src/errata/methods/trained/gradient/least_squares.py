"""Token-wise value changes to one change of a weight, by ridge regression (MALMEN, equations 3 and 4)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from errata.model.passes import float64_device
from errata.model.weights import stem
from errata.patch.low_rank import LowRank, Weight
from errata.patch.memory import GRAM, KEYS


def least_squares(keys: Tensor, values: Tensor, ridge: Tensor | float, past: Tensor | None = None) -> Weight:
    """Δ (d, f) that minimises Σ ‖Δk − v‖² + ridge ‖Δ‖² over tokens, for keys (n, f) and values (n, d), in their graph.

    Vᵀ (K Kᵀ + ridge I)⁻¹ K with fewer tokens than f, of rank n; else Vᵀ K (Kᵀ K + ridge I)⁻¹: the same matrix. Solved
    in float64, on the CPU where the device has none. ``past`` is the Gram matrix (f, f) of keys that Δ is not to move.
    """
    device, dtype = values.device, values.dtype
    solver = float64_device(device)
    k, v, weight = (torch.as_tensor(x).to(solver).double() for x in (keys, values, ridge))
    few = len(k) < k.shape[1] and past is None
    products = k @ k.T if few else k.T @ k + (0.0 if past is None else past.to(k))
    gram = products + weight * torch.eye(len(k) if few else k.shape[1], device=solver).double()
    if few:
        return LowRank(values.T, torch.linalg.solve(gram, k).to(device, dtype))
    return torch.linalg.solve(gram, k.T @ v).T.to(device, dtype)


def beside(keys: Tensor, values: Tensor, ridge: Tensor | float, memory: Mapping[str, Tensor], weight: str) -> Weight:
    """The change that adds ``values`` at ``keys`` and nothing at the keys of a weight that a patch remembers."""
    site = stem(weight)
    if (past := memory.get(KEYS + site)) is not None:
        keys = torch.cat([past.to(keys), keys])
        values = torch.cat([values.new_zeros(len(past), values.shape[1]), values])
    return least_squares(keys, values, ridge, memory.get(GRAM + site))
