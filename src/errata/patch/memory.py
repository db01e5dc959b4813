# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What the next edit needs and inference does not: key vectors, or their second moment."""

from collections.abc import Mapping

import torch
from torch import Tensor

from errata.errors import Unsupported

KEYS, GRAM = (
    "keys/",
    "gram/",
)  # memory of key vectors: rows of them (n, f), or their second moment K Kᵀ (f, f)


def remember(memory: Mapping[str, Tensor], site: str, keys: Tensor) -> dict[str, Tensor]:
    """``memory`` with more keys (n, f) of a site: themselves while they are fewer than f, their Gram matrix after."""
    memory = dict(memory)
    if GRAM + site in memory:
        memory[GRAM + site] = memory[GRAM + site] + keys.T @ keys
        return memory
    if KEYS + site in memory:
        keys = torch.cat([memory.pop(KEYS + site), keys])
    if len(keys) < keys.shape[1]:
        memory[KEYS + site] = keys
    else:
        memory[GRAM + site] = keys.T @ keys
    return memory


def joined_memory(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    memory = dict(first)
    for name, value in second.items():
        if name.startswith(KEYS):
            memory = remember(memory, name.removeprefix(KEYS), value)
        elif name.startswith(GRAM):
            site = name.removeprefix(GRAM)
            held = memory.pop(KEYS + site, None)
            grams = [value, memory.get(name), None if held is None else held.T @ held]
            memory[name] = torch.stack([g for g in grams if g is not None]).sum(0)
        elif name not in memory:
            memory[name] = value
        elif not torch.equal(memory[name], value):
            raise Unsupported(f"both patches remember {name}, and differently; make the second one on the first")
    return memory
