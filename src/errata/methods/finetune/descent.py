"""Gradient descent on the new answers: mini-batches of (prompt ids, target ids), Adam, a loss for each target token.

What is trained (stand-ins for weights, the factors of an adapter) and how it is run is passed in as ``weights`` and
``logits``; a method adds to the descent by overriding ``step`` and by a penalty.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import Method
from errata.methods.losses import means, token_losses
from errata.methods.outcomes import report
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.passes import budgeted
from errata.types import Edit

Example = tuple[list[int], list[int]]  # prompt ids, target ids
Logits = Callable[[Sequence[Example]], Tensor]  # as HFLM.target_logits: (k, V), a row for each target token
Penalty = Callable[[Sequence[Tensor]], Tensor]  # of the weights as they are now: added to the loss


@dataclass(frozen=True, kw_only=True)
class Descent(Method):
    """Adam until the answers are likely, or for ``steps`` rounds through the edits.

    ``objective``: ``prompt_last`` reads every target token at the prompt's last position, as ROME's released code
    does; ``target`` feeds the target and reads each token where it belongs. ``smooth``, ``floor`` and ``top_n`` are
    OVERTONE's (arXiv:2502.00602): the share of the new token in the target distribution, the rest being what the model
    predicts; the divergence below which a token has no gradient; and how many standard deviations below its highest
    logit a model's prediction is cut off.
    """

    family: ClassVar[str] = "fine-tuning"

    steps: int = setting(25, "ROME, appendix E.2", key="num_steps", above=0)
    lr: float | None = setting(None, "relative to the weights", above=0)
    stop: float = setting(1e-2, "ROME, released code: a batch below it makes no step, a round below it is the last")
    batch: int = setting(64, "ROME, released code: edits of a step", key="batch_size", above=0)
    min_batches: int = setting(
        1, "batches of a round, where there are as many edits: smaller ones where the edits are few", above=0
    )
    objective: Literal["prompt_last", "target"] = setting("target", key="objective_optimization")
    end: bool = setting(False, "whether the answer's end is learned too")
    shuffle: bool = setting(False, "whether each round has an order of its own")
    smooth: float = setting(1.0, "OVERTONE's λ; 1: cross-entropy")
    floor: float = setting(0.0, "OVERTONE's ε")
    top_n: float = setting(1.0, "OVERTONE's n; value of top-nσ, arXiv:2411.07641")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smooth > 1:
            raise BadInput(f"{self.name}'s smooth is a share, from 0 to 1; found {self.smooth}")

    def examples(self, lm: HFLM, edits: Sequence[Edit], answers: Sequence[str]) -> list[Example]:
        """Each edit's prompt with the answer to learn."""
        tokens = lm.tokens
        pairs = zip(edits, answers, strict=True)
        found = [(tokens.prompt(edit.prompt), tokens.target(edit.prompt, answer)) for edit, answer in pairs]
        return [(prompt, tokens.ended(prompt, ids) if self.end else ids) for prompt, ids in found]

    def descend(
        self,
        lm: HFLM,
        logits: Logits,
        examples: Sequence[Example],
        weights: Sequence[Tensor],
        penalty: Penalty | None = None,
    ) -> tuple[float, bool]:
        """Moves ``weights`` in place until the answers are likely, or for ``steps`` rounds.

        Returns the mean loss of the last round, each batch's as it was before its step, and whether that is low enough.
        """
        assert self.lr is not None
        start = [w.detach().clone() for w in weights]
        # one pass over the weights in the place of ten
        adam = torch.optim.Adam(weights, lr=self.lr, fused=all(w.device.type == "cpu" for w in weights))
        stop = max(self.stop, self.floor * 1.0001)  # at the floor there is no gradient
        mean = inf
        for epoch in range(self.steps):
            losses: list[float] = []
            for batch in self._batches(examples):
                loss, gradients = self._gradients(lm, logits, batch, weights)
                losses += [loss] * len(batch)
                if loss < stop:
                    continue
                if penalty is not None:
                    pull = torch.autograd.grad(penalty(weights), weights)
                    gradients = [g + p for g, p in zip(gradients, pull, strict=True)]
                for w, g in zip(weights, gradients, strict=True):
                    w.grad = g
                self.step(adam, weights, start, epoch)
            mean = sum(losses) / len(losses)
            if mean < stop:
                break
        return mean, mean < stop

    def report(self, edits: Sequence[Edit], ended: tuple[float, bool]) -> None:
        """Notes of all ``edits`` how the descent on them together ended."""
        loss, met = ended
        report([edit.id for edit in edits], [loss] * len(edits), [met] * len(edits))

    def step(self, adam: torch.optim.Adam, weights: Sequence[Tensor], start: Sequence[Tensor], epoch: int) -> None:
        """One step on the gradients that the weights hold; ``start`` is where the descent began."""
        adam.step()

    def losses(self, logits: Logits, examples: Sequence[Example]) -> Tensor:
        """(n,): for each fact, the mean over its target tokens."""
        counts = [len(target) for _, target in examples]
        targets = torch.tensor([token for _, target in examples for token in target])
        predicted = logits(self.asked(examples))  # (k, V), or (n, V) at the prompts' ends
        if self.objective == "prompt_last":
            predicted = predicted.repeat_interleave(torch.tensor(counts, device=predicted.device), 0)
        by_token = token_losses(predicted, targets.to(predicted.device), self.smooth, self.floor, self.top_n)
        return means(by_token, counts)

    def asked(self, examples: Sequence[Example]) -> Sequence[Example]:
        """What the logits of examples are asked for."""
        last = self.objective == "prompt_last"
        return [(prompt, target[:1]) for prompt, target in examples] if last else examples

    def _gradients(
        self, lm: HFLM, logits: Logits, batch: Sequence[Example], weights: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """The mean loss of a batch and its gradients, gathered in passes that keep the model's token budget."""
        total, gradients = 0.0, list[Tensor]()
        for indices in budgeted([len(prompt) + len(target) for prompt, target in batch], lm.budget):
            loss = self.losses(logits, [batch[i] for i in indices]).sum() / len(batch)
            more = torch.autograd.grad(loss, weights)
            gradients = [g + m for g, m in zip(gradients, more, strict=True)] if gradients else list(more)
            total += loss.item()
        return total, gradients

    def _batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        order = torch.randperm(len(examples)).tolist() if self.shuffle else range(len(examples))
        size = max(1, min(self.batch, len(examples) // self.min_batches))
        for start in range(0, len(examples), size):
            yield [examples[i] for i in order[start : start + size]]
