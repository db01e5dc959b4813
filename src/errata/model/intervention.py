"""Passes in which a hidden state is changed at one token of each row, and the plain way to run them.

A change at layer l and token t reaches neither the layers below l nor the tokens before t, so that
:mod:`errata.model.resumed` runs those once. :class:`FullPass` gives the same logits the plain way: it is the reference,
and the fallback for models in which that does not hold.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.model.added import Held, InterventionSite, changed, holding
from errata.model.in_use import use_of
from errata.model.padding import pad
from errata.model.passes import Rows, input_device, inputs_of, with_weights
from errata.model.sites import Sites

Weights = Mapping[str, Tensor] | None  # of parameters, by name


class Pass(Protocol):
    """Rows of tokens whose hidden state can be changed at one position each, to be run many times.

    What a row holds at earlier positions (``held``) is in force in every pass.
    """

    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]], weights: Weights = None) -> Tensor:
        """Logits at ``columns`` of each row, with ``delta`` (b, d) added to the hidden states. (k, V).

        Columns are counted from the row's changed position. None for ``delta`` changes nothing. ``weights`` replace
        parameters of the site's down projection inside the graph. Differentiable.
        """
        ...

    def select(self, rows: Sequence[int]) -> "Pass":
        """The pass over some of the rows, in that order; what has been computed is kept."""
        ...


class FullPass(Pass):
    """Runs every layer on every token, each time."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        rows: Rows,
        positions: Sequence[int],
        site: InterventionSite,
        fill: int,
        held: Sequence[Held] = (),
    ) -> None:
        """``positions``: the column of each row at which the hidden state is changed; ``fill`` pads.

        ``held``: what each row holds before its position.
        """
        self.model, self.sites, self.site, self.fill = model, sites, site, fill
        self.rows, self.positions = [list(row) for row in rows], list(positions)
        self.held = list(held) or [{} for _ in rows]
        self.padded = pad(self.rows, "right", fill, input_device(model, sites))

    @override
    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]], weights: Weights = None) -> Tensor:
        rows, cols = flat([[p + c for c in some] for p, some in zip(self.positions, columns, strict=True)])
        device = self.padded.ids.device
        where = torch.arange(len(self.rows), device=device), torch.tensor(self.positions, device=device)
        held = holding(self.model, self.sites, self.site, self.held, [0] * len(self.rows))
        with use_of(self.model).lock, held, changed(self.model, self.sites, self.site, delta, *where, len(self.rows)):
            logits = with_weights(
                self.model, weights, inputs_of(self.model, self.padded.ids, self.padded.mask)
            ).logits  # (b, t, V)
        return logits[rows.to(logits.device), cols.to(logits.device)]

    @override
    def select(self, rows: Sequence[int]) -> "FullPass":
        chosen = [self.rows[i] for i in rows]
        positions = [self.positions[i] for i in rows]
        held = [self.held[i] for i in rows]
        return FullPass(self.model, self.sites, chosen, positions, self.site, self.fill, held)


def flat(columns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Row and column of every position, (k,) each."""
    rows = [i for i, some in enumerate(columns) for _ in some]
    return torch.tensor(rows, dtype=torch.long), torch.tensor([c for some in columns for c in some], dtype=torch.long)
