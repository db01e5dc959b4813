"""A batch of edits in the making, and what the new values shall be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from errata.methods.closed_form.found import Found
from errata.methods.closed_form.keys import SubjectRows
from errata.methods.state import State
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.projection import Projection
from errata.patch.delta import Delta
from errata.patch.memory import TARGETS, remember_targets
from errata.patch.patch import Patch
from errata.types import Edit


@dataclass(frozen=True)
class Targets:
    """What the new values shall be: v + ``delta`` (n, d), with v the old ``value`` in the bare prompt.

    ``inside`` and ``outside`` (n, d) are what flowed there on the value's way to the hidden state (:class:`Outlet`).
    """

    delta: Tensor
    value: Tensor
    inside: Tensor
    outside: Tensor


@dataclass
class EditContext:
    """A batch of edits in the making: what it starts from, and the memory and the changes of weights so far."""

    lm: HFLM
    edits: list[Edit]
    contexts: list[str]
    state: State
    prior: Patch
    memory: Mapping[str, Tensor]
    rows: SubjectRows
    found: Found = field(default_factory=Found)
    changes: Delta = field(default_factory=lambda: Delta({}))
    kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Keys (m, f) of each weight whose values are to stay, beside those that C stands for."""
    searched: dict[InterventionSite, Targets] = field(default_factory=dict[InterventionSite, Targets])
    """Targets by site, of a method that solves for them more than once."""

    def keep(self, layer: int, delta: Tensor) -> None:
        """Keeps δ (n, d) in the memory, unless there are too many of them or earlier ones are missing there."""
        path, most = self.lm.sites.mlp_out[layer], Projection.of(self.lm.sites, layer).shape(self.lm.model)[1]
        if path in self.found.kept:
            self.memory = remember_targets(self.memory, path, delta.cpu().contiguous(), most)
            self.found.kept -= {path} - {name.removeprefix(TARGETS) for name in self.memory}

    def in_force(self) -> Patch:
        """The prior patch and the changes so far."""
        return self.prior.without_wrappers() + Patch((self.changes,))

    def edited(self) -> Any:
        """Context manager: the model with the prior patch and the changes so far in force."""
        return self.in_force().applied(self.lm)
