"""Keys with a radius each: the rule of GRACE and of MELO, whose keys are means of several questions."""

from abc import abstractmethod

import torch
from torch import Tensor

from errata.methods.codebook.base import Codebook
from errata.model.lm import Call

LESS = 1e-5  # of a radius: after a split the older entry is the smaller (both released codes: 1e-5 outright)


class Spheres(Codebook):
    """Entries with a centre and a radius. ``settings`` hold the radius that they begin with."""

    def query(self, call: Call, h: Tensor) -> Tensor:
        assert call.prompt_end is not None
        return h[torch.arange(len(h), device=h.device), call.prompt_end.to(h.device)]

    def centres(self) -> Tensor:
        """(n, f): where the entries are."""
        return self.queries

    @abstractmethod
    def joined(self, entry: int, distance: float) -> float:
        """The radius of an entry that an edit has joined from so far away."""

    def split(self, entry: int) -> None:
        """What else becomes of an entry that has become smaller, in place."""

    def look(self, q: Tensor) -> tuple[Tensor, Tensor]:
        entry, distance = self.nearest(q)
        return entry, distance <= self.radii.to(q)[entry]

    def nearest(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) and (b,): the entry nearest to each query, and how far it is."""
        keys, dead = self.centres().to(q), self.radii.to(q.device) < 0
        apart = keys.square().sum(-1) - 2 * q @ keys.T  # (b, n), less |q|²
        entry = apart.masked_fill(dead, torch.inf).argmin(-1)
        return entry, (q - keys[entry]).norm(dim=-1)  # not from the squares, whose difference loses small distances

    def place(self, i: int) -> None:
        """Algorithm 1 of GRACE, except that a split makes no radius larger."""
        radius, radii = float(self.settings["radius"]), self.radii
        if not (radii >= 0).any():
            radii[i] = radius
            return
        entry, distance = (float(found) for found in self.nearest(self.queries[i][None]))
        entry = int(entry)
        held = float(radii[entry])
        if distance > radius + held:
            radii[i] = radius
        elif self.log[entry].answer == self.log[i].answer:
            self.owner[i] = entry
            radii[entry] = self.joined(entry, distance)
        else:
            radii[i], radii[entry] = min(radius, distance / 2), min(held, distance / 2 * (1 - LESS))
            self.split(entry)

    @staticmethod
    def alike(q: Tensor) -> Tensor:
        return torch.cdist(q, q)
