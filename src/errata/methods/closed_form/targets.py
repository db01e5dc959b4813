"""The hidden states with which a model gives the new answers, searched for many facts at once."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from errata.methods.closed_form.objective import FactRows, TargetSettings, rows_of
from errata.methods.closed_form.search import GroupSearch, SearchResult
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite
from errata.model.projection import Projection
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
) -> SearchResult:
    """δ for every edit at ``site``, a part for each path, no longer than its entry of ``limits`` (n, paths).

    ``units`` (n, paths) are the decay's ‖v‖.
    ``plain`` is the reference: a fact at a time, full passes.
    """
    contexts = contexts[: settings.search_contexts + 1]
    rows = [rows_of(lm, edit, contexts, settings) for edit in edits]
    result = SearchResult.start(len(edits), _hidden_width(lm) * len(site.paths(lm.sites)), lm.dtype, settings.optimizer)

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
