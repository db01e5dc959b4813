"""Gradient descent on the new answers: mini-batches of (prompt ids, target ids), Adam, a loss for each target token.

What is trained (stand-ins for weights, the factors of an adapter) and how it is run is handed over as ``weights`` and
``logits``; what a method adds to the descent it says in ``step`` and in a penalty.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import Method
from errata.methods.losses import token_losses
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.passes import budgeted
from errata.types import Edit

Asked = tuple[list[int], list[int]]  # ids of a prompt, and of what shall follow
Logits = Callable[[Sequence[Asked]], Tensor]  # as HFLM.target_logits: (k, V), a row for each token that shall follow
Penalty = Callable[[Sequence[Tensor]], Tensor]  # of the weights as they are now


@dataclass(frozen=True, kw_only=True)
class Descent(Method):
    """Adam until the answers are likely, or for ``steps`` rounds through the edits.

    ``objective``: ``prompt_last`` reads every target token at the prompt's last position, as ROME's released code
    does; ``target`` feeds the target and reads each token where it belongs. ``smooth``, ``floor`` and ``top_n`` are
    OVERTONE's (arXiv:2502.00602): how much of the target is the new token and not what the model says anyhow, the
    divergence below which a token is left alone, and how many standard deviations of its logits count as said.
    """

    family: ClassVar[str] = "fine-tuning"

    steps: int = setting(25, "ROME, appendix E.2", above=0)
    lr: float | None = setting(None, "relative to the weights", above=0)
    stop: float = setting(1e-2, "ROME, released code: a batch below it makes no step, a round below it is the last")
    batch: int = setting(64, "ROME, released code: edits of a step", above=0)
    parts: int = setting(
        1, "steps of a round at least, with as many edits: smaller batches where the edits are few", above=0
    )
    objective: Literal["prompt_last", "target"] = setting("target")
    end: bool = setting(False, "whether the answer's end is learned too")
    shuffle: bool = setting(False, "whether each round has an order of its own")
    smooth: float = setting(1.0, "OVERTONE's λ; 1: cross-entropy")
    floor: float = setting(0.0, "OVERTONE's ε")
    top_n: float = setting(1.0, "OVERTONE's n; value of top-nσ, arXiv:2411.07641")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smooth > 1:
            raise BadInput(f"{self.name}'s smooth is a share, from 0 to 1; found {self.smooth}")

    def asked(self, lm: HFLM, edits: Sequence[Edit], answers: Sequence[str]) -> list[Asked]:
        """Each prompt with the answer that shall follow."""
        end = [lm.tokens.end] if self.end and lm.tokens.end is not None else []
        return [
            (lm.tokens.prompt(edit.prompt), lm.tokens.target(edit.prompt, answer) + end)
            for edit, answer in zip(edits, answers, strict=True)
        ]

    def descend(
        self,
        lm: HFLM,
        logits: Logits,
        asked: Sequence[Asked],
        weights: Sequence[Tensor],
        penalty: Penalty | None = None,
    ) -> None:
        """Moves ``weights`` in place until the answers are likely, or for ``steps`` rounds."""
        assert self.lr is not None
        start = [w.detach().clone() for w in weights]
        adam = torch.optim.Adam(weights, lr=self.lr)
        enough = max(self.stop, self.floor * 1.0001)  # at the floor there is no gradient
        for epoch in range(self.steps):
            losses: list[float] = []
            for batch in self._batches(asked):
                loss, gradients = self._gradients(lm, logits, batch, weights)
                losses += [loss] * len(batch)
                if loss < enough:
                    continue
                if penalty is not None:
                    pull = torch.autograd.grad(penalty(weights), weights)
                    gradients = [g + p for g, p in zip(gradients, pull, strict=True)]
                for w, g in zip(weights, gradients, strict=True):
                    w.grad = g
                self.step(adam, weights, start, epoch)
            if sum(losses) / len(losses) < enough:
                break

    def step(self, adam: torch.optim.Adam, weights: Sequence[Tensor], start: Sequence[Tensor], epoch: int) -> None:
        """One step on the gradients that the weights hold; ``start`` is where the descent began."""
        adam.step()

    def losses(self, logits: Logits, asked: Sequence[Asked]) -> Tensor:
        """(n,): for each fact, the mean over its target tokens."""
        counts = [len(target) for _, target in asked]
        targets = torch.tensor([token for _, target in asked for token in target])
        if self.objective == "target":
            its = logits(asked)  # (k, V)
        else:
            its = logits([(prompt, target[:1]) for prompt, target in asked])  # (n, V)
            its = its.repeat_interleave(torch.tensor(counts, device=its.device), 0)
        each = token_losses(its, targets.to(its.device), self.smooth, self.floor, self.top_n)
        return torch.stack([one.mean() for one in each.split(counts)])

    def _gradients(
        self, lm: HFLM, logits: Logits, batch: Sequence[Asked], weights: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """The mean loss of a batch and its gradients, gathered in passes that keep the model's token budget."""
        total, gradients = 0.0, [torch.zeros_like(w) for w in weights]
        for part in budgeted([len(prompt) + len(target) for prompt, target in batch], lm.budget):
            loss = self.losses(logits, [batch[i] for i in part]).sum() / len(batch)
            for g, its in zip(gradients, torch.autograd.grad(loss, weights), strict=True):
                g += its
            total += loss.item()
        return total, gradients

    def _batches(self, asked: Sequence[Asked]) -> Iterator[list[Asked]]:
        order = torch.randperm(len(asked)).tolist() if self.shuffle else range(len(asked))
        size = max(1, min(self.batch, len(asked) // self.parts))
        for at in range(0, len(asked), size):
            yield [asked[i] for i in order[at : at + size]]
