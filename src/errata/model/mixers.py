"""Which linears of a block belong to its MLP, and which to what mixes tokens: attention, or what is in its place.

Told by the order in which they ran, by what they read and by which modules hold them, never by their names.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from errata.model.recording import ModuleCall, same


def split(linears: Sequence[ModuleCall]) -> tuple[list[ModuleCall], ModuleCall, list[ModuleCall]]:
    """The linears into an MLP, the last one, which leads out of it, and all that ran before them."""
    *others, last = linears
    into = [others.pop()]
    while others and same(others[-1].input_state, into[0].input_state):
        into.insert(0, others.pop())
    return into, last, others


def reading_first(linears: Sequence[ModuleCall]) -> list[ModuleCall]:
    """The linears that read what the first of them reads, without the last."""
    return [call for call in linears[:-1] if same(call.input_state, linears[0].input_state)]


def mixers_of(block: ModuleCall, linears: Sequence[ModuleCall], mlp: Sequence[ModuleCall]) -> list[list[ModuleCall]]:
    """The linears that ran before the MLP, those of one layer together: attention, a state-space layer, or both.

    A layer is the largest module of the block that holds none of the MLP's linears. Linears that share a parent with
    one that gets another number of tokens than the first did are cross-attention, and left out. Empty where a linear
    stands beside those of the MLP.
    """
    tokens = _tokens(linears[0].input_state) if linears else 0
    cross = {_parent(call.name) for call in linears if _tokens(call.input_state) != tokens}
    layers: dict[str, list[ModuleCall]] = {}
    for call in linears:
        if _parent(call.name) not in cross:
            layers.setdefault(_layer(block.name, call.name, [one.name for one in mlp]), []).append(call)
    return [] if any(name in layers for name in (call.name for call in linears)) else list(layers.values())


def first_mixer(block: ModuleCall, calls: Sequence[ModuleCall]) -> set[nn.Module]:
    """The modules of the layer whose linear runs first in a block, and not last: of what mixes tokens."""
    inside = set(block.module.modules())
    names = [call.name for call in calls if call.module in inside and call.is_linear]
    if not names:
        return set()
    path = _layer(block.name, names[0], names[-1:])[len(block.name) + 1 :]
    return set(block.module.get_submodule(path).modules())


def is_one_layer(block: ModuleCall, linears: Sequence[ModuleCall], calls: Sequence[ModuleCall]) -> bool:
    """Whether one module inside the block, which ran, holds all its linears."""
    ran = {call.name for call in calls}
    path = linears[0].name
    while len(path := _parent(path)) > len(block.name):
        if path in ran and all(call.name.startswith(f"{path}.") for call in linears):
            return True
    return False


def _layer(block: str, name: str, apart: Sequence[str]) -> str:
    """The path of the largest module of a block that holds a linear and none of those ``apart``."""
    path = name
    while len(parent := _parent(path)) > len(block) and not any(one.startswith(f"{parent}.") for one in apart):
        path = parent
    return path


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _tokens(x: Tensor | None) -> int:
    return 0 if x is None else x.numel() // x.shape[-1]
