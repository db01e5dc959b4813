"""WISE's memory: side matrices, each with its shard of edits, and the distance that routes a prompt to one of them.

Wang et al. 2024, arXiv:2405.14768. d(x) = ‖ΔW x‖; a prompt is routed to the matrix where d is largest, if d passes the
threshold there.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.memory.adapter import EditMemory, Lookup
from errata.methods.memory.log import EditLog
from errata.methods.side_memory.matrix import At, SideMatrix, of_prompts
from errata.model.lm import Call
from errata.model.passes import at_least_float32
from errata.patch.schema import Floats, Ints


@dataclass(frozen=True, eq=False, kw_only=True)
class SideMatrices(SideMatrix):
    """A few side matrices, the last of them open for more edits."""

    mostly_zero: ClassVar[tuple[str, ...]] = ("weights",)

    shard: int | None
    mask: float
    weights: Annotated[Tensor, Floats("m out in")]  # ΔW of each
    of: Annotated[Tensor, Ints("n", -1, "m")]  # the matrix of each edit; -1 once a later one replaced it

    @override
    def check_content(self) -> None:
        if not len(self.weights):
            raise BadInput("weights holds no matrix")

    @property
    def sizes(self) -> list[int]:
        """How many edits in force each matrix holds."""
        return torch.bincount(self.of[self.of >= 0], minlength=len(self.weights)).tolist()

    @override
    def added(self, x: Tensor, entry: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:2], self.weights.shape[1])
        for m in entry.unique().tolist():
            rows = (entry == m).nonzero()[:, 0]
            out = out.index_copy(0, rows, x[rows] @ self.on("weights", x)[m].T)
        return out

    @override
    def describe(self, log: EditLog, entry: int) -> str:
        n = self.sizes[entry]
        return f"side memory {entry + 1} of {len(self.weights)}, with {n} edit{'s' if n > 1 else ''}"

    @override
    def details(self, log: EditLog, i: int) -> dict[str, Any] | None:
        return {"memory": int(self.of[i]) + 1} if self.of[i] >= 0 else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Distances(Lookup):
    """The side matrix for which d of a prompt is largest, if d passes the threshold there."""

    at: At
    ratio: float | None
    retrieve: bool  # whether each matrix has a threshold of its own
    distances: Annotated[Tensor, Floats("n")]  # d of each edit's own prompt, in its matrix
    thresholds: Annotated[Tensor, Floats("m")]  # what d must pass, for each matrix

    @override
    def find(self, call: Call, x: Tensor, y: Tensor, payload: SideMatrices) -> Tensor:
        x = at_least_float32(x)
        products = torch.einsum("btf,mdf->btmd", x, payload.on("weights", x))
        d = of_prompts(call, products.norm(dim=-1), self.at)  # (b, m)
        least = self.thresholds.to(d)
        passed = d > (least if self.retrieve else least.amin())
        return torch.where(passed.any(-1), d.masked_fill(~passed, -1).argmax(-1), -1)

    @override
    def details(self, log: EditLog, i: int) -> dict[str, Any]:
        return {"distance": round(float(self.distances[i]), 4)}


class WiseMemory(EditMemory[Distances, SideMatrices]):
    """Side matrices, to which a prompt is routed by its distance."""

    kind: ClassVar[str] = "wise"

    @override
    def summary(self) -> list[dict[str, Any]]:
        where = {"kind": self.kind, "site": self.site}
        lines = zip(self.payload.weights, self.payload.sizes, self.lookup.thresholds.tolist(), strict=True)
        return [{**where, "edits": n, "norm": round(float(w.norm()), 4), "threshold": round(t, 4)} for w, n, t in lines]


def ties(deltas: Tensor, weights: Tensor, density: float) -> Tensor:
    """TIES (arXiv:2306.01708) of changes (m, d, f). (d, f)

    Each keeps its largest entries, as many as ``density`` of all; an entry is the weighted mean of those that have the
    sign of their weighted sum.
    """
    flat = deltas.flatten(1)
    keep = flat.abs().topk(max(1, round(density * flat.shape[1])), -1).indices
    kept = torch.zeros_like(flat).scatter(1, keep, flat.gather(1, keep))
    share = weights.to(flat)[:, None] * (kept.sign() == (weights.to(flat)[:, None] * kept).sum(0).sign())
    share = share * (kept != 0)
    merged = (share * kept).sum(0) / share.sum(0).clamp(min=torch.finfo(flat.dtype).tiny)
    return merged.view_as(deltas[0])
