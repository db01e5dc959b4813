"""Begun that rows share (contexts before a prompt): run once, into a cache of keys and values."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.model.caches import cache_layer, cache_rows, ending, new_cache, plain
from errata.model.packing import Packing, Strip, can_pack, dtype_of, mask_of
from errata.model.padding import pad
from errata.model.passes import Rows, gathered, input_device, inputs_of
from errata.model.sites import Sites

SAME = 6  # rows whose first tokens are the same, this many, are taken to begin with a common text


@dataclass(frozen=True)
class PrefixGroup:
    """Rows whose first tokens are in a cache already: ``ids`` (b, t) are still to run.

    ``mask`` and ``positions`` are those of :func:`inputs_of`. ``first`` is, for each row, where its first token would
    stand in the batch: row and column, which is less than 0 for those that the cache holds.
    """

    rows: list[int]
    first: list[tuple[int, int]]
    cache: Any
    mask: Tensor
    ids: Tensor
    positions: Tensor | None = None

    def places(self, columns: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """Where in the batch some columns of each row stand."""
        return [(at, first + c) for (at, first), some in zip(self.first, columns, strict=True) for c in some]


@dataclass(frozen=True)
class Begun:
    """What rows begin with, run once: the ``number`` of each row's, their ``cache`` and their ``mask`` (n, t)."""

    number: list[int]
    cache: Any
    mask: Tensor

    @classmethod
    def run(cls, model: nn.Module, sites: Sites, rows: Rows, lengths: Sequence[int], last: int = -1) -> "Begun":
        """``lengths`` are the tokens of each row's beginning; of none the cache is empty."""
        numbers: dict[tuple[int, ...], int] = {}
        number = [numbers.setdefault(tuple(row[:n]), len(numbers)) for row, n in zip(rows, lengths, strict=True)]
        padded, cache = pad([list(ids) for ids in numbers], "left", 0, input_device(model, sites)), new_cache(model)
        if padded.ids.shape[1]:
            extend(model, sites, cache, padded.ids, padded.mask, last)
        return cls(number, cache, padded.mask)

    def of(self, numbers: Sequence[int]) -> Any:
        """The cache of some of them, in that order."""
        return cache_rows(self.cache, torch.tensor(list(numbers))) if self.mask.shape[1] else self.cache


def shared_prefixes(
    model: nn.Module, sites: Sites, rows: Rows, lengths: Sequence[int], last: int = -1
) -> list[PrefixGroup] | None:
    """The rows in groups, after the beginnings that several of them share have been run once, into a cache.

    ``lengths`` are the tokens of each row's beginning (:func:`shared_lengths`). The rests of a group's rows have the
    same length, so there is no padding inside a row. None where nothing is shared, or where the model's cache is not
    made of plain layers. Blocks behind the ``last`` are not run.
    """
    if not any(lengths) or (empty := new_cache(model)) is None or not plain(empty):
        return None
    shared = [i for i, n in enumerate(lengths) if n]
    begun = Begun.run(model, sites, [rows[i] for i in shared], [lengths[i] for i in shared], last)
    number, device = dict(zip(shared, begun.number, strict=True)), begun.mask.device
    by_rest: dict[tuple[bool, int], list[int]] = {}  # (has a shared prefix, length of the rest) -> rows
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        by_rest.setdefault((n > 0, len(row) - n), []).append(i)
    groups: list[PrefixGroup] = []
    for (has_prefix, rest), members in by_rest.items():
        cache, mask = new_cache(model), torch.zeros(len(members), 0, dtype=torch.long, device=device)
        if has_prefix:
            numbers = [number[i] for i in members]
            cache, mask = begun.of(numbers), begun.mask[numbers]
        ids = torch.tensor([list(rows[i])[lengths[i] :] for i in members], dtype=torch.long, device=device)
        ids = ids.view(len(members), rest)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        groups.append(PrefixGroup(members, [(at, -lengths[i]) for at, i in enumerate(members)], cache, mask, ids))
    return groups


def packed_prefixes(
    model: nn.Module, sites: Sites, rows: Rows, lengths: Sequence[int], last: int = -1
) -> list[PrefixGroup] | None:
    """The same in one group, in which rows stand side by side; None where a model cannot (:func:`can_pack`)."""
    if not any(lengths) or not can_pack(model):
        return None
    begun = Begun.run(model, sites, rows, lengths, last)
    rests = [list(row[n:]) for row, n in zip(rows, lengths, strict=True)]
    packing, device = Packing.of(begun.number, [len(rest) for rest in rests]), begun.mask.device
    strip = Strip.of(packing, rests, lengths, 0)
    mask = mask_of(begun.mask[packing.beginning].cpu(), strip, [strip], dtype_of(model)).to(device)
    first = [(at, start - n) for at, start, n in zip(packing.element, strip.starts, lengths, strict=True)]
    cache = begun.of(packing.beginning)
    every = list(range(len(rows)))
    return [PrefixGroup(every, first, cache, mask, strip.ids.to(device), strip.position.to(device))]


def extend(
    model: nn.Module,
    sites: Sites,
    cache: Any,
    ids: Tensor,
    mask: Tensor,
    last: int = -1,
    positions: Tensor | None = None,
) -> None:
    """Runs more tokens into a cache; ``mask`` and ``positions`` are those of :func:`inputs_of`.

    A cache of plain layers is filled up to block ``last``: its attention and its MLP, on which no key depends, are left
    out.
    """
    some = torch.tensor([0])
    enough = ending(cache, cache_layer(model, sites, last % sites.depth)) if plain(cache) else nullcontext()
    with torch.no_grad(), gathered(model, sites, some, some), enough:
        model(**inputs_of(model, ids, mask, cache, positions))


def shared_lengths(rows: Rows, most: Sequence[int] | None = None) -> list[int]:
    """For each row, how many of its first tokens it shares with all rows whose first SAME are equal (0: none).

    ``most`` limits how many tokens of each row may be taken for its beginning; what no other row begins with then is
    not shared.
    """
    by_start: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_start.setdefault(tuple(row[:SAME]), []).append(i)
    lengths = [0] * len(rows)
    for start, members in by_start.items():
        if len(start) == SAME and len(members) > 1:
            columns = zip(*(rows[i] for i in members), strict=False)
            shortest = min(len(rows[i]) for i in members)
            n = next((j for j, column in enumerate(columns) if len(set(column)) > 1), shortest)
            for i in members:
                lengths[i] = n if most is None else min(n, most[i])
    beginnings = [tuple(row[:n]) for row, n in zip(rows, lengths, strict=True)]
    count = Counter(beginnings)
    return [len(beginning) if count[beginning] > 1 else 0 for beginning in beginnings]
