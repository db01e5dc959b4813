# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What later edits need and inference does not: keys of earlier edits, as vectors or as their Gram matrix; and the
targets that were searched for them, by which the others are solved again when one edit is taken out."""

from collections.abc import Mapping

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.printable import shown

KEYS, GRAM = "keys/", "gram/"  # before a site's name in Patch.memory: its keys (n, f), or their Gram matrix K Kᵀ (f, f)
TARGETS = "targets/"  # the same, before the path that targets are added at: δ (n, d) of each edit, in order

SAME = 1e-3  # of its length is how far a key may be from itself, read in another batch


def remember(memory: Mapping[str, Tensor], site: str, keys: Tensor) -> dict[str, Tensor]:
    """The memory with more keys (n, f) of a site: all its keys while they are fewer than f, then their Gram matrix."""
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


def remember_targets(memory: Mapping[str, Tensor], path: str, delta: Tensor, most: int) -> dict[str, Tensor]:
    """The memory with more targets δ (n, d) of a path; without any of that path where they are ``most`` or more."""
    memory = dict(memory)
    held = memory.pop(TARGETS + path, None)
    rows = delta if held is None else torch.cat([held.to(delta), delta])
    return memory | {TARGETS + path: rows} if len(rows) < most else memory


def forget(memory: Mapping[str, Tensor], site: str, keys: Tensor) -> dict[str, Tensor]:
    """The memory without keys (n, f) of a site that :func:`remember` put there; keys that it does not hold are none.

    In a Gram matrix keys are not told apart: there all that are given must have been remembered.
    """
    memory = dict(memory)
    if GRAM + site in memory:
        memory[GRAM + site] = memory[GRAM + site] - keys.T @ keys
    elif (held := memory.get(KEYS + site)) is not None:
        near = torch.cdist(held.double(), keys.double()) <= SAME * held.double().norm(dim=-1, keepdim=True)
        memory[KEYS + site] = held[~near.any(1)]
    return memory


def freed(memory: Mapping[str, Tensor], site: str, keys: Tensor) -> dict[str, Tensor]:
    """The memory of a site without what lies along some keys (n, f): later changes may move those again."""
    memory = dict(memory)
    along = torch.linalg.qr(keys.double().T.cpu())[0]  # (f, n)
    for name in (KEYS + site, GRAM + site):
        if (held := memory.get(name)) is not None:
            rest = held.double() - held.double() @ along @ along.T
            rest = rest - along @ (along.T @ rest) if name.startswith(GRAM) else rest
            memory[name] = rest.to(held)
    return memory


def joined_memory(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The memories of two patches in one.

    Keys and targets are joined; anything else that both hold must be equal, or :class:`Unsupported` is raised.
    """
    memory = dict(first)
    for name, value in second.items():
        if name.startswith(KEYS):
            memory = remember(memory, name.removeprefix(KEYS), value)
        elif name.startswith(TARGETS):
            memory[name] = torch.cat([memory[name], value.to(memory[name])]) if name in memory else value
        elif name.startswith(GRAM):
            site = name.removeprefix(GRAM)
            keys = memory.pop(KEYS + site, None)
            grams = [value, memory.get(name), None if keys is None else keys.T @ keys]
            memory[name] = torch.stack([g for g in grams if g is not None]).sum(0)
        elif name not in memory:
            memory[name] = value
        elif not torch.equal(memory[name], value):
            raise Unsupported(f"both patches remember {name}, and differently; make the second one on the first")
    return memory


def check_memory(memory: Mapping[str, Tensor]) -> None:
    """Raises :class:`BadInput` for keys and targets that are no vectors, and a Gram matrix that is none."""
    for name, value in memory.items():
        square = name.startswith(GRAM)
        if not (square or name.startswith((KEYS, TARGETS))):
            continue
        if value.ndim != 2 or not value.is_floating_point() or (square and value.shape[0] != value.shape[1]):
            found = f"{str(value.dtype).removeprefix('torch.')} of the shape {tuple(value.shape)}"
            raise BadInput(f"the memory's {shown(name)} is {found}, expected {'a square' if square else 'vectors'}")


def sites_of(memory: Mapping[str, Tensor]) -> dict[str, int]:
    """Site -> the width of its keys, of each site whose keys are remembered."""
    names = [(name, prefix) for name in memory for prefix in (KEYS, GRAM) if name.startswith(prefix)]
    return {name.removeprefix(prefix): memory[name].shape[1] for name, prefix in names}
