"""What measures the keys of each weight: made from C once for a state, and held there while there is room."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.methods.closed_form.solve import RunningInverse
from errata.methods.closed_form.symmetric import Kept, Symmetric
from errata.methods.state import State
from errata.model.weights import stem
from errata.patch.memory import GRAM, KEYS, remember


@dataclass(frozen=True)
class Inverses:
    """The metric of each weight's keys, ``metric(C)``, and with ``history`` that of C and the keys of earlier edits.

    Held under ``name`` with the state, for at least as many weights as there are ``layers``.
    """

    state: State
    device: torch.device
    name: str
    metric: Callable[[Tensor], Tensor]
    lam: float
    history: bool
    layers: int

    def of(self, weight: str, memory: Mapping[str, Tensor]) -> Symmetric:
        """(f, f), with the keys that a patch's ``memory`` holds where they count."""
        running, path = self._running(weight), stem(weight)
        if not self.history:
            return running.initial
        return running.after(memory.get(KEYS + path), memory.get(GRAM + path), self.lam)

    def remember(self, weight: str, keys: Tensor, memory: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The memory with new keys (n, f) of a weight, which its inverse takes in too where that is held."""
        path = stem(weight)
        memory = remember(memory, path, keys)
        if running := kept(self.state).find(self._held_as(path)):
            running.add(keys, memory[GRAM + path if GRAM + path in memory else KEYS + path], self.lam)
        return memory

    def _running(self, weight: str) -> RunningInverse:
        c = self.state.tensors[f"C/{stem(weight)}"]

        def make() -> RunningInverse:
            return RunningInverse(Symmetric.of(self.metric(c.to(self.device))))

        nbytes = 4 * c.numel() * (2 if self.history else 1)
        return kept(self.state).get(self._held_as(stem(weight)), make, nbytes, self.layers)

    def _held_as(self, path: str) -> str:
        return f"{self.name}/{path}"


def kept(state: State) -> Kept[RunningInverse]:
    """The inverses that go with a state."""
    return state.once("inverses", Kept)
