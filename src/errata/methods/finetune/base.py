"""Fine-tuning of one down projection: what FT and the methods that add a term to it have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.finetune.above import LogitsAbove
from errata.methods.finetune.descent import Descent, Example, Logits, Penalty
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.projection import Projection
from errata.model.size import Size, Step, Work
from errata.model.weights import plain
from errata.patch.delta import difference, trainable
from errata.patch.patch import Patch
from errata.types import Edit

RATE = 0.02  # Adam's step in units of the weights' root mean square


@dataclass(frozen=True, kw_only=True)
class FineTuning(Descent):
    """Adam on one down projection until the answers are likely."""

    stores: ClassVar[str] = "a dense change of one down projection"

    layer: int | None = setting(None, "three quarters up: ROME's 21 of GPT-J's 28", key="layers")
    lr: float | None = setting(
        None, "0.02 x root mean square of the weights (RATE); ROME's 5e-4 where that is 0.025", above=0
    )
    box: float | None = setting(None, "L∞ radius around the old weights; None: free", key="norm_constraint")

    def default_layer(self, lm: HFLM) -> int:
        """The layer that is edited where the settings name none."""
        return 3 * lm.sites.depth // 4

    def default_box(self, scale: float) -> float | None:
        """The box where the settings give none; ``scale`` is the root mean square of the weights."""
        return None

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        layer = self._layer(lm)
        params = [plain(lm.model, name, "cannot be trained").detach() for name in weights_of(lm, layer)]
        squares = sum(float(at_least_float32(p).square().sum()) for p in params)
        scale = (squares / sum(p.numel() for p in params)) ** 0.5
        return replace(
            self,
            layer=layer,
            lr=RATE * scale if self.lr is None else self.lr,
            box=self.default_box(scale) if self.box is None else self.box,
        )

    @override
    def cost(self, size: Size, work: Work) -> list[Step]:
        d, f = size.down(self._layer(size.lm))
        forward = work.prompt * size.whole(work.prompt) + work.target * size.head_flop
        above = forward - work.prompt * size.blocks(0, self._layer(size.lm) + 1, work.prompt)
        active = sum(down.active for down in size.downs(self._layer(size.lm)))
        # what is below runs twice: up to the block, and within it; then the new answers are asked
        flop = work.edits * (2.0 * forward + self.steps * (2.0 * above + 4.0 * active * work.prompt))
        activations = size.kept * (size.depth - self._layer(size.lm)) * max(size.lm.budget, work.prompt)
        trained = 20.0 * d * f  # the copy, its start, its gradient, Adam's two moments
        note = "every round, without what a penalty adds"
        edit = Step("descent", "edit", {"model": flop}, device=trained + activations, host=4.0 * d * f, note=note)
        storage = float(size.itemsize * d * f)
        return [edit, Step("put on", "apply", {}, 2 * storage, device=storage, host=4.0 * d * f, disk=4.0 * d * f)]

    def _layer(self, lm: HFLM) -> int:
        """The layer that is edited. Raises :class:`BadInput` for one that the model does not have."""
        layer = self.default_layer(lm) if self.layer is None else self.layer
        if not 0 <= layer < lm.sites.depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {lm.sites.depth - 1}; found {layer}")
        return layer

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layer is not None
        penalty = self.penalty(lm, state)
        with prior.without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            weights = trainable(edited, weights_of(lm, self.layer))
            logits = LogitsAbove(edited, self.layer, weights)
            self.learn(edited, logits, edits, list(weights.values()), penalty)
            return prior + Patch((difference(edited, weights),))

    def penalty(self, lm: HFLM, state: State) -> Penalty | None:
        """What is added to the loss; ``lm`` is the unedited model."""
        return None

    def learn(
        self, lm: HFLM, logits: Logits, edits: Sequence[Edit], weights: Sequence[Tensor], penalty: Penalty | None
    ) -> None:
        """Moves ``weights`` in place until the model gives the new answers; ``lm`` has the prior patch in force."""
        examples = self.examples(lm, edits, [edit.target_new for edit in edits])
        self.report(edits, self.descend(lm, logits, examples, weights, penalty))

    @override
    def descend(
        self,
        lm: HFLM,
        logits: Logits,
        examples: Sequence[Example],
        weights: Sequence[Tensor],
        penalty: Penalty | None = None,
    ) -> tuple[float, bool]:
        if isinstance(logits, LogitsAbove):
            logits.hold(self.asked(examples))
        return super().descend(lm, logits, examples, weights, penalty)

    @override
    def step(self, adam: torch.optim.Adam, weights: Sequence[Tensor], start: Sequence[Tensor], epoch: int) -> None:
        super().step(adam, weights, start, epoch)
        if self.box is not None:
            with torch.no_grad():
                for w, w0 in zip(weights, start, strict=True):
                    w.clamp_(w0 - self.box, w0 + self.box)


def weights_of(lm: HFLM, layer: int) -> list[str]:
    """The names of a layer's down projection's parameters: one, or in a mixture of experts their stack and others."""
    return Projection.of(lm.sites, layer).parameters(lm.model)
