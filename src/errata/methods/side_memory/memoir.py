"""MEMOIR: a side memory of which each edit has columns of its own, those where its prompt stands out.

Wang et al. 2025, arXiv:2506.07899. y + ΔW (m_i ⊙ x), with the mask m_i that was stored for the edit whose mask overlaps
most with the prompt's own; nothing is added where none overlaps enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import State, Tags
from errata.methods.settings import setting
from errata.methods.side_memory.base import (
    Change,
    Known,
    Side,
    SideMethod,
    dense,
    from_bits,
    inputs,
    of_prompts,
    sparse,
    to_bits,
)
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.delta import weight_shape

GRID = 10_001  # quantiles of a state


@dataclass(frozen=True, eq=False)
class MemoirMemory(Side):
    """``settings`` are at, k (how many columns a mask has) and threshold (τ)."""

    kind: ClassVar[str] = "memoir"

    weight: Tensor  # (d, f): ΔW
    masks: Tensor  # (n, f), booleans
    usual: Tensor  # (f,): the mean feature of texts that are not edited
    columns: Tensor  # (f,): the column of ΔW that each feature picks, a permutation

    def route(self, call: Call, x: Tensor) -> Tensor:
        best, edit = self.overlaps(self.mask(of_prompts(call, x, self.settings["at"]))).max(-1)
        return torch.where(best >= self.settings["threshold"], edit, -1)

    def said(self, x: Tensor, to: Tensor) -> Tensor:
        return (x * self.on("masks", x)[to, None]) @ self.on("weight", x).T

    def mask(self, features: Tensor) -> Tensor:
        """(b, f) booleans: TopHash, the columns of the k largest |features - usual|."""
        return tophash(features - self.usual.to(features), self.settings["k"], self.columns)

    def overlaps(self, masks: Tensor) -> Tensor:
        """(b, n): |M ∩ M_i| / k; below 0 for an edit whose question was asked again."""
        masks = masks.float()
        shared = masks @ self.on("masks", masks).T / self.settings["k"]
        return torch.where(self.answering.to(masks.device), shared, -1)

    @cached_property
    def answering(self) -> Tensor:
        return torch.isin(torch.arange(len(self.log)), torch.tensor(self.current))

    def named(self, to: int) -> str:
        return f"edit {self.log[to].id}, {self.log[to].prompt!r}"

    def entries(self) -> list[dict[str, Any]]:
        """With how near each edit's mask is to the nearest other one's."""
        near = self.overlaps(self.masks).fill_diagonal_(0).amax(-1).clamp(min=0)
        return [
            {
                "edit": self.log[i].id,
                "prompt": self.log[i].prompt,
                "columns": self.settings["k"],
                "overlap": round(float(near[i]), 4),
            }
            for i in self.current
        ]

    def summary(self) -> list[dict[str, Any]]:
        touched = int((self.weight != 0).any(0).sum())
        norm = round(float(self.weight.norm()), 4)
        return [{"kind": self.kind, "site": self.site, "edits": len(self.log), "columns": touched, "norm": norm}]

    def tensors(self) -> dict[str, Tensor]:
        masks = {"masks": to_bits(self.masks), "usual": self.usual, "columns": self.columns.int()}
        return {**sparse("weight", self.weight), **masks}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        f = len(tensors["usual"])
        return cls(
            config["site"],
            config["settings"],
            tuple(Known(**edit) for edit in config["log"]),
            dense("weight", tensors, f),
            from_bits(tensors["masks"], f),
            tensors["usual"],
            tensors["columns"].long(),
        )


def tophash(features: Tensor, k: int, columns: Tensor) -> Tensor:
    """(b, f) booleans, k of each row: the columns that stand for the k largest |features| (b, f)."""
    top = features.abs().topk(k, -1).indices
    return torch.zeros_like(features, dtype=torch.bool).scatter(-1, columns.to(top.device)[top], True)


@dataclass(frozen=True, kw_only=True)
class MEMOIR(SideMethod):
    """A sparse side memory: each edit trains the columns of its mask, and is answered through the same mask."""

    name: ClassVar[str] = "memoir"
    paper: ClassVar[str] = "Wang et al. 2025, MEMOIR, arXiv:2506.07899"
    stores: ClassVar[str] = "a change of one matrix, kept apart, and a mask of its columns for each edit"
    part: ClassVar[type[Side]] = MemoirMemory
    tags: ClassVar[Tags] = Tags(quick={"contexts": 1})

    k: int | None = setting(
        None, "columns of a mask: a quarter, 4,096 of GPT-J's 16,384 (paper; and of Llama 3's 14,336)"
    )
    threshold: float | None = setting(
        None, "τ: an overlap that `share` of pairs of texts pass; paper: 0.40, 0.46 for GPT-J"
    )
    share: float = setting(5e-3, "of pairs of different texts, that look like the same question; measured here")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1:
            raise BadInput(f"memoir's share lies within 0 to 1; found {self.share}")

    def seen(self, xs: Sequence[Tensor]) -> dict[str, Tensor]:
        features = torch.stack([self._feature(x) for x in xs])  # (n, f)
        usual, f = features.mean(0), features.shape[-1]
        k = self._k(f)
        masks = tophash(features - usual, k, torch.arange(f)).float()
        pairs = (masks @ masks.T / k)[*torch.triu_indices(len(masks), len(masks), 1)].sort().values
        return {"usual": usual, "overlaps": pairs[torch.linspace(0, len(pairs) - 1, GRID).long()]}

    def _k(self, f: int) -> int:
        k = max(1, f // 4) if self.k is None else self.k
        if not 1 <= k <= f:
            raise BadInput(f"memoir's k is a number of columns, 1 to {f} in this model; found {k}")
        return k

    def of_state(self, lm: HFLM) -> dict[str, Any]:
        site = lm.sites.prompt_stack.mlp_out[self._layer(lm)]
        return super().of_state(lm) | {"k": self._k(weight_shape(lm, f"{site}.weight")[1])}

    def resolve(self, lm: HFLM, state: State) -> Self:
        quantiles = state.tensors["overlaps"]
        found = float(quantiles[round((1 - self.share) * (len(quantiles) - 1))])
        threshold = found if self.threshold is None else self.threshold
        return replace(super().resolve(lm, state), k=state.info["k"], threshold=threshold)

    def rule(self, state: State) -> dict[str, Any]:
        return {"at": self.at, "k": self.k, "threshold": self.threshold}

    def empty(self, site: str, rule: Mapping[str, Any], f: int, d: int, state: State) -> MemoirMemory:
        columns = torch.randperm(f, generator=torch.Generator().manual_seed(self.seed))
        none = torch.zeros(0, f, dtype=torch.bool)
        return MemoirMemory(site, rule, (), torch.zeros(d, f), none, state.tensors["usual"], columns)

    def _learned(self, lm: HFLM, old: MemoirMemory, log: Sequence[Known], state: State) -> MemoirMemory:
        features = torch.stack([self._feature(x) for x in inputs(lm, old.site, [edit.asked for edit in log])[0]])
        new = replace(old, log=(*old.log, *log), masks=torch.cat([old.masks, old.mask(features).cpu()]))
        wanted = [i for i in new.current if i >= len(old.log)]
        lessons, of = self.lessons(lm, old.site, [new.log[i] for i in wanted])
        masks, unit = new.masks[wanted].to(features), self.unit(state)

        def change(v: Tensor) -> Change:
            return lambda rows, x: (x * masks[of[rows], None]) @ (unit * v).T

        v = self.descend(old.weight.to(features) / unit, lessons, of, change)
        return replace(new, weight=(unit * v).cpu())

    def _feature(self, x: Tensor) -> Tensor:
        """(f,): of what goes in at the tokens of a prompt, (t, f)."""
        return x[-1] if self.at == "last" else x.mean(0)
