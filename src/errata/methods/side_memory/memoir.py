"""MEMOIR: a side matrix of which each edit has columns of its own, those where its prompt stands out.

Wang et al. 2025, arXiv:2506.07899. y + ΔW (m_i ⊙ x), with the mask m_i that was stored for the edit whose mask overlaps
most with the prompt's own; nothing is added where none overlaps enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.memory.adapter import EditMemory, Lookup
from errata.methods.memory.log import EditLog, EditRecord, current
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import GRID, Measured, pair_quantiles, quantile
from errata.methods.memory.replacing import replaced
from errata.methods.outcomes import report
from errata.methods.settings import setting
from errata.methods.side_memory.matrix import At, SideMatrix, deciding, of_prompts
from errata.methods.side_memory.training import (
    Change,
    SideSettings,
    SideSizes,
    SiteLosses,
    side_statistics,
    site_tensors,
    training_rows,
    unit,
)
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32
from errata.model.projection import flow_shape
from errata.patch.schema import Bools, Floats, Ints


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskedMatrix(SideMatrix):
    """A change of one matrix, and for each edit the columns of it that are its own."""

    mostly_zero: ClassVar[tuple[str, ...]] = ("weight",)

    weight: Annotated[Tensor, Floats("out in")]  # ΔW
    masks: Annotated[Tensor, Bools("n in")]

    @override
    def added(self, x: Tensor, entry: Tensor) -> Tensor:
        return (x * self.on("masks", x)[entry, None]) @ self.on("weight", x).T

    @override
    def totals(self) -> dict[str, Any]:
        columns = int((self.weight != 0).any(0).sum())
        return {"columns": columns, "norm": round(float(self.weight.norm()), 4)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Masks(Lookup):
    """The edit whose mask overlaps most with the prompt's own, if that is enough."""

    at: At
    k: int  # columns of a mask
    threshold: float  # τ
    usual: Annotated[Tensor, Floats("in")]  # the mean feature of texts that are not edited
    columns: Annotated[Tensor, Ints("in", 0, "in")]  # the column of ΔW that each feature picks, a permutation
    live: Annotated[Tensor, Bools("n")]  # whether no later edit replaced it

    @override
    def check_content(self) -> None:
        if not 1 <= self.k <= len(self.usual):
            raise BadInput(f"k is {self.k}, expected a number of the {len(self.usual)} columns")
        if len(self.columns.unique()) < len(self.columns):
            raise BadInput("columns holds one twice, expected a permutation")

    @override
    def find(self, call: Call, x: Tensor, y: Tensor, payload: MaskedMatrix) -> Tensor:
        best, edit = self.overlaps(self.mask(of_prompts(call, at_least_float32(x), self.at)), payload).max(-1)
        return torch.where(best >= self.threshold, edit, -1)

    def mask(self, features: Tensor) -> Tensor:
        """TopHash: the columns of the k largest |features - usual|, as booleans. (b, f)"""
        return tophash(features - self.usual.to(features), self.k, self.columns)

    def overlaps(self, masks: Tensor, payload: MaskedMatrix) -> Tensor:
        """|M ∩ M_i| / k of masks (b, f) with each edit's; below 0 for an edit that was replaced. (b, n)"""
        masks = masks.float()
        shared = masks @ payload.on("masks", masks).T / self.k
        return torch.where(self.live.to(masks.device), shared, -1)


class MemoirMemory(EditMemory[Masks, MaskedMatrix]):
    """A side matrix that each prompt sees through the mask of the edit that is found for it."""

    kind: ClassVar[str] = "memoir"

    @override
    def entries(self) -> list[dict[str, Any]]:
        """With the overlap of each edit's mask with the most similar other one."""
        overlaps = self.lookup.overlaps(self.payload.masks, self.payload).fill_diagonal_(0).amax(-1).clamp(min=0)
        return [
            {
                "edit": self.log[i].id,
                "prompt": self.log[i].prompt,
                "columns": self.lookup.k,
                "overlap": round(float(overlaps[i]), 4),
            }
            for i in self.lookup.live.nonzero()[:, 0].tolist()
        ]


def tophash(features: Tensor, k: int, columns: Tensor) -> Tensor:
    """The ``columns`` that stand for the k largest |features| (b, f), as booleans. (b, f)"""
    top = features.abs().topk(k, -1).indices
    return torch.zeros_like(features, dtype=torch.bool).scatter(-1, columns.to(top.device)[top], True)


class Features(SideSizes):
    """What MEMOIR's state holds: the mean feature of texts, and quantiles of how far two texts' masks overlap."""

    usual: Annotated[Tensor, Floats("in")]
    overlaps: Annotated[Tensor, Floats(f"{GRID}")]
    k: int


