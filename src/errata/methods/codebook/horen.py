"""HoReN: keys as directions, found by one step of a Hopfield network; an entry's value is added to the layer's output.

Fang et al. 2026, arXiv:2605.08143.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention
from typing_extensions import override

from errata.methods.base import Tags
from errata.methods.codebook.keys import SAME, KeyTable, agree
from errata.methods.codebook.values import ValueMethod, Values
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditLog
from errata.methods.memory.nearest import Seen
from errata.methods.settings import setting
from errata.model.lm import Call


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions(KeyTable):
    """Unit keys, compared by cosine. The query is the mean of the last tokens of the prompt, at length 1.

    A radius r is the length of a chord: a cosine above 1 − r²/2 is near enough, τ of the paper.
    """

    recent: float  # share of the prompt's tokens that are averaged, and at least the last
    alpha: float
    beta: float

    local: ClassVar[bool] = False

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
        """The nearest key after the step; a query that is a key is that key's own, wherever the step would lead."""
        seen = self.index.seen(q)
        entry = seen.nearest(torch.where(self.radii >= 0, SAME, -1.0))[0].to(q.device)
        stepping = [i for i in (entry < 0).nonzero()[:, 0].tolist() if self._may_reach(seen, i)]
        if stepping:
            entry[stepping] = self.index.seen(self._stepped(q[stepping])).nearest(self.radii)[0].to(q.device)
        return entry, entry >= 0

    def _may_reach(self, seen: Seen, i: int) -> bool:
        """Whether any key can be near enough to query i after the step: it turns it by asin α / (1 − α) at most."""
        turn = self.alpha / (1 - self.alpha) if self.alpha < 1 else 1.0
        if turn >= 1 or abs(float(seen.q[i].norm()) - 1) > SAME:
            return True
        angle = 2 * (self.radii.clamp(max=2) / 2).asin() + math.asin(turn)
        chord = 2 * (angle.clamp(max=math.pi) / 2).sin() + SAME
        return len(seen.within(torch.where(self.radii >= 0, chord, -1.0), i)[0]) > 0

    def _stepped(self, q: Tensor) -> Tensor:
        """After one damped step q ← norm((1 − α) q + α norm(Kᵀ softmax(β K q))), which attends to all keys. (b, f)"""
        keys, live = self.on("queries", q)[None, None], (self.radii >= 0).to(q.device)
        mask = live.expand(1, 1, len(q), -1)
        step = scaled_dot_product_attention(q[None, None], keys, keys, attn_mask=mask, scale=self.beta)[0, 0]
        return normalize((1 - self.alpha) * q + self.alpha * normalize(step, dim=-1), dim=-1)

    @override
    def measured(self, distance: Tensor) -> Tensor:
        """The chord that is left after a step towards the key alone."""
        near, a = 1 - distance.square() / 2, self.alpha
        stepped = ((1 - a) * near + a) / ((1 - a) ** 2 + a**2 + 2 * a * (1 - a) * near).sqrt()
        return (2 - 2 * stepped).clamp(min=0).sqrt()

    @override
    def joins(self, i: int, log: EditLog) -> int | None:
        """The entry that matches already, if it has the same answer."""
        entry = int(self.match(self.queries[i][None])[0])
        if entry < 0 or self.owner[entry] < 0 or not agree(log[entry], log[i]):
            return None
        self.owner[i] = entry
        return entry

    @override
    def _shaken(self, changed: Sequence[int], entries: Tensor, several: Tensor) -> Tensor:
        """All: the step goes by every key."""
        return several.nonzero()[:, 0]


class HorenCodebook(EditMemory[Directions, Values]):
    """Values of prompts whose direction is that of an edit's prompt."""

    kind: ClassVar[str] = "horen"
    by_rows: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class HoReN(ValueMethod):
    """A codebook of directions: adds to a layer's output for prompts that look like those that were edited."""

    name: ClassVar[str] = "horen"
    family: ClassVar[str] = "codebook"
    paper: ClassVar[str] = "Fang et al. 2026, HoReN, arXiv:2605.08143"
    stores: ClassVar[str] = "a unit key and a value for each edit; no weight changes"
    part: ClassVar[type[EditMemory[Any, Any]]] = HorenCodebook
    height: ClassVar[Fraction] = Fraction(7, 8)
    add: ClassVar[bool] = True
    tags: ClassVar[Tags] = Tags(quick={"steps": 30}, memory=True)

    layer: int | None = setting(None, "7/8 up, with a block above: 28 of 32 (paper: 29), 24 of 28 (24)")
    steps: int = setting(50, "paper", above=0)
    recent: float = setting(
        0.0,
        "share of the prompt that is averaged, at least its last token: it alone has read the subject of a short "
        "prompt; paper: 0.5 of questions, Llama 3 (Qwen 2.5: 0.6)",
        most=1,
    )
    alpha: float = setting(0.1, "paper", most=1)
    beta: float = setting(20.0, "paper")
    threshold: float | None = setting(
        None,
        "τ: the cosine half way to where other texts begin (all but `share` of them), for each edit; "
        "paper: 0.85, 0.55 for Qwen 2.5",
        most=1,
    )

    @override
    def keys(self, f: int) -> Directions:
        return Directions.empty(f, recent=self.recent, alpha=self.alpha, beta=self.beta)

    @override
    def fixed_reach(self) -> float | None:
        return None if self.threshold is None else (2 - 2 * self.threshold) ** 0.5
