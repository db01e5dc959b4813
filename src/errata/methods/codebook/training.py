"""How the payloads of a codebook are trained: queries are read, and each entry's tensors descend by their own loss."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.methods.codebook.keys import KeyTable
from errata.methods.memory.log import EditRecord
from errata.methods.memory.reading import observe, row_losses
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted

Group = Sequence[EditRecord]  # edits that share a payload


def read_queries(lm: HFLM, site: str, keys: KeyTable, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Queries of prompts (ids), and the site's outputs at their last tokens. (n, f) and (n, d), on the CPU"""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(batch: list[int], call: Call, x: Tensor, y: Tensor) -> None:
        assert call.prompt_end is not None
        queries = keys.query(call, at_least_float32(x if keys.side == "in" else y)).cpu()
        outputs = at_least_float32(y[torch.arange(len(y), device=y.device), call.prompt_end.to(y.device)]).cpu()
        found.update(zip(batch, zip(queries, outputs, strict=True), strict=True))

    rows = [(prompt, [lm.tokens.fill]) for prompt in prompts]
    observe(lm, site, rows, budgeted([len(prompt) for prompt in prompts], lm.budget), keep)
    queries, outputs = zip(*(found[i] for i in range(len(prompts))), strict=True)
    return torch.stack(queries), torch.stack(outputs)


def group_losses(lm: HFLM, groups: Sequence[Group]) -> Tensor:
    """Mean loss of a target token for each group of edits, in one pass with a row for each edit. (k,)"""
    rows = [(record.prompt_ids, record.target_ids) for group in groups for record in group]
    of = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    logits = lm.target_logits(rows)
    losses = row_losses(logits, rows).cpu()
    return torch.zeros(len(groups), dtype=losses.dtype).scatter_reduce(0, of, losses, "mean", include_self=False)


def uniform_noise(seed: int, record: EditRecord, like: Tensor) -> Tensor:
    """Uniform in [0, 1), in the shape and type of another tensor; the same for an edit whatever else is edited."""
    digest = hashlib.sha256(f"{seed} {record.id}".encode()).hexdigest()
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(int(digest[:12], 16)), dtype=like.dtype)


@dataclass(frozen=True)
class Descent:
    """Adam on many groups of edits at once; a group whose loss is below ``stop`` stays where it is."""

    steps: int
    lr: float
    stop: float
    halve: int = 0  # steps after which the rate is halved, again and again; 0: never

    def run(
        self,
        lm: HFLM,
        groups: Sequence[Group],
        leaves: Sequence[Sequence[Tensor]],
        losses: Callable[[list[int]], Tensor],
    ) -> None:
        """Moves the ``leaves`` of each group in place. ``losses`` gives the loss of each of some groups (k,)."""
        lengths = [sum(len(record.prompt_ids) + len(record.target_ids) for record in group) for group in groups]
        for batch in budgeted(lengths, lm.budget):
            self._descend(batch, leaves, losses)

    def _descend(
        self, running: list[int], leaves: Sequence[Sequence[Tensor]], losses: Callable[[list[int]], Tensor]
    ) -> None:
        adam = torch.optim.Adam([leaf for i in running for leaf in leaves[i]], lr=self.lr)
        for step in range(1, self.steps + 1):
            loss = losses(running)  # (k,)
            gradients = iter(torch.autograd.grad(loss.sum(), [leaf for i in running for leaf in leaves[i]]))
            unfinished = (loss >= self.stop).tolist()
            for i, going in zip(running, unfinished, strict=True):
                for leaf in leaves[i]:
                    gradient = next(gradients)
                    leaf.grad = gradient if going else None  # a finished group stays where it is
            running = [i for i, going in zip(running, unfinished, strict=True) if going]
            if not running:
                break
            adam.step()
            if self.halve and step % self.halve == 0:
                for group in adam.param_groups:
                    group["lr"] /= 2
