"""Look-ups by keys: a key for the prompt of each edit, and the rule by which an edit gets a key or joins another's."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.memory.adapter import Lookup, joint_training
from errata.methods.memory.log import EditLog
from errata.model.lm import Call
from errata.model.passes import at_least_float32

SHRINK = 1e-5  # share of a radius: after a split the older entry is the smaller (both released codes: 1e-5 outright)


@dataclass(frozen=True, eq=False, kw_only=True)
class KeyTable(Lookup):
    """Queries of all edits in order, and which of them are keys.

    Edit i has an entry of its own, with its query as the key, or has joined the entry of edit ``owner[i]``, which has
    the same target. The payload of an entry is that of the last edit in it.
    """

    queries: Tensor  # (n, f)
    radii: Tensor  # (n,): how far a key reaches; below 0 where an edit's query is no key (any more)
    owner: Tensor  # (n,)

    side: ClassVar[Literal["in", "out"]] = "in"  # whether queries are of the site's input or of its output

    @abstractmethod
    def query(self, call: Call, h: Tensor) -> Tensor:
        """Queries of the rows of a pass (b, t, f) that has read the prompts. (b, f)"""

    @abstractmethod
    def match(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The entry nearest to each query (b, f), and whether it is near enough. (b,) and (b,)"""

    @abstractmethod
    def place(self, i: int, log: EditLog) -> None:
        """Sets ``radii`` and ``owner`` of edit i, the newest, and of those that it changes, in place."""

    @staticmethod
    @abstractmethod
    def similarity(q: Tensor) -> Tensor:
        """How near queries (n, f) are to each other, or how far, as the rule measures it. (n, n)"""

    @classmethod
    def empty(cls, f: int, **settings: Any) -> Self:
        """A table without keys, for queries of width ``f``."""
        none = torch.empty(0)
        return cls(queries=torch.empty(0, f), radii=none, owner=none.long(), **settings)

    @override
    def find(self, call: Call, x: Tensor, y: Tensor, payload: Any) -> Tensor:
        entry, near = self.match(self.query(call, at_least_float32(x if self.side == "in" else y)))
        return torch.where(near, self.latest.to(entry.device)[entry], -1)

    def forget(self, i: int) -> None:
        """Takes the key of edit i out, in place."""
        self.radii[i] = -1.0

    @cached_property
    def latest(self) -> Tensor:
        """The last edit of the entry that each edit's key stands for. (n,)"""
        order = torch.arange(len(self.owner))
        return order.scatter_reduce(0, self.owner, order, "amax")

    def group(self, i: int) -> list[int]:
        """The edits that edit i's payload was trained on: those of its entry up to itself."""
        return (self.owner[: i + 1] == self.owner[i]).nonzero()[:, 0].tolist()

    def extended(self, log: EditLog, queries: Tensor) -> Self:
        """With the queries (k, f) of the last k edits of ``log``, placed one after another.

        The key of an earlier edit of the same prompt with another target is taken out.
        """
        n = len(self.queries)
        table = replace(
            self,
            queries=torch.cat([self.queries.to(queries), queries]),
            radii=torch.cat([self.radii, torch.full((len(queries),), -1.0)]),
            owner=torch.cat([self.owner, torch.arange(n, n + len(queries))]),
        )
        for i in range(n, len(log)):
            for j in range(i):
                if log[j].prompt_ids == log[i].prompt_ids and log[j].target_ids != log[i].target_ids:
                    table.forget(j)
            table.place(i, log)
        return table

    @override
    def kept(self, log: EditLog, keep: Sequence[int]) -> Self:
        table = replace(self, queries=self.queries[:0], radii=self.radii[:0], owner=self.owner[:0])
        table = table.extended(tuple(log[i] for i in keep), self.queries[list(keep)])
        for now, then in enumerate(keep):
            if [keep[j] for j in table.group(now)] != self.group(then):
                raise joint_training(log[then], log, keep)
        return table

    @override
    def details(self, log: EditLog, i: int) -> dict[str, Any] | None:
        if self.radii[i] < 0:
            return None
        edits = ", ".join(log[j].id for j in self.group(int(self.latest[i])))
        return {"edit": edits, "radius": round(float(self.radii[i]), 4)}

    @override
    def totals(self) -> dict[str, Any]:
        return {"keys": int((self.radii >= 0).sum())}


@dataclass(frozen=True, eq=False, kw_only=True)
class Spheres(KeyTable):
    """Keys with a radius each, by the rule of GRACE. The query is the vector at the prompt's last token."""

    radius: float  # with which an entry begins

    @override
    def query(self, call: Call, h: Tensor) -> Tensor:
        assert call.prompt_end is not None
        return h[torch.arange(len(h), device=h.device), call.prompt_end.to(h.device)]

    def centres(self) -> Tensor:
        """Where the entries are. (n, f)"""
        return self.queries

    def radius_joined(self, entry: int, distance: float) -> float:
        """The radius of an entry that an edit has joined from that distance."""
        return max(float(self.radii[entry]), distance)

    def shrunk(self, entry: int) -> None:
        """Called when an entry has lost radius; changes what depends on it in place."""

    @override
    def match(self, q: Tensor) -> tuple[Tensor, Tensor]:
        entry, distance = self.nearest(q)
        return entry, distance <= self.radii.to(q)[entry]

    def nearest(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The entry nearest to each query, and its distance. (b,) and (b,)"""
        keys, dead = self.centres().to(q), self.radii.to(q.device) < 0
        apart = keys.square().sum(-1) - 2 * q @ keys.T  # (b, n), less |q|²
        entry = apart.masked_fill(dead, torch.inf).argmin(-1)
        return entry, (q - keys[entry]).norm(dim=-1)  # not from the squares, whose difference loses small distances

    @override
    def place(self, i: int, log: EditLog) -> None:
        """Algorithm 1 of GRACE, except that a split makes no radius larger."""
        radii = self.radii
        if not (radii >= 0).any():
            radii[i] = self.radius
            return
        nearest, far = self.nearest(self.queries[i][None])
        entry, distance = int(nearest), float(far)
        reach = float(radii[entry])
        if distance > self.radius + reach:
            radii[i] = self.radius
        elif log[entry].target_ids == log[i].target_ids:
            self.owner[i] = entry
            radii[entry] = self.radius_joined(entry, distance)
        else:
            radii[i], radii[entry] = min(self.radius, distance / 2), min(reach, distance / 2 * (1 - SHRINK))
            self.shrunk(entry)

    @staticmethod
    @override
    def similarity(q: Tensor) -> Tensor:
        return torch.cdist(q, q)
