"""Keys with a radius each: GRACE's, and MELO's clusters are made of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.codebook.keys import KeyTable, agree
from errata.methods.memory.log import EditLog
from errata.methods.memory.nearest import Nearest, Reach
from errata.model.lm import Call

SHRINK = 1e-5  # share of a radius: after a split the older entry is the smaller (both released codes: 1e-5 outright)


@dataclass(frozen=True, eq=False, kw_only=True)
class Spheres(KeyTable):
    """Keys with a radius each, by the rule of GRACE. The query is the vector at the prompt's last token.

    Where keys of two answers meet, radii that were given shrink to half the way, as in Algorithm 1 of GRACE (except
    that none grows). Those that were measured stay, as they end before other texts; the nearer key answers in any case.
    """

    split: bool  # whether radii were given

    @override
    def query(self, call: Call, h: Tensor) -> Tensor:
        assert call.prompt_end is not None
        return h[torch.arange(len(h), device=h.device), call.prompt_end.to(h.device)]

    @property
    @override
    def split_by_others(self) -> bool:
        return self.split

    @property
    def keys(self) -> Nearest:
        """The keys, in the rows of the edits that own them."""
        return self.index

    def radius_joined(self, entry: int, distance: float) -> float:
        """The radius of an entry that an edit has joined from that distance."""
        return max(float(self.radii[entry]), distance)

    @override
    def match(self, q: Tensor) -> tuple[Tensor, Tensor]:
        entry = self.keys.seen(q).nearest(self.radii)[0].to(q.device)
        return entry, entry >= 0

    @override
    def found(self, q: Tensor) -> Tensor:
        return self.keys.seen(q).nearest(self.radii, self.reaching)[0].to(q.device)

    @cached_property
    def reaching(self) -> Reach:
        """What the radii ask of a look-up, had once: of a table whose edits have all been placed."""
        return self.keys.reach(self.radii)

    @override
    def _nearest_entry(self, i: int) -> int:
        everywhere = torch.where(self.radii >= 0, torch.inf, -1.0)
        return int(self.keys.seen(self.queries[i][None]).nearest(everywhere)[0])

    @override
    def joins(self, i: int, log: EditLog) -> int | None:
        answers = self.__dict__["numbers"].answers
        if int((answers == answers[i]).sum()) == 1:  # none to share an entry with
            return None
        reach = torch.where(self.radii >= 0, self.reach[i] + self.radii, -1.0)
        (entry,), (distance,) = (found.tolist() for found in self.keys.seen(self.queries[i][None]).nearest(reach))
        if entry < 0 or self.owner[entry] < 0 or not agree(log[entry], log[i]):
            return None
        self.owner[i] = entry
        self.radii[entry] = self.radius_joined(entry, distance)
        return entry

    @override
    def open(self, i: int, log: EditLog) -> None:
        super().open(i, log)
        if not self.split:
            return
        answers = self.__dict__["numbers"].answers
        others = (self.owner >= 0) & (answers != answers[i])
        found = self.index.seen(self.queries[i][None]).nearest(torch.where(others, torch.inf, -1.0))
        (j,), (distance,) = (one.tolist() for one in found)
        if j < 0:
            return
        entry = int(self.owner[j])
        if distance <= float(self.radii[i] + self.radii[entry]):
            self.radii[i] = min(float(self.radii[i]), distance / 2)
            self.radii[entry] = min(float(self.radii[entry]), distance / 2 * (1 - SHRINK))
            self.changed.add(entry)
