"""Targets that were found before: those that a patch keeps, and which of them still count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from errata.patch.delta import Delta
from errata.patch.memory import TARGETS
from errata.patch.patch import Patch

Record = Mapping[str, Any]


@dataclass
class Found:
    """δ of searches that were made before, path -> (n, d), which the next searches take in turn.

    ``kept`` are the paths whose new targets go into the memory.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    kept: set[str] = field(default_factory=set[str])
    _taken: dict[str, int] = field(default_factory=dict[str, int])

    def take(self, path: str, n: int) -> Tensor | None:
        """The next n rows of a path, (n, d); None where there are no more."""
        start = self._taken.get(path, 0)
        self._taken[path] = start + n
        rows = self.rows.get(path, torch.empty(0))[start : start + n]
        return rows if len(rows) == n else None


def with_whole_targets(prior: Patch, paths: Sequence[str]) -> tuple[Patch, set[str]]:
    """A patch without targets of paths where those of earlier edits are missing, and the paths where none is.

    Behind changes of weights that cannot be solved again none is kept.
    """
    made: Sequence[Record] = prior.meta.get("made", ())
    alone = not prior.of_kind(Delta) or any("targets" in record for record in made)
    whole = {path for path in paths if alone and len(prior.memory.get(TARGETS + path, ())) == searched_at(made, path)}
    gone = {TARGETS + path for path in paths if path not in whole}
    return replace(prior, memory={name: t for name, t in prior.memory.items() if name not in gone}), whole


def searched_at(made: Sequence[Record], path: str) -> int:
    """How many targets were searched for at a path."""
    return sum(len(record["edits"]) for record in made if path in record.get("targets", ()))
