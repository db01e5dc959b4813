"""Vectors that are added to hidden states: at which modules, and at which tokens."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.model import hooks
from errata.model.passes import hidden_of, unflattened, with_hidden
from errata.model.sites import Sites

Held = Mapping[int, Tensor]  # column of a row -> what is added there all the time, (d for each path of the site,)


@dataclass(frozen=True)
class InterventionSite:
    """Where a vector is added: at a block's output, or (``mlp_output``) at the output of the block's down projection.

    At the down projection, a norm between it and the residual sees the changed value. With ``attention`` a second
    vector, stored behind the first, is added at the output of the block's attention (PMET).
    """

    layer: int
    mlp_output: bool = False
    attention: bool = False

    def path(self, sites: Sites) -> str:
        """Path of the module at whose output the first vector is added."""
        return sites.mlp_out[self.layer] if self.mlp_output else sites.layer[self.layer]

    def paths(self, sites: Sites) -> list[str]:
        """Paths of all modules at whose outputs vectors are added."""
        return [self.path(sites), *([sites.attention(self.layer)] if self.attention else [])]


def changed(
    model: nn.Module,
    sites: Sites,
    site: InterventionSite,
    delta: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    b: int,
) -> AbstractContextManager[None]:
    """Context manager: ``delta`` (k, d for each path of the site) is added at k tokens of a batch of ``b`` rows."""
    paths = site.paths(sites)
    parts = [None] * len(paths) if delta is None else delta.chunk(len(paths), 1)
    adds = [adding(part, rows, columns, b) for part in parts]
    return hooks.all_of(
        hooks.after(model.get_submodule(path), lambda args, kwargs, out, add=add: add(out))
        for path, add in zip(paths, adds, strict=True)
    )


def adding(delta: Tensor | None, rows: Tensor, columns: Tensor, b: int) -> Callable[[Any], Any]:
    """A function that adds ``delta`` (k, d) to the hidden state in a module's output, at k tokens of ``b`` rows."""

    def add(output: Any) -> Any:
        if delta is None:
            return output
        hidden = hidden_of(output)
        zeros = torch.zeros_like(unflattened(hidden, b))
        added = zeros.index_put((rows.to(hidden.device), columns.to(hidden.device)), delta.to(hidden))
        return with_hidden(output, hidden + added.view_as(hidden))

    return add


def holding(
    model: nn.Module, sites: Sites, site: InterventionSite, held: Sequence[Held], starts: Sequence[int]
) -> AbstractContextManager[None]:
    """Context manager: what is ``held`` is added, in rows whose column 0 stands at ``starts``."""
    at = [(row, start + column) for row, (of, start) in enumerate(zip(held, starts, strict=True)) for column in of]
    if not at:
        return nullcontext()
    rows, columns = torch.tensor(at).unbind(1)
    vectors = torch.stack([vector for of in held for vector in of.values()])  # (k, d for each path)
    parts = vectors.chunk(len(site.paths(sites)), 1)
    adds = [adding(part, rows, columns, len(held)) for part in parts]
    return hooks.all_of(
        hooks.after(model.get_submodule(path), lambda args, kwargs, out, add=add: add(out))
        for path, add in zip(site.paths(sites), adds, strict=True)
    )
