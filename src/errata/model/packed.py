"""The suffix pass with many rows in one element of its batch, behind one copy of what they begin with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.model.added import InterventionSite
from errata.model.caches import cache_columns
from errata.model.in_use import use_of
from errata.model.packing import Packing, Strip, dtype_of, long, mask_of
from errata.model.padding import Padded
from errata.model.passes import Rows
from errata.model.prefixes import Begun, extend, shared_lengths
from errata.model.resumed import ResumedPass
from errata.model.sites import Sites


@dataclass(frozen=True)
class Placed:
    """Rows in the elements of a batch: their tokens ``between`` a beginning and the changed position, and their
    ``ends`` from there on. ``begun`` (beginnings, n) is the mask of the beginnings, padded on the left."""

    begun: Tensor
    beginning: list[int]
    between: list[list[int]]
    ends: list[list[int]]
    fill: int

    @cached_property
    def packing(self) -> Packing:
        """Which element a row stands in."""
        return Packing.of(self.beginning, [len(a) + len(b) for a, b in zip(self.between, self.ends, strict=True)])

    @cached_property
    def prefix(self) -> Strip:
        """What is between."""
        return Strip.of(self.packing, self.between, self._begun, self.fill)

    @cached_property
    def suffix(self) -> Strip:
        """The ends."""
        before = [n + len(ids) for n, ids in zip(self._begun, self.between, strict=True)]
        return Strip.of(self.packing, self.ends, before, self.fill)

    @property
    def _begun(self) -> list[int]:
        return self.begun.sum(1)[self.beginning].tolist()

    def of_rows(self, rows: Sequence[int]) -> "Placed":
        """Some of the rows, packed anew."""
        between, ends = ([values[i] for i in rows] for values in (self.between, self.ends))
        return Placed(self.begun, [self.beginning[i] for i in rows], between, ends, self.fill)

    def mask(self, strip: Strip, behind: Sequence[Strip], dtype: torch.dtype) -> Tensor:
        """:func:`mask_of` for a strip behind the beginnings."""
        return mask_of(self.begun[self.packing.beginning], strip, behind, dtype)

    def source(self, rows: Sequence[int], new: "Placed") -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Where what is before the ends of ``new``, made of some ``rows``, stands here, and where the ends do: element
        and column of each."""
        n, element = self.begun.shape[1], {beginning: i for i, beginning in enumerate(self.packing.beginning)}
        first = long([element[beginning] for beginning in new.packing.beginning])[:, None].expand(-1, n)
        at, column = self.prefix.source(self.packing, rows, new.prefix)
        before = torch.cat([first, at], 1), torch.cat([torch.arange(n).expand(len(first), -1), n + column], 1)
        return before, self.suffix.source(self.packing, rows, new.suffix)


class PackedPass(ResumedPass):
    """A :class:`ResumedPass` whose rows stand side by side (:mod:`errata.model.packing`).

    Of a row's prefix its beginning is in the cache once for each element, the rest once for the row.
    """

    def __init__(
        self, model: nn.Module, sites: Sites, rows: Rows, positions: Sequence[int], site: InterventionSite, fill: int
    ) -> None:
        """Runs the prefixes, and the suffixes up to the site. Arguments as for :class:`FullPass`."""
        super().__init__(model, sites, site)
        shared = shared_lengths([row[:p] for row, p in zip(rows, positions, strict=True)])
        between = [list(row[n:p]) for row, n, p in zip(rows, shared, positions, strict=True)]
        ends = [list(row[p:]) for row, p in zip(rows, positions, strict=True)]
        with use_of(model).lock, torch.no_grad():
            begun = Begun.run(model, sites, rows, shared)
            device = begun.mask.device
            self._place(Placed(begun.mask.cpu(), begun.number, between, ends, fill), device)
            self.cache = begun.of(self.placed.packing.beginning)
            prefix = self.placed.prefix
            if prefix.ids.shape[1]:
                mask = self.placed.mask(prefix, [prefix], dtype_of(self.model)).to(device)
                extend(model, sites, self.cache, prefix.ids.to(device), mask, positions=prefix.position.to(device))
            self._run_below()

    def _place(self, placed: Placed, device: torch.device) -> None:
        self.placed, strip = placed, placed.suffix
        lengths = tuple((strip.row >= 0).sum(1).tolist())
        self.suffix = Padded(strip.ids.to(device), (strip.row >= 0).long().to(device), lengths)
        self.positions = strip.position.to(device)
        self.mask = placed.mask(strip, [placed.prefix, strip], dtype_of(self.model)).to(device)
        self.at = long(placed.packing.element), long(strip.starts)

    @override
    def select(self, rows: Sequence[int]) -> "PackedPass":
        placed = self.placed.of_rows(rows)
        before, ends = self.placed.source(rows, placed)
        chosen = self._with(lambda x: x[tuple(at.to(x.device) for at in ends)])
        chosen._place(placed, self.suffix.ids.device)
        chosen.cache = cache_columns(self.cache, *before)
        return chosen
