"""GRACE: keys with a radius each; the layer says an entry's value where a question falls within its radius.

Hartvigsen et al. 2023, arXiv:2211.11031. The site is a down projection's output and the query its input at the
prompt's last token: that is what the paper edits in GPT-J and Llama (in GPT-2 XL it is the up projection).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.lm import Call
from errata.methods._codebook import Codebook, CodebookMethod

LESS = 1e-5  # of a radius: after a split the older entry is the smaller (released code: 1e-5 outright)


class Balls(Codebook):
    """Entries with a radius each. ``settings`` are replace and radius."""

    kind: ClassVar[str] = "grace"

    def query(self, call: Call, x: Tensor) -> Tensor:
        assert call.prompt_end is not None
        return x[torch.arange(len(x), device=x.device), call.prompt_end.to(x.device)]

    def look(self, q: Tensor) -> tuple[Tensor, Tensor]:
        entry, distance = self._nearest(q)
        return entry, distance <= self.radii.to(q)[entry]

    def _nearest(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) and (b,): the nearest key to each query, and how far it is."""
        keys, dead = self.queries.to(q), self.radii.to(q.device) < 0
        apart = keys.square().sum(-1) - 2 * q @ keys.T  # (b, n), less |q|²
        entry = apart.masked_fill(dead, torch.inf).argmin(-1)
        return entry, (q - keys[entry]).norm(dim=-1)  # not from the squares, whose difference loses small distances

    def place(self, i: int) -> None:
        """The paper's algorithm 1, except that a split makes no radius larger."""
        radius, radii = float(self.settings["radius"]), self.radii
        if not (radii >= 0).any():
            radii[i] = radius
            return
        entry, distance = (float(found) for found in self._nearest(self.queries[i][None]))
        entry = int(entry)
        held = float(radii[entry])
        if distance > radius + held:
            radii[i] = radius
        elif self.log[entry].answer == self.log[i].answer:
            self.owner[i], radii[entry] = entry, max(held, distance)
        else:
            radii[i], radii[entry] = min(radius, distance / 2), min(held, distance / 2 * (1 - LESS))

    @staticmethod
    def alike(q: Tensor) -> Tensor:
        return torch.cdist(q, q)


@dataclass(frozen=True, kw_only=True)
class GRACE(CodebookMethod):
    """A codebook that replaces what a layer says to questions near those that were edited."""

    name: ClassVar[str] = "grace"
    paper: ClassVar[str] = "Hartvigsen et al. 2023, Aging with GRACE, arXiv:2211.11031"
    stores: ClassVar[str] = "a key, a value and a radius for each edit; no weight changes"
    book: ClassVar[type[Codebook]] = Balls

    layer: int | None = None  # 5/6 up, with two blocks above: 40 of 48 (paper: 35), 23 of 28 (25), 26 of 32 (27)
    steps: int = 100  # released code
    radius: float | None = None  # half the distance that `share` of pairs of texts fall short of; paper: 1.0

    def default_layer(self, depth: int) -> int:
        return min(5 * depth // 6, depth - 3)

    def reach(self, quantiles: Tensor) -> dict[str, float]:
        return {"radius": float(quantiles[round(self.share * (len(quantiles) - 1))]) / 2}

    def rule(self) -> dict[str, Any]:
        return {"replace": self.replace, "radius": self.radius}
