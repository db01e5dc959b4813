"""F-Learning: FT-M from weights that have forgotten the old answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from errata.answers import answer_of
from errata.methods.finetune.base import FineTuning
from errata.methods.finetune.descent import Logits, Penalty
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class FLearning(FineTuning):
    """FT-M from weights that have forgotten the old answers: θ' = θ − λ (θ_old − θ), θ_old fine-tuned on those.

    The old answer of an edit without ``target_true`` is the model's own.
    """

    name: ClassVar[str] = "f-learning"
    paper: ClassVar[str] = "Ni et al. 2024, Forgetting before Learning, arXiv:2311.08011"

    rate: float = setting(0.3, "λ; measured here, the paper's value is not known to us")

    @override
    def learn(
        self, lm: HFLM, logits: Logits, edits: Sequence[Edit], weights: Sequence[Tensor], penalty: Penalty | None
    ) -> None:
        known = [(edit, answer) for edit, answer in zip(edits, old_answers(lm, edits), strict=True) if answer]
        if known:
            start = [w.detach().clone() for w in weights]
            without_stop = replace(self, stop=0.0)  # the old answers are likely already
            without_stop.descend(lm, logits, self.examples(lm, *zip(*known, strict=True)), weights)
            with torch.no_grad():
                for w, w0 in zip(weights, start, strict=True):
                    w.copy_(w0 - self.rate * (w - w0))
        super().learn(lm, logits, edits, weights, penalty)


def old_answers(lm: HFLM, edits: Sequence[Edit]) -> list[str]:
    """Each edit's ``target_true``, else the model's answer; empty where it gives none."""
    texts = iter(lm.generate([edit.prompt for edit in edits if edit.target_true is None], until_answer=True))
    return [answer_of(next(texts)) if edit.target_true is None else edit.target_true for edit in edits]
