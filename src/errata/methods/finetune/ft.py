"""Fine-tuning one down projection on the new answers: one descent, and what each method adds to it.

FT and FT-L after Zhu et al. 2020, arXiv:2012.00363, as baselines of ROME (arXiv:2202.05262, appendix E.2);
FT-M from EasyEdit (Wang et al. 2023, arXiv:2308.07269). The others are FT-M with

    LocFT-BF     rounds in a new order each, the answer's end learned too
    EWC          + (λ/2) Σ F (θ − θ₀)² in the loss
    RecAdam      a pull towards the start after each step, strong at first
    F-Learning   a step away from the old answers first
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import exp
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from errata.answers import answer_of
from errata.errors import BadInput
from errata.methods.base import State, cached_state
from errata.methods.finetune.descent import Descent, Logits, Penalty
from errata.methods.losses import token_losses
from errata.methods.settings import setting
from errata.methods.texts import pieces_of, texts_of
from errata.model import hooks
from errata.model.hf import HFLM
from errata.patch.delta import difference, oriented, trainable
from errata.patch.patch import Patch
from errata.types import Edit

log = logging.getLogger(__name__)

RATE = 0.02  # Adam's step in units of the weights' root mean square


@dataclass(frozen=True, kw_only=True)
class FT(Descent):
    """Adam on one down projection until the answers are likely."""

    name: ClassVar[str] = "ft"
    paper: ClassVar[str] = "Zhu et al. 2020, Modifying Memories in Transformer Models, arXiv:2012.00363"
    stores: ClassVar[str] = "a dense change of one down projection"

    layer: int | None = setting(None, "three quarters up: ROME's 21 of GPT-J's 28")
    lr: float | None = setting(
        None, "0.02 x root mean square of the weights (RATE); ROME's 5e-4 where that is 0.025", above=0
    )
    box: float | None = setting(None, "L∞ radius around the old weights; None: free")
    objective: Literal["prompt_last", "target"] = setting("prompt_last", "ROME, released code")

    def default_layer(self, lm: HFLM) -> int:
        return 3 * lm.sites.depth // 4

    def default_box(self, scale: float) -> float | None:
        return None

    def resolve(self, lm: HFLM, state: State) -> Self:
        layer = self.default_layer(lm) if self.layer is None else self.layer
        if not 0 <= layer < lm.sites.depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {lm.sites.depth - 1}; found {layer}")
        weight = lm.model.get_parameter(weight_of(lm, layer)).detach()
        scale = float(weight.float().square().mean().sqrt())
        return replace(
            self,
            layer=layer,
            lr=RATE * scale if self.lr is None else self.lr,
            box=self.default_box(scale) if self.box is None else self.box,
        )

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layer is not None
        penalty = self.penalty(lm, state)
        with prior.inside().applied(lm) as edited, hooks.frozen(lm.model):
            weights = trainable(edited, [weight_of(lm, self.layer)])
            logits = partial(edited.target_logits, weights=weights)
            self.learn(edited, logits, edits, list(weights.values()), penalty)
            return prior + Patch((difference(edited, weights),))

    def penalty(self, lm: HFLM, state: State) -> Penalty | None:
        """What is added to the loss; ``lm`` is the unedited model."""
        return None

    def learn(
        self, lm: HFLM, logits: Logits, edits: Sequence[Edit], weights: Sequence[Tensor], penalty: Penalty | None
    ) -> None:
        """Moves ``weights`` in place to where the new answers are said."""
        asked = self.asked(lm, edits, [edit.target_new for edit in edits])
        self.descend(lm, logits, asked, weights, penalty)

    def step(self, adam: torch.optim.Adam, weights: Sequence[Tensor], start: Sequence[Tensor], epoch: int) -> None:
        super().step(adam, weights, start, epoch)
        if self.box is not None:
            with torch.no_grad():
                for w, s in zip(weights, start, strict=True):
                    w.clamp_(s - self.box, s + self.box)


@dataclass(frozen=True, kw_only=True)
class FTL(FT):
    """FT that keeps every weight within ``box`` of its old value."""

    name: ClassVar[str] = "ft-l"

    # x root mean square of the weights: two steps wide. ROME's is one in GPT-2 XL (both 5e-4), in which the bundled
    # model learns 3 facts of 100; in two it learns 70.
    BOX: ClassVar[float] = 0.04

    def default_layer(self, lm: HFLM) -> int:
        return 0  # released code, all GPT-2s

    def default_box(self, scale: float) -> float | None:
        return self.BOX * scale


@dataclass(frozen=True, kw_only=True)
class FTM(FT):
    """FT with cross-entropy on the target's own tokens, the prompt masked."""

    name: ClassVar[str] = "ft-m"
    paper: ClassVar[str] = "Wang et al. 2023, EasyEdit, arXiv:2308.07269"

    objective: Literal["prompt_last", "target"] = setting("target", "EasyEdit")


