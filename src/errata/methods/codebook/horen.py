"""HoReN: keys as directions, found by one step of a Hopfield network; an entry's value is added to the layer's output.

Fang et al. 2026, arXiv:2605.08143.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from errata.methods.base import State, Tags
from errata.methods.codebook.keys import KeyTable
from errata.methods.codebook.training import key_statistics
from errata.methods.codebook.values import Values, ValueSettings, train_values
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import Measured, quantile
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.delta import weight_shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions(KeyTable):
    """Unit keys, compared by cosine. The query is the mean of the last tokens of the prompt, at length 1."""

    recent: float  # share of the prompt's tokens that are averaged
    alpha: float
    beta: float
    threshold: float  # τ

    @override
    def query(self, call: Call, h: Tensor) -> Tensor:
        assert call.prompt_end is not None
        at, end = torch.arange(h.shape[1], device=h.device)[None], call.prompt_end.to(h.device)[:, None]
        prompt = (call.mask.to(h.device) > 0) & (at <= end)  # (b, t)
        recent = (prompt.sum(-1, keepdim=True) * self.recent).ceil().clamp(min=1)
        chosen = (prompt & (at > end - recent)).to(h)
        return normalize((chosen[..., None] * h).sum(1), dim=-1)  # the mean's length does not count

    @override
    def match(self, q: Tensor) -> tuple[Tensor, Tensor]:
        score, entry = self._scores(q).max(-1)
        return entry, score > self.threshold

    def _scores(self, q: Tensor) -> Tensor:
        """K q after one damped step, q ← norm((1 − α) q + α norm(Kᵀ softmax(β K q))). (b, n)"""
        keys, dead = self.queries.to(q), self.radii.to(q.device) < 0
        p = (self.beta * q @ keys.T).masked_fill(dead, -torch.inf).softmax(-1)  # (b, n)
        q = normalize((1 - self.alpha) * q + self.alpha * normalize(p @ keys, dim=-1), dim=-1)
        return (q @ keys.T).masked_fill(dead, -torch.inf)

    @override
    def place(self, i: int, log: EditLog) -> None:
        """A new key, unless the entry that matches already has the same target."""
        if (self.radii >= 0).any():
            entry, near = self.match(self.queries[i][None])
            if near and log[int(entry)].target_ids == log[i].target_ids:
                self.owner[i] = int(entry)
                return
        self.radii[i] = 0.0  # keys have no radius here

    @staticmethod
    @override
    def similarity(q: Tensor) -> Tensor:
        return q @ q.T


class HorenCodebook(EditMemory[Directions, Values]):
    """Values of prompts whose direction is that of an edit's prompt."""

    kind: ClassVar[str] = "horen"


@dataclass(frozen=True, kw_only=True)
class HoReN(ValueSettings, MemoryMethod):
    """A codebook of directions: adds to a layer's output for prompts that look like those that were edited."""

    name: ClassVar[str] = "horen"
    family: ClassVar[str] = "codebook"
    paper: ClassVar[str] = "Fang et al. 2026, HoReN, arXiv:2605.08143"
    stores: ClassVar[str] = "a unit key and a value for each edit; no weight changes"
    part: ClassVar[type[EditMemory[Any, Any]]] = HorenCodebook
    height: ClassVar[Fraction] = Fraction(7, 8)
    blocks_above: ClassVar[int] = 2
    tags: ClassVar[Tags] = Tags(quick={"steps": 30}, memory=True)

    layer: int | None = setting(None, "7/8 up, with two blocks above: 28 of 32 (paper: 29), 24 of 28 (24)")
    texts: int = setting(512, "openings of texts whose queries are compared")
    share: float = setting(2e-4, "of pairs of different texts, that count as the same question; measured here", most=1)
    steps: int = setting(50, "paper", above=0)
    recent: float = setting(
        0.5, "paper, Llama 3 (Qwen 2.5: 0.6): how much of the prompt is averaged; short ones want less", most=1
    )
    alpha: float = setting(0.1, "paper", most=1)
    beta: float = setting(20.0, "paper")
    threshold: float | None = setting(
        None, "τ: a cosine that `share` of pairs of texts pass; paper: 0.85, 0.55 for Qwen 2.5"
    )

    def keys(self, f: int) -> Directions:
        """A table without keys, for queries of width ``f``."""
        settings = {name: getattr(self, name) for name in ("recent", "alpha", "beta", "threshold")}
        return Directions.empty(f, **settings)

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        return key_statistics(lm, self.site(lm), self.keys(0), texts)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        return resolved.filled(threshold=quantile(state.tensors["apart"], 1 - self.share), lr=state.info["size"])

    @override
    def empty(self, lm: HFLM, state: State) -> HorenCodebook:
        d, f = weight_shape(lm, f"{self.site(lm)}.weight")
        values = Values(replace=self.replace, add=True, values=torch.empty(0, d))
        return HorenCodebook(self.site(lm), (), self.keys(f), values)

    @override
    def train(self, lm: HFLM, old: HorenCodebook, log: Sequence[EditRecord], state: State) -> HorenCodebook:
        scale = state.info["size"] if self.init == "cold" else None
        return train_values(lm, old, log, self.descent, self.seed, scale)
