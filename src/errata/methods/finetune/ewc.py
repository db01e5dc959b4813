"""EWC: FT-M with elastic weight consolidation."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict, override

from errata.errors import BadInput
from errata.methods.finetune.base import FineTuning, weights_of
from errata.methods.finetune.descent import Penalty
from errata.methods.losses import token_losses
from errata.methods.settings import setting
from errata.methods.state import State, cached_state
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.texts import pieces_of, texts_of
from errata.model.weights import oriented, shape_of
from errata.patch.delta import trainable
from errata.patch.schema import Floats

log = logging.getLogger(__name__)


class Fisher(TypedDict):
    """What EWC's state says of F, which is a tensor named after the weight that it is of."""

    layer: int
    tokens: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class EWC(FineTuning):
    """FT-M with a penalty on moving weights that the model's texts depend on.

    L + (λ/2) Σ F (θ − θ₀)², with F the mean over texts of the squared gradient of log p(text), and θ₀ the weights of
    the unedited model, whatever ``prior`` has done to them since. (1/2) Σ F (θ − θ₀)² approximates the divergence that
    a text suffers, in nats, so that λ is what a nat there counts against a nat of the edits' loss.
    """

    name: ClassVar[str] = "ewc"
    paper: ClassVar[str] = "Kirkpatrick et al. 2017, Overcoming catastrophic forgetting, arXiv:1612.00796"
    needs_prepare: ClassVar[bool] = True
    holds: ClassVar[type[Any] | None] = Fisher

    # λ x tokens of a text: what a nat per token counts. Measured on the bundled model, 100 edits at once: at 3,000 as
    # many are learned as without, and more of the rest stays; at 30,000 they are 82, and half of the questions fail.
    PER_TOKEN: ClassVar[float] = 3000.0

    lam: float | None = setting(None, "λ; 3000 over the mean length of a text in tokens (PER_TOKEN)")
    samples: int = setting(300, "texts at most that F is made of")

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """F of the edited layer: from texts, else the corpus that goes with the model, else its own samples."""
        layer = self.resolve(lm, State({}, {"tokens": 1})).layer
        assert layer is not None
        if data is None and lm.resources.texts is None:
            log.warning("no texts given: F comes from %d texts sampled from the model itself", self.samples)
        texts = texts_of(lm, data, self.seed)
        pieces = [piece for piece in islice(pieces_of(lm, texts, None), self.samples) if len(piece) > 1]
        if not pieces:
            raise BadInput("no text of two tokens or more to measure F on; give longer texts")
        names = weights_of(lm, layer)

        def make() -> State:
            info = {
                "model": {"name": lm.name, "fingerprint": lm.fingerprint},
                "what": "Fisher information",
                "layer": layer,
                "texts": len(pieces),
                "tokens": sum(map(len, pieces)) / len(pieces),
            }
            found = fisher(lm, names, pieces)
            return State({f"F/{n}": oriented(lm.model, n, f).cpu().contiguous() for n, f in found.items()}, info)

        content = ["fisher", lm.fingerprint, names, pieces]
        return cached_state("fisher", content, make, lambda state: [_fisher_of(lm, name, state) for name in names])

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        if state.tensors:
            state.check_for(layer=resolved.layer)
        return replace(resolved, lam=self.PER_TOKEN / state.info["tokens"]) if resolved.lam is None else resolved

    def penalty(self, lm: HFLM, state: State) -> Penalty | None:
        """(λ/2) Σ F (θ − θ₀)²."""
        assert self.layer is not None and self.lam is not None
        lam, start = self.lam, {name: w.detach() for name, w in trainable(lm, weights_of(lm, self.layer)).items()}
        f = [oriented(lm.model, name, _fisher_of(lm, name, state)).to(theta0) for name, theta0 in start.items()]

        def penalty(weights: Sequence[Tensor]) -> Tensor:
            pulls = [(fi * (w - w0).square()).sum() for fi, w, w0 in zip(f, weights, start.values(), strict=True)]
            return lam / 2 * torch.stack(pulls).sum()

        return penalty


def _fisher_of(lm: HFLM, name: str, state: State) -> Tensor:
    """F of a state, (out, in) or (E, out, in). Raises :class:`BadInput` where it has none of that size."""
    sizes = dict(zip(("in", "out", "experts"), reversed(shape_of(lm.model, name)), strict=False))
    return state.tensor(f"F/{name}", Floats(" ".join(reversed(sizes))), **sizes)


def fisher(lm: HFLM, names: Sequence[str], pieces: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """F of some parameters, in their own shapes: mean over texts of the squared gradient of each text's log p.

    The empirical Fisher information: the texts' own tokens, squared text by text and only then averaged. An
    encoder-decoder reads the first half of a text and predicts the second.
    """
    with hooks.frozen(lm.model):
        weights = trainable(lm, names)
        totals = {name: torch.zeros_like(w) for name, w in weights.items()}
        for ids in pieces:
            given = len(ids) // 2 if lm.seq2seq else 1
            logits = lm.target_logits([(ids[:given], ids[given:])], weights)
            loss = token_losses(logits, torch.tensor(ids[given:], device=logits.device)).sum()
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for total, gradient in zip(totals.values(), gradients, strict=True):
                total += gradient.square()
    return {name: total.detach() / len(pieces) for name, total in totals.items()}