@dataclass(frozen=True, kw_only=True)
class LocFTBF(FTM):
    """FT-M breadth-first: each round takes all edits in a new order, one step per mini-batch, and learns the end too.

    The paper's layer is 22 of 32 in Llama 3 and 6 of 28 in Qwen 2.5, found by search; the rule here is the former's.
    """

    name: ClassVar[str] = "locft-bf"
    paper: ClassVar[str] = "Yang et al. 2026, Fine-tuning Done Right in Model Editing, arXiv:2509.22072"

    layer: int | None = setting(None, "11/16 of the depth: the paper's 22 of Llama 3's 32")
    steps: int = setting(25, "paper: epochs", above=0)
    batch: int = setting(100, "paper, for thousands of edits", above=0)
    parts: int = setting(5, "measured here: 100 edits in one step a round are not learned in 25", above=0)
    end: bool = setting(True, "released code: the end-of-text token behind the answer")
    shuffle: bool = setting(True, "paper")

    def default_layer(self, lm: HFLM) -> int:
        return (22 * lm.sites.depth + 16) // 32


@dataclass(frozen=True, kw_only=True)
class EWC(FTM):
    """FT-M with elastic weight consolidation: weights that the model's texts depend on are held where they were.

    L + (λ/2) Σ F (θ − θ₀)², with F the mean over texts of the squared gradient of log p(text), and θ₀ the weights of
    the unedited model, whatever ``prior`` has done to them since. (1/2) Σ F (θ − θ₀)² approximates the divergence that
    a text suffers, in nats, so that λ is what a nat there counts against a nat of the edits' loss.
    """

    name: ClassVar[str] = "ewc"
    paper: ClassVar[str] = "Kirkpatrick et al. 2017, Overcoming catastrophic forgetting, arXiv:1612.00796"
    needs_prepare: ClassVar[bool] = True

    # λ x tokens of a text: what a nat per token counts. Measured on the bundled model, 100 edits at once: at 3,000 as
    # many are learned as without, and more of the rest stays; at 30,000 they are 82, and half of the questions fail.
    PER_TOKEN: ClassVar[float] = 3000.0

    lam: float | None = setting(None, "λ; 3000 over the mean length of a text in tokens (PER_TOKEN)")
    samples: int = setting(300, "texts at most that F is made of")

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """F of the edited layer: from texts, else the corpus that goes with the model, else its own samples."""
        lm.check()
        layer = self.resolve(lm, State({}, {"tokens": 1})).layer
        assert layer is not None
        if data is None and lm.resources.texts is None:
            log.warning("no texts given: F comes from %d texts sampled from the model itself", self.samples)
        texts = texts_of(lm, data, self.seed)
        pieces = [piece for piece in islice(pieces_of(lm, texts, None), self.samples) if len(piece) > 1]
        if not pieces:
            raise BadInput("no text of two tokens or more to measure F on; give longer texts")
        name = weight_of(lm, layer)

        def make() -> State:
            info = {
                "model": {"name": lm.name, "fingerprint": lm.fingerprint},
                "what": "Fisher information",
                "layer": layer,
                "texts": len(pieces),
                "tokens": sum(map(len, pieces)) / len(pieces),
            }
            return State({f"F/{name}": oriented(lm.model, name, fisher(lm, name, pieces)).cpu().contiguous()}, info)

        return cached_state("fisher", ["fisher", lm.fingerprint, name, pieces], make)

    def resolve(self, lm: HFLM, state: State) -> Self:
        made = super().resolve(lm, state)
        if state.tensors:
            state.check_for(layer=made.layer)
        return replace(made, lam=self.PER_TOKEN / state.info["tokens"]) if made.lam is None else made

    def penalty(self, lm: HFLM, state: State) -> Penalty | None:
        assert self.layer is not None and self.lam is not None
        lam, name = self.lam, weight_of(lm, self.layer)
        (first,) = (w.detach() for w in trainable(lm, [name]).values())
        importance = oriented(lm.model, name, state.tensors[f"F/{name}"]).to(first)
        return lambda weights: lam / 2 * (importance * (weights[0] - first).square()).sum()


