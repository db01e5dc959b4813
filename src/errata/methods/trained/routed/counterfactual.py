"""The counterfactual model: answers a query from an edit's text, in the base model's tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from errata.methods.trained.routed.reading import QUERY, ROLES, Batch, Row
from errata.methods.trained.routed.transformer import SmallTransformer
from errata.model.decoding import Choose, StopRule

TINY = 1e-12


class Counterfactual(nn.Module):
    """p(next token | edit, query) = c · p_copy + (1 − c) · p_vocabulary, over a small causal transformer.

    p_copy is an attention over the tokens of the edit (See et al. 2017, arXiv:1704.04368), so that it can say answers
    that no example has; p_vocabulary scores the tokens' fixed vectors. The paper takes a pretrained model of the base's
    family and no copying.
    """

    def __init__(self, width: int, depth: int, vectors: int) -> None:
        """``vectors``: the width of the tokens' vectors."""
        super().__init__()
        self.inward, self.roles = nn.Linear(vectors, width), nn.Embedding(ROLES, width)
        self.body = SmallTransformer(width, depth, causal=True)
        self.outward, self.share = nn.Linear(width, vectors), nn.Linear(width, 1)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, vectors: Tensor, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
        """Log-probabilities of the token behind each of these places. (n, V)

        ``vectors`` are those of all tokens, (V, vectors).
        """
        root = vectors.shape[-1] ** 0.5
        h = self.body(self.inward(vectors[batch.ids] * root) + self.roles(batch.roles), batch.mask)  # (b, t, d)
        here = h[rows, columns]  # (n, d)
        spoken = (self.outward(here) @ vectors.T * root).log_softmax(-1)  # (n, V)
        fit = (self.key(h)[rows] @ self.query(here)[..., None])[..., 0] / here.shape[-1] ** 0.5  # (n, t)
        of_edit = (batch.mask & (batch.roles != QUERY))[rows]
        weight = fit.masked_fill(~of_edit, -torch.inf).softmax(-1)
        copied = torch.zeros_like(spoken).scatter_add(1, batch.ids[rows], weight).clamp(min=TINY).log()
        c = self.share(here)  # (n, 1)
        return torch.logaddexp(logsigmoid(c) + copied, logsigmoid(-c) + spoken)

    def answered(
        self, vectors: Tensor, rows: Sequence[Row], targets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, list[int]]:
        """Log-probabilities (n, V) at each token of the targets behind the rows, and how many each target has."""
        fed = [row + Row.of((ids[:-1], QUERY)) for row, ids in zip(rows, targets, strict=True)]
        at = [(i, len(row) - 1 + j) for i, row in enumerate(rows) for j in range(len(targets[i]))]
        places = torch.tensor(at, device=vectors.device)
        return self(vectors, Batch.of(fed, vectors.device), places[:, 0], places[:, 1]), [len(ids) for ids in targets]

    def continued(
        self, vectors: Tensor, rows: Sequence[Row], stop: StopRule, choose: Choose, numbers: Sequence[int]
    ) -> list[list[int]]:
        """The new ids of each row, one token at a time until ``stop`` says so; ``numbers`` are what ``choose`` gets."""
        out: list[list[int]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        while alive:
            fed = [rows[i] + Row.of((out[i], QUERY)) for i in alive]
            last = torch.tensor([len(row) - 1 for row in fed], device=vectors.device)
            step = len(out[alive[0]])
            at = torch.arange(len(fed), device=vectors.device)
            logprobs = self(vectors, Batch.of(fed, vectors.device), at, last)
            chosen = choose(logprobs, [numbers[i] for i in alive], step).tolist()
            alive = [i for i, token in zip(alive, chosen, strict=True) if stop.append(i, out[i], token)]
        return out
