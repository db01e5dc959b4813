"""Fine-tuning one down projection on the new answers, free, in a small box, or on the target alone.

FT and FT-L after Zhu et al. 2020, arXiv:2012.00363, as baselines of ROME (arXiv:2202.05262, appendix E.2);
FT-M from EasyEdit (Wang et al. 2023, arXiv:2308.07269).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.lm import HFLM
from errata.methods.base import Method, State
from errata.patch import Patch, difference, trainable
from errata.types import Edit

RATE = 0.02  # Adam's step in units of the weights' root mean square


@dataclass(frozen=True, kw_only=True)
class FT(Method):
    """Adam on one down projection until the answers are likely.

    ``objective``: ``prompt_last`` reads every target token at the prompt's last position, as ROME's released code
    does; ``target`` feeds the target and reads each token where it belongs.
    """

    name: ClassVar[str] = "ft"
    family: ClassVar[str] = "fine-tuning"
    paper: ClassVar[str] = "Zhu et al. 2020, Modifying Memories in Transformer Models, arXiv:2012.00363"
    stores: ClassVar[str] = "a dense change of one down projection"

    layer: int | None = None  # three quarters up: ROME's 21 of GPT-J's 28
    steps: int = 25  # ROME, appendix E.2
    lr: float | None = None  # RATE x root mean square of the weights
    stop: float = 1e-2  # released code: a batch below it makes no step
    batch: int = 64  # released code
    box: float | None = None  # L∞ radius around the old weights; None: free
    objective: Literal["prompt_last", "target"] = "prompt_last"

    def default_layer(self, lm: HFLM) -> int:
        return 3 * lm.sites.depth // 4

    def default_box(self, scale: float) -> float | None:
        return None

    def resolve(self, lm: HFLM, state: State) -> Self:
        layer = self.default_layer(lm) if self.layer is None else self.layer
        if not 0 <= layer < lm.sites.depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {lm.sites.depth - 1}; found {layer}")
        weight = lm.model.get_parameter(f"{lm.sites.mlp_out[layer]}.weight").detach()
        scale = float(weight.float().square().mean().sqrt())
        return replace(
            self,
            layer=layer,
            lr=RATE * scale if self.lr is None else self.lr,
            box=self.default_box(scale) if self.box is None else self.box,
        )

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layer is not None and self.lr is not None
        asked = [(lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new)) for e in edits]
        with prior.inside().applied(lm) as edited:
            weights = trainable(edited, [f"{lm.sites.mlp_out[self.layer]}.weight"])
            start = {name: w.detach().clone() for name, w in weights.items()}
            adam = torch.optim.Adam(weights.values(), lr=self.lr)
            for _ in range(self.steps):
                moved = False
                for batch in _chunks(asked, self.batch):
                    loss = self.loss(edited, batch, weights)
                    if loss.item() < self.stop:
                        continue
                    moved = True
                    for w, g in zip(weights.values(), torch.autograd.grad(loss, list(weights.values())), strict=True):
                        w.grad = g
                    adam.step()
                    self._keep_in_box(weights, start)
                if not moved:
                    break
            return prior + Patch((difference(edited, weights),))

    def loss(self, lm: HFLM, asked: Sequence[tuple[list[int], list[int]]], weights: dict[str, Tensor]) -> Tensor:
        """Mean over facts of the mean −log P of their target tokens."""
        fed = [(p, t if self.objective == "target" else t[:1]) for p, t in asked]
        logp = lm.target_logits(fed, weights).float().log_softmax(-1)
        losses: list[Tensor] = []
        at = 0
        for (_, read), (_, target) in zip(fed, asked, strict=True):
            its = logp[at : at + len(read)].expand(len(target), -1)  # prompt_last: one row for all
            losses.append(-its.gather(1, torch.tensor(target, device=its.device)[:, None]).mean())
            at += len(read)
        return torch.stack(losses).mean()

    def _keep_in_box(self, weights: dict[str, Tensor], start: dict[str, Tensor]) -> None:
        if self.box is not None:
            with torch.no_grad():
                for name, w in weights.items():
                    w.clamp_(start[name] - self.box, start[name] + self.box)


@dataclass(frozen=True, kw_only=True)
class FTL(FT):
    """FT that keeps every weight within ``box`` of its old value."""

    name: ClassVar[str] = "ft-l"

    BOX: ClassVar[float] = 0.02  # x root mean square of the weights

    def default_layer(self, lm: HFLM) -> int:
        return 0  # released code, all GPT-2s

    def default_box(self, scale: float) -> float | None:
        return self.BOX * scale


@dataclass(frozen=True, kw_only=True)
class FTM(FT):
    """FT with cross-entropy on the target's own tokens, the prompt masked."""

    name: ClassVar[str] = "ft-m"
    paper: ClassVar[str] = "Wang et al. 2023, EasyEdit, arXiv:2308.07269"

    objective: Literal["prompt_last", "target"] = "target"


def _chunks(asked: list[tuple[list[int], list[int]]], size: int) -> Iterator[list[tuple[list[int], list[int]]]]:
    for start in range(0, len(asked), size):
        yield asked[start : start + size]
