"""The hidden states with which a model gives the new answers, searched for many facts at once."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from errata.methods.closed_form.objective import FactRows, TargetSettings, continuations_of, rows_of
from errata.methods.closed_form.search import GroupSearch, SearchResult
from errata.model import hooks
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.projection import Projection
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

LAST_PART = 4  # a group is left when only a quarter of it still runs; the rest of all groups is searched together


def find_deltas(
    lm: HFLM,
    edits: Sequence[Edit],
    site: InterventionSite,
    contexts: Sequence[str],
    settings: TargetSettings,
    limits: Tensor,
    units: Tensor,
    *,
    plain: bool = False,
    under: Patch = EMPTY,
) -> SearchResult:
    """δ for every edit at ``site``, a part for each path, no longer than its entry of ``limits`` (n, paths).

    ``units`` (n, paths) are the decay's ‖v‖. ``under`` is the patch that is in force on ``lm``: its workers, where it
    has some, search a share of the facts each.
    ``plain`` is the reference: a fact at a time, full passes.
    """
    if lm.workers is not None and len(edits) > 1:
        count = min(lm.workers.count, len(edits))
        shares = [list(range(n, len(edits), count)) for n in range(count)]
        shards = [(under, [edits[i] for i in share], limits[share].cpu(), units[share].cpu()) for share in shares]
        found = lm.workers.map(_share_of_deltas, [(*shard, site, contexts, settings, plain) for shard in shards])
        result = SearchResult.start(
            len(edits), _hidden_width(lm) * len(site.paths(lm.sites)), lm.dtype, settings.optimizer
        )
        for share, part in zip(shares, found, strict=True):
            result.put(share, part)
        return result
    contexts = contexts[: settings.search_contexts + 1]
    of_subjects = continuations_of(lm, edits, settings)
    rows = [rows_of(lm, edit, contexts, settings, of) for edit, of in zip(edits, of_subjects, strict=True)]
    return search_rows(lm, rows, site, settings, limits, units, plain=plain)


def search_rows(
    lm: HFLM,
    rows: Sequence[FactRows],
    site: InterventionSite,
    settings: TargetSettings,
    limits: Tensor,
    units: Tensor,
    *,
    plain: bool = False,
) -> SearchResult:
    """δ for the rows of each fact; arguments as for :func:`find_deltas`."""
    width = _hidden_width(lm) * len(site.paths(lm.sites))
    result = SearchResult.start(len(rows), width, lm.dtype, settings.optimizer)

    def search(facts: list[int], leave: int) -> None:
        group = GroupSearch(lm, [rows[i] for i in facts], site, settings, plain)
        result.put(facts, group.run(result.of(facts, lm.device), limits[facts], units[facts], leave))

    with hooks.frozen(lm.model):
        if plain:
            for i in range(len(rows)):
                search([i], 0)
            return result
        for group in _groups(rows, range(len(rows)), lm.budget):
            search(group, 0 if len(group) == len(rows) else len(group) // LAST_PART)
        unfinished = [i for i in range(len(rows)) if not result.finished[i]]
        for group in _groups(rows, unfinished, lm.budget):  # those that groups were left with, together
            search(group, 0)
    return result


def _share_of_deltas(
    lm: HFLM, under: Patch, edits: Sequence[Edit], limits: Tensor, units: Tensor, *how: Any
) -> SearchResult:
    """In a worker: δ of some of the edits."""
    site, contexts, settings, plain = how
    with under.applied(lm) as edited:
        return find_deltas(edited, edits, site, contexts, settings, limits, units, plain=plain)


def _groups(rows: Sequence[FactRows], facts: Iterable[int], budget: int) -> Iterator[list[int]]:
    """Groups of facts whose rows fit the token budget together, those with suffixes of like length side by side."""
    group: list[int] = []
    spent = 0
    for i in sorted(facts, key=lambda i: rows[i].suffix):
        if group and spent + rows[i].cost > budget:
            yield group
            group, spent = [], 0
        group.append(i)
        spent += rows[i].cost
    if group:
        yield group


def _hidden_width(lm: HFLM) -> int:
    return Projection.of(lm.sites, 0).shape(lm.model)[0]
