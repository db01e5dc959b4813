"""The scope classifier: which edit a prompt asks for, by exp(−‖emb(edit) − emb(prompt)‖²)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from errata.encoders import sentences
from errata.errors import BadInput
from errata.methods.trained.routed.reading import ROLES, Batch, Row
from errata.methods.trained.routed.transformer import SmallTransformer

RARE = -3.0  # before the sigmoid: at first no token counts for much, and everything is in scope of everything


class ScopeClassifier(nn.Module):
    """emb(text) = [Σ_t g_t e_t, mean_t A h_t]: what is named, and what is asked of it.

    h_t are a transformer's hidden states, e_t the tokens' fixed vectors, g_t = c σ(w·h_t + b). The paper reads
    DistilBERT's [CLS] vector. A classifier that begins from nothing cannot tell names apart that it never saw by such a
    vector; by the sum it can, since g_t says that a name counts, and e_t which one it is.
    """

    def __init__(self, width: int, depth: int, vectors: int) -> None:
        """``vectors``: the width of the tokens' vectors."""
        super().__init__()
        self.inward, self.roles = nn.Linear(vectors, width), nn.Embedding(ROLES, width)
        self.body = SmallTransformer(width, depth, causal=False)
        self.gate, self.strength = nn.Linear(width, 1), nn.Parameter(torch.tensor(2.0))
        self.asked = nn.Linear(width, vectors)
        nn.init.constant_(self.gate.bias, RARE)
        nn.init.normal_(self.asked.weight, std=0.1 / width**0.5)

    def forward(self, vectors: Tensor, rows: Sequence[Row]) -> Tensor:
        """emb of each row, (b, 2 · vectors); ``vectors`` are those of all tokens, (V, vectors)."""
        batch = Batch.of(rows, vectors.device)
        e = vectors[batch.ids]  # (b, t, m)
        h = self.body(self.inward(e * e.shape[-1] ** 0.5) + self.roles(batch.roles), batch.mask)
        real = batch.mask[..., None].to(e)
        g = self.strength * self.gate(h).sigmoid() * real  # (b, t, 1)
        asked = (self.asked(h) * real).sum(1) / real.sum(1).clamp(min=1)
        return torch.cat([(g * e).sum(1), asked], -1)


class EncodedScope(nn.Module):
    """emb(text) = A s(text), with the unit vectors s of a named sentence encoder, which stays as it is.

    A is learned. The paper trains the encoder, too.
    """

    def __init__(self, encoder: str, encoded: int) -> None:
        """``encoded``: the width of the encoder's vectors."""
        super().__init__()
        self.encoder = encoder
        self.matrix = nn.Parameter(torch.eye(encoded))  # at first a cosine of 0.65 is in scope: d² = ln 2
        self._seen: dict[str, Tensor] = {}  # in training, where the same texts come again and again

    def forward(self, vectors: Tensor, rows: Sequence[Row]) -> Tensor:
        """emb of the rows' texts, (b, encoded). Raises :class:`BadInput` for an encoder of another width."""
        new = list(dict.fromkeys(row.text for row in rows if row.text not in self._seen))
        found = dict(zip(new, torch.from_numpy(sentences(self.encoder)(new)), strict=True)) if new else {}
        s = torch.stack([found[row.text] if row.text in found else self._seen[row.text] for row in rows])
        if s.shape[1] != len(self.matrix):
            raise BadInput(
                f"the encoder {self.encoder!r} gives vectors of {s.shape[1]} numbers, and the scope classifier reads "
                f"{len(self.matrix)}: it was made with another encoder of this name; use that one"
            )
        if self.training:
            self._seen |= found
        return s.to(self.matrix) @ self.matrix.T


def distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖² for a (n, k) and b (m, k). (n, m)"""
    return (a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.T).clamp(min=0)


def scope_loss(inside: Tensor, outside: Tensor) -> Tensor:
    """Balanced cross-entropy of s = exp(−d²) (SERAC, section 3.3), from the d² of prompts in scope and out of it:
    mean −log s + mean −log(1 − s)."""
    return inside.mean() - torch.log(-torch.expm1(-outside.clamp(min=1e-6))).mean()