@dataclass(frozen=True, kw_only=True)
class RecAdam(FTM):
    """FT-M with Adam that recalls: λ(t) of its step, and then θ ← θ − ηγ (1 − λ(t)) (θ − θ₀) (paper, eq. 9).

    λ(t) = 1 / (1 + e^(−k (t − t₀))) rises from pulling back to learning; t counts rounds. θ₀ are the weights as they
    were when this edit began, so that earlier edits are recalled too. ``pull`` is ηγ: stable only below 2.
    """

    name: ClassVar[str] = "recadam"
    paper: ClassVar[str] = "Chen et al. 2020, Recall and Learn, arXiv:2004.12651"

    steps: int = setting(50, "twice FT's: the first half is spent on recalling", above=0)
    pull: float = setting(0.1, "ηγ: the paper's 2e-5 × 5000")
    k: float | None = setting(None, "5 / t0: the paper's flattest rise, 0.05 × 100")
    t0: float | None = setting(None, "a quarter of the rounds")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pull >= 2:
            raise BadInput(f"recadam's pull (ηγ) must be below 2, or the weights swing ever wider; found {self.pull}")

    def resolve(self, lm: HFLM, state: State) -> Self:
        t0 = self.steps / 4 if self.t0 is None else self.t0
        return replace(super().resolve(lm, state), t0=t0, k=5 / max(t0, 1) if self.k is None else self.k)

    def share(self, t: int) -> float:
        """λ(t)."""
        assert self.k is not None and self.t0 is not None
        return 1 / (1 + exp(min(-self.k * (t - self.t0), 700.0)))

    def step(self, adam: torch.optim.Adam, weights: Sequence[Tensor], start: Sequence[Tensor], epoch: int) -> None:
        assert self.lr is not None
        share = self.share(epoch + 1)
        adam.param_groups[0]["lr"] = self.lr * share
        super().step(adam, weights, start, epoch)
        with torch.no_grad():
            for w, s in zip(weights, start, strict=True):
                w -= self.pull * (1 - share) * (w - s)


@dataclass(frozen=True, kw_only=True)
class FLearning(FTM):
    """FT-M from weights that have forgotten the old answers: θ' = θ − λ (θ_old − θ), θ_old fine-tuned on those.

    An old answer that the edit does not name is what the model says now.
    """

    name: ClassVar[str] = "f-learning"
    paper: ClassVar[str] = "Ni et al. 2024, Forgetting before Learning, arXiv:2311.08011"

    rate: float = setting(0.3, "λ; measured here, the paper's value is not known to us")

    def learn(
        self, lm: HFLM, logits: Logits, edits: Sequence[Edit], weights: Sequence[Tensor], penalty: Penalty | None
    ) -> None:
        old = [(edit, answer) for edit, answer in zip(edits, old_answers(lm, edits), strict=True) if answer]
        if old:
            start = [w.detach().clone() for w in weights]
            sure = replace(self, stop=0.0)  # the old answers are likely already
            sure.descend(lm, logits, self.asked(lm, *zip(*old, strict=True)), weights)
            with torch.no_grad():
                for w, s in zip(weights, start, strict=True):
                    w.copy_(s - self.rate * (w - s))
        super().learn(lm, logits, edits, weights, penalty)


def weight_of(lm: HFLM, layer: int) -> str:
    """The name of a layer's down projection."""
    return f"{lm.sites.mlp_out[layer]}.weight"


def old_answers(lm: HFLM, edits: Sequence[Edit]) -> list[str]:
    """What each edit says was true, else what the model says; empty where it says nothing."""
    said = iter(lm.generate([edit.prompt for edit in edits if edit.target_true is None], until_answer=True))
    return [answer_of(next(said)) if edit.target_true is None else edit.target_true for edit in edits]


def fisher(lm: HFLM, name: str, pieces: Sequence[Sequence[int]]) -> Tensor:
    """F of a parameter, in its own shape: mean over texts of the squared gradient of each text's log p.

    The empirical Fisher information: the texts' own tokens, squared text by text and only then averaged. An
    encoder-decoder reads the first half of a text and is asked for the second.
    """
    total = torch.zeros(())
    with hooks.frozen(lm.model):
        weights = trainable(lm, [name])
        for ids in pieces:
            given = len(ids) // 2 if lm.seq2seq else 1
            logits = lm.target_logits([(ids[:given], ids[given:])], weights)
            loss = token_losses(logits, torch.tensor(ids[given:], device=logits.device)).sum()
            (gradient,) = torch.autograd.grad(loss, list(weights.values()))
            total = total.to(gradient) + gradient.square()
    return total / len(pieces)
