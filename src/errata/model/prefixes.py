"""Beginnings that rows share (contexts before a prompt): run once, into a cache of keys and values."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.model.caches import cache_layer, cache_rows, ending, new_cache, plain
from errata.model.padding import pad
from errata.model.passes import Rows, gathered, input_device, inputs_of
from errata.model.sites import Sites

SAME = 6  # rows whose first tokens are the same, this many, are taken to begin with a common text


@dataclass(frozen=True)
class PrefixGroup:
    """Rows whose first tokens are in a cache already: ``ids`` (b, t) are still to run, ``mask`` covers both."""

    rows: list[int]
    skipped: list[int]  # for each row, how many of its tokens the cache holds
    cache: Any
    mask: Tensor
    ids: Tensor


def shared_prefixes(
    model: nn.Module, sites: Sites, rows: Rows, lengths: Sequence[int], last: int = -1
) -> list[PrefixGroup] | None:
    """The rows in groups, after the beginnings that several of them share have been run once, into a cache.

    ``lengths`` are the tokens of each row's beginning (:func:`shared_lengths`). The rests of a group's rows have the
    same length, so there is no padding inside a row. None where nothing is shared, or where the model's cache is not
    made of plain layers. Blocks behind the ``last`` are not run.
    """
    base = new_cache(model)
    if not any(lengths) or base is None or not plain(base):
        return None
    device = input_device(model, sites)
    prefixes: dict[tuple[int, ...], int] = {}
    by_rest: dict[tuple[bool, int], list[int]] = {}  # (has a shared prefix, length of the rest) -> rows
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        if n:
            prefixes.setdefault(tuple(row[:n]), len(prefixes))
        by_rest.setdefault((n > 0, len(row) - n), []).append(i)
    prefix = pad([list(ids) for ids in prefixes], "left", 0, device)
    extend(model, sites, base, prefix.ids, prefix.mask, last)
    groups: list[PrefixGroup] = []
    for (has_prefix, rest), members in by_rest.items():
        cache, mask = new_cache(model), torch.zeros(len(members), 0, dtype=torch.long, device=device)
        if has_prefix:
            index = torch.tensor([prefixes[tuple(rows[i][: lengths[i]])] for i in members])
            cache, mask = cache_rows(base, index), prefix.mask[index]
        ids = torch.tensor([list(rows[i])[lengths[i] :] for i in members], dtype=torch.long, device=device)
        ids = ids.view(len(members), rest)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        groups.append(PrefixGroup(members, [lengths[i] for i in members], cache, mask, ids))
    return groups


def extend(model: nn.Module, sites: Sites, cache: Any, ids: Tensor, mask: Tensor, last: int = -1) -> None:
    """Runs more tokens into a cache; ``mask`` covers the tokens that it holds already too.

    A cache of plain layers is filled up to block ``last``: its attention and its MLP, on which no key depends, are left
    out.
    """
    some = torch.tensor([0])
    enough = ending(cache, cache_layer(model, sites, last % sites.depth)) if plain(cache) else nullcontext()
    with torch.no_grad(), gathered(model, sites, some, some), enough:
        model(**inputs_of(model, ids, mask, cache))


def shared_lengths(rows: Rows, most: Sequence[int] | None = None) -> list[int]:
    """For each row, how many of its first tokens it shares with all rows whose first SAME are equal (0: none).

    ``most`` limits how many tokens of each row may be taken for its beginning.
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
    return lengths
