"""HoReN: keys as directions, found by one step of a Hopfield network; an entry's value is added to what the layer says.

Fang et al. 2026, arXiv:2605.08143.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.codebook.base import Codebook, CodebookMethod
from errata.methods.settings import setting
from errata.model.lm import Call


class HorenCodebook(Codebook):
    """Entries with unit keys. ``settings`` are replace, recent, alpha, beta and threshold (τ)."""

    kind: ClassVar[str] = "horen"

    def query(self, call: Call, h: Tensor) -> Tensor:
        assert call.prompt_end is not None
        at, end = torch.arange(h.shape[1], device=h.device)[None], call.prompt_end.to(h.device)[:, None]
        prompt = (call.mask.to(h.device) > 0) & (at <= end)  # (b, t)
        recent = (prompt.sum(-1, keepdim=True) * self.settings["recent"]).ceil().clamp(min=1)
        chosen = (prompt & (at > end - recent)).to(h)
        return normalize((chosen[..., None] * h).sum(1), dim=-1)  # the mean's length does not count

    def look(self, q: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._scores(q)
        score, entry = scores.max(-1)
        return entry, score > self.settings["threshold"]

    def _scores(self, q: Tensor) -> Tensor:
        """(b, n): K q after one damped step, q ← norm((1 − α) q + α norm(Kᵀ softmax(β K q)))."""
        keys, dead = self.queries.to(q), self.radii.to(q.device) < 0
        alpha, beta = self.settings["alpha"], self.settings["beta"]
        p = (beta * q @ keys.T).masked_fill(dead, -torch.inf).softmax(-1)  # (b, n)
        q = normalize((1 - alpha) * q + alpha * normalize(p @ keys, dim=-1), dim=-1)
        return (q @ keys.T).masked_fill(dead, -torch.inf)

    def place(self, i: int) -> None:
        """A new key, unless an entry of the same answer would answer already."""
        if (self.radii >= 0).any():
            entry, near = self.look(self.queries[i][None])
            if near and self.log[int(entry)].answer == self.log[i].answer:
                self.owner[i] = int(entry)
                return
        self.radii[i] = 0.0  # keys have no radius here

    def combine(self, y: Tensor, value: Tensor) -> Tensor:
        return y + value

    @staticmethod
    def alike(q: Tensor) -> Tensor:
        return q @ q.T


@dataclass(frozen=True, kw_only=True)
class HoReN(CodebookMethod):
    """A codebook of directions: adds to what a layer says to questions that look like those that were edited."""

    name: ClassVar[str] = "horen"
    paper: ClassVar[str] = "Fang et al. 2026, HoReN, arXiv:2605.08143"
    stores: ClassVar[str] = "a unit key and a value for each edit; no weight changes"
    book: ClassVar[type[Codebook]] = HorenCodebook
    tags: ClassVar[Tags] = Tags(quick={"steps": 30})

    layer: int | None = setting(None, "7/8 up, with two blocks above: 28 of 32 (paper: 29), 24 of 28 (24)")
    steps: int = setting(50, "paper", above=0)
    share: float = setting(2e-4, "of pairs of different texts, that look like the same question; measured here")
    recent: float = setting(
        0.5, "paper, Llama 3 (Qwen 2.5: 0.6): how much of the prompt is averaged; short ones want less"
    )
    alpha: float = setting(0.1, "paper")
    beta: float = setting(20.0, "paper")
    threshold: float | None = setting(
        None, "τ: a cosine that `share` of pairs of texts pass; paper: 0.85, 0.55 for Qwen 2.5"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent > 1 or self.alpha > 1:
            raise BadInput(f"horen's recent and alpha are shares, 0 to 1; found {self.recent} and {self.alpha}")

    def default_layer(self, depth: int) -> int:
        return min(7 * depth // 8, depth - 3)

    def start(self, outs: Tensor, noise: Tensor) -> Tensor:
        return noise if self.init == "cold" else torch.zeros_like(outs)

    def reach(self, quantiles: Tensor) -> dict[str, float]:
        return {"threshold": float(quantiles[round((1 - self.share) * (len(quantiles) - 1))])}

    def rule(self) -> dict[str, Any]:
        names = ("replace", "recent", "alpha", "beta", "threshold")
        return {name: getattr(self, name) for name in names}
