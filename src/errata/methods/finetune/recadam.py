"""RecAdam: FT-M with a pull towards the old weights after each step, strong at first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.finetune.base import FineTuning
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM


@dataclass(frozen=True, kw_only=True)
class RecAdam(FineTuning):
    """FT-M with Adam that recalls: λ(t) of its step, and then θ ← θ − ηγ (1 − λ(t)) (θ − θ₀) (paper, eq. 9).

    λ(t) = 1 / (1 + e^(−k (t − t₀))) rises from pulling back to learning; t counts rounds. θ₀ are the weights as they
    were when this edit began, so that earlier edits are recalled too. ``pull`` is ηγ: stable only below 2.
    """

    name: ClassVar[str] = "recadam"
    paper: ClassVar[str] = "Chen et al. 2020, Recall and Learn, arXiv:2004.12651"

    steps: int = setting(50, "twice FT's: the first half is spent on recalling")
    pull: float = setting(0.1, "ηγ: the paper's 2e-5 × 5000")
    k: float | None = setting(None, "5 / t0: the paper's flattest rise, 0.05 × 100", key="recadam_anneal_k")
    t0: float | None = setting(None, "a quarter of the rounds", key="recadam_anneal_t0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pull >= 2:
            raise BadInput(f"recadam's pull (ηγ) must be below 2, or the weights swing ever wider; found {self.pull}")

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        t0 = self.steps / 4 if self.t0 is None else self.t0
        return replace(super().resolve(lm, state), t0=t0, k=5 / max(t0, 1) if self.k is None else self.k)

    def share(self, t: int) -> float:
        """λ(t)."""
        assert self.k is not None and self.t0 is not None
        return 1 / (1 + exp(min(-self.k * (t - self.t0), 700.0)))

    @override
    def step(self, adam: torch.optim.Adam, weights: Sequence[Tensor], start: Sequence[Tensor], epoch: int) -> None:
        assert self.lr is not None
        share = self.share(epoch + 1)
        adam.param_groups[0]["lr"] = self.lr * share
        super().step(adam, weights, start, epoch)
        with torch.no_grad():
            for w, w0 in zip(weights, start, strict=True):
                w -= self.pull * (1 - share) * (w - w0)