@dataclass(frozen=True, kw_only=True)
class MEMOIR(SideSettings, MemoryMethod):
    """A sparse side matrix: each edit trains the columns of its mask, and acts through the same mask."""

    name: ClassVar[str] = "memoir"
    family: ClassVar[str] = "side memory"
    paper: ClassVar[str] = "Wang et al. 2025, MEMOIR, arXiv:2506.07899"
    stores: ClassVar[str] = "a change of one matrix, kept apart, and a mask of its columns for each edit"
    part: ClassVar[type[EditMemory[Any, Any]]] = MemoirMemory
    holds: ClassVar[type[Any] | None] = Features
    height: ClassVar[Fraction] = Fraction(3, 4)
    tags: ClassVar[Tags] = Tags(quick={"contexts": 1}, memory=True)

    layer: int | None = setting(None, "3/4 up: 21 of 28 (paper: 21), 24 of 32 (paper: 27)")
    k: int | None = setting(
        None, "columns of a mask: a quarter, 4,096 of GPT-J's 16,384 (paper; and of Llama 3's 14,336)"
    )
    share: float = setting(5e-3, "of pairs of different texts, that count as the same question; measured here", most=1)
    threshold: float | None = setting(
        None, "τ: an overlap that `share` of pairs of texts pass; paper: 0.40, 0.46 for GPT-J"
    )

    @override
    def prepared_for(self, lm: HFLM) -> dict[str, Any]:
        return {**super().prepared_for(lm), "at": self.at, "k": self._k(lm)}

    def _k(self, lm: HFLM) -> int:
        f = flow_shape(lm.model, lm.sites, self.site(lm))[1]
        k = max(1, f // 4) if self.k is None else self.k
        if not 1 <= k <= f:
            raise BadInput(f"memoir's k is a number of columns, 1 to {f} in this model; found {k}")
        return k

    @override
    def read_once(self, lm: HFLM, state: State) -> None:
        self.before(lm, state, self.seed)

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        xs, info = side_statistics(lm, self.site(lm), texts)
        features = torch.stack([self._feature(x) for x in xs])  # (n, f)
        usual, k = features.mean(0), self._k(lm)
        masks = tophash(features - usual, k, torch.arange(len(usual))).float()
        return {"usual": usual, "overlaps": pair_quantiles(masks @ masks.T / k)}, info

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        return resolved.filled(k=state.info["k"], threshold=quantile(state.tensors["overlaps"], 1 - self.share))

    @override
    def empty(self, lm: HFLM, state: State) -> MemoirMemory:
        assert self.k is not None and self.threshold is not None
        d, f = flow_shape(lm.model, lm.sites, self.site(lm))
        none = torch.zeros(0, f, dtype=torch.bool)
        columns = torch.randperm(f, generator=torch.Generator().manual_seed(self.seed))
        lookup = Masks(
            at=self.at,
            k=self.k,
            threshold=self.threshold,
            usual=state.tensors["usual"],
            columns=columns,
            live=none[:, 0],
        )
        return MemoirMemory(self.site(lm), (), lookup, MaskedMatrix(weight=torch.zeros(d, f), masks=none))

    @override
    def train(self, lm: HFLM, old: MemoirMemory, log: Sequence[EditRecord], state: State) -> MemoirMemory:
        prompts = [record.prompt_ids for record in log]
        features = torch.stack([self._feature(x) for x in site_tensors(lm, old.site, prompts)[0]])
        whole: EditLog = (*old.log, *log)
        found = replaced(lm, old, old.lookup.live.nonzero()[:, 0].tolist(), log)
        live = torch.cat([old.lookup.live, torch.zeros(len(log), dtype=torch.bool)])
        live[[i for of_one in found for i in of_one]] = False
        last = current(log)
        fresh = [len(old.log) + j for j in last]
        live[fresh] = True
        masks = torch.cat([old.payload.masks, old.lookup.mask(features).cpu()])
        edits = [whole[i] for i in fresh]
        before = [[whole[i] for i in found[j]] for j in last]
        rows, of = training_rows(lm, edits, self.before(lm, state, self.seed), before)
        own, scale = masks[fresh].to(features), unit(state)

        def change(v: Tensor) -> Change:
            return lambda rows, x: (x * own[of[rows], None]) @ (scale * v).T

        start = old.payload.weight.to(features) / scale
        v, losses = self.descent.run(start, SiteLosses(lm, old.site, rows), of, change)
        report([edit.id for edit in edits], losses.tolist(), (losses <= self.stop).tolist())
        payload = MaskedMatrix(weight=(scale * v).cpu(), masks=masks)
        return replace(old, log=whole, lookup=replace(old.lookup, live=live), payload=payload)

    def _feature(self, x: Tensor) -> Tensor:
        """The feature of a prompt, from the site's inputs (t, f) at its tokens. (f,)"""
        return deciding(x, self.at).mean(0)
