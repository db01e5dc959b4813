"""WISE: a side matrix for the edits, and a distance that tells whether a prompt is one of them.

Wang et al. 2024, arXiv:2405.14768. d(x) = ‖ΔW x‖ is trained to be large for what is edited and small for what is not;
a prompt is routed to the matrix where d is largest, if that passes a share of the smallest d of an edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.base import State, Tags
from errata.methods.memory.adapter import EditMemory, Lookup
from errata.methods.memory.log import EditLog, EditRecord, current
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import Measured
from errata.methods.settings import setting
from errata.methods.side_memory.matrix import At, SideMatrix, deciding, of_prompts
from errata.methods.side_memory.training import (
    Change,
    SideSettings,
    SiteLosses,
    side_statistics,
    site_tensors,
    training_rows,
    unit,
)
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32
from errata.patch.delta import weight_shape

WIDTH = 22  # columns of a matrix to one edit in a shard: a row has free entries in proportion to its columns


@dataclass(frozen=True, eq=False, kw_only=True)
class SideMatrices(SideMatrix):
    """A few side matrices, the last of them open for more edits."""

    mostly_zero: ClassVar[tuple[str, ...]] = ("weights",)

    shard: int | None
    mask: float
    weights: Tensor  # (m, d, f): ΔW of each
    of: Tensor  # (n,): the matrix of each edit

    @property
    def sizes(self) -> list[int]:
        """How many edits each matrix was made of."""
        return torch.bincount(self.of, minlength=len(self.weights)).tolist()

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
    def details(self, log: EditLog, i: int) -> dict[str, Any]:
        return {"memory": int(self.of[i]) + 1}


@dataclass(frozen=True, eq=False, kw_only=True)
class Distances(Lookup):
    """The side matrix for which d of a prompt is largest, if d passes the threshold there."""

    at: At
    ratio: float
    retrieve: bool  # whether each matrix has a threshold of its own
    distances: Tensor  # (n,): d of each edit's own prompt, in its matrix

    @override
    def find(self, call: Call, x: Tensor, y: Tensor, payload: SideMatrices) -> Tensor:
        x = at_least_float32(x)
        products = torch.einsum("btf,mdf->btmd", x, payload.on("weights", x))
        d = of_prompts(call, products.norm(dim=-1), self.at)  # (b, m)
        passed = d > self.thresholds(payload).to(d)
        return torch.where(passed.any(-1), d.masked_fill(~passed, -1).argmax(-1), -1)

    def thresholds(self, payload: SideMatrices) -> Tensor:
        """``ratio`` times the smallest distance of an edit, in that matrix or in any. (m,)"""
        least = torch.full((len(payload.weights),), torch.inf).scatter_reduce(0, payload.of, self.distances, "amin")
        return self.ratio * (least if self.retrieve else least.amin().expand_as(least))

    @override
    def details(self, log: EditLog, i: int) -> dict[str, Any]:
        return {"distance": round(float(self.distances[i]), 4)}


class WiseMemory(EditMemory[Distances, SideMatrices]):
    """Side matrices, to which a prompt is routed by its distance."""

    kind: ClassVar[str] = "wise"

    @override
    def summary(self) -> list[dict[str, Any]]:
        where = {"kind": self.kind, "site": self.site}
        lines = zip(
            self.payload.weights, self.payload.sizes, self.lookup.thresholds(self.payload).tolist(), strict=True
        )
        return [{**where, "edits": n, "norm": round(float(w.norm()), 4), "threshold": round(t, 4)} for w, n, t in lines]


@dataclass(frozen=True)
class PromptInputs:
    """Inputs at the site for the deciding tokens of some prompts: ``x`` (T, f), and the prompt ``of`` each (T,)."""

    x: Tensor
    of: Tensor
    n: int

    @classmethod
    def read(cls, xs: Sequence[Tensor], at: At) -> Self:
        """Of inputs (t, f) at all tokens of each prompt."""
        kept = [deciding(x, at) for x in xs]
        of = torch.arange(len(kept)).repeat_interleave(torch.tensor([len(x) for x in kept]))
        return cls(torch.cat(kept), of.to(kept[0].device), len(kept))

    def distances(self, w: Tensor) -> Tensor:
        """The mean of ‖w x‖ over each prompt's tokens. (n,)"""
        norms = (self.x @ w.T).norm(dim=-1)
        return norms.new_zeros(self.n).index_add(0, self.of, norms) / torch.bincount(self.of)


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


@dataclass(frozen=True, kw_only=True)
class WISE(SideSettings, MemoryMethod):
    """Edits go into side matrices, shard by shard; a distance routes prompts to them.

    Steps are clipped (``clip``); the paper's box of W ± 1 is left out, since its size is of one model.
    """

    name: ClassVar[str] = "wise"
    family: ClassVar[str] = "side memory"
    paper: ClassVar[str] = "Wang et al. 2024, WISE, arXiv:2405.14768"
    stores: ClassVar[str] = "a sparse change of one matrix, kept apart, for each shard of edits"
    part: ClassVar[type[EditMemory[Any, Any]]] = WiseMemory
    height: ClassVar[Fraction] = Fraction(3, 4)
    tags: ClassVar[Tags] = Tags(quick={"contexts": 1, "shard": 500}, memory=True)

    layer: int | None = setting(None, "3/4 up: 21 of 28, 24 of 32 (paper: 27)")
    steps: int = setting(50, "paper: 40 to 70", key="n_iter")
    # distances in units of the layer's outputs; paper: 5, 20 and 10 outright, here in the same proportion
    alpha: float = setting(0.75, "d of what is not edited, at most")
    beta: float = setting(3.0, "d of what is edited, at least")
    gamma: float = setting(1.5, "d of what is edited less d of what is not, at least")
    ratio: float = setting(
        0.98,
        "of an edit's smallest d, which a prompt must pass; paper: 0.8 to 0.88, here too little",
        key="act_ratio",
        most=1,
    )
    texts: int = setting(1024, "openings of texts, to tell edits from others by")
    mask: float = setting(
        0.2, "of a matrix's entries that a shard may change; paper", key="mask_ratio", above=0, most=1
    )
    shard: int | None = setting(
        None, "edits in a shard: d_ff / 22; released code: 500, in Llama 2 with 11,008", key="save_freq", above=0
    )
    merge: int = setting(
        10, "shards that are merged into one matrix; released code: 2, which here costs locality", least=2
    )
    density: float = setting(0.53, "TIES's; paper", key="densities", above=0, most=1)
    retrieve: bool = setting(True, "merged matrices stay apart, each with its threshold; released code, for Llama 2")
    replay: int = setting(
        50, "earlier edits of the shard that are learned again; all keep their distance (as in appendix B.3)"
    )
    others: int = setting(8, "prompts of each edit about other subjects, and of others about its, that are not edited")

    @override
    def prepared_for(self, lm: HFLM) -> dict[str, Any]:
        return {**super().prepared_for(lm), "at": self.at}

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        xs, info = side_statistics(lm, self.site(lm), texts)
        kept = [deciding(x, self.at) for x in xs]
        return {"x": torch.cat(kept), "lengths": torch.tensor([len(x) for x in kept])}, info

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        return resolved.filled(shard=max(1, state.tensors["x"].shape[-1] // WIDTH))

    @override
    def empty(self, lm: HFLM, state: State) -> WiseMemory:
        d, f = weight_shape(lm, f"{self.site(lm)}.weight")
        lookup = Distances(at=self.at, ratio=self.ratio, retrieve=self.retrieve, distances=torch.empty(0))
        none = torch.empty(0, dtype=torch.long)
        payload = SideMatrices(shard=self.shard, mask=self.mask, weights=torch.empty(0, d, f), of=none)
        return WiseMemory(self.site(lm), (), lookup, payload)

    @override
    def train(self, lm: HFLM, old: WiseMemory, log: Sequence[EditRecord], state: State) -> WiseMemory:
        assert self.shard is not None
        left = list(log)
        while left:
            weights, sizes = old.payload.weights, old.payload.sizes
            if not sizes or sizes[-1] >= self.shard:
                weights = torch.cat([weights, torch.zeros(1, *weights.shape[1:])])
                old = replace(old, payload=replace(old.payload, weights=weights))
            room = self.shard - old.payload.sizes[-1]
            new = self._trained(lm, old, left[:room], state)
            old = self._measured(lm, replace(new, payload=self._merged(new.payload)))
            left = left[room:]
        return old

    def _trained(self, lm: HFLM, old: WiseMemory, log: Sequence[EditRecord], state: State) -> WiseMemory:
        """With more edits in the last matrix; their distances are still to be measured."""
        n, weights = len(old.log), old.payload.weights
        last = len(weights) - 1
        new = replace(
            old,
            log=(*old.log, *log),
            lookup=replace(old.lookup, distances=torch.cat([old.lookup.distances, torch.zeros(len(log))])),
            payload=replace(old.payload, of=torch.cat([old.payload.of, torch.full((len(log),), last)])),
        )
        live, of_matrix = current(new.log), new.payload.of
        draw = torch.Generator().manual_seed(self.seed + n)
        fresh = [i for i in live if i >= n]
        known = [i for i in live if i < n and of_matrix[i] == last]
        again = [known[i] for i in torch.randperm(len(known), generator=draw)[: self.replay].tolist()]
        edits = [new.log[i] for i in again + fresh]
        rows, of = training_rows(lm, edits, self.contexts, self.seed, bare=len(again))
        losses = SiteLosses(lm, old.site, rows)
        inside = self._inputs(lm, old.site, [new.log[i].prompt_ids for i in known] + [list(p) for p, _ in rows])
        elsewhere = [new.log[i].prompt_ids for i in live if of_matrix[i] != last]  # appendix B.3
        others = site_tensors(lm, old.site, elsewhere + self._others(lm, new.log, fresh, draw))[0]
        usual = state.tensors["x"].to(inside.x).split(state.tensors["lengths"].tolist())
        outside = PromptInputs.read([*usual, *others], self.at)
        once = torch.Generator().manual_seed(self.seed + n - old.payload.sizes[-1])  # for a shard, however it is filled
        mask = (torch.rand(weights.shape[1:], generator=once) < self.mask).to(inside.x)
        scale = unit(state)

        def change(v: Tensor) -> Change:
            return lambda rows, x: x @ (scale * v * mask).T

        def margin(v: Tensor) -> Tensor:
            """Equation 5's hinges, each a mean over what violates it; distances in units of the layer's outputs."""
            w = v * mask / state.info["in"]
            d_in, d_out = inside.distances(w), outside.distances(w)
            apart = self.gamma - (d_in[:, None] - d_out)
            return _violated(d_out - self.alpha) + _violated(self.beta - d_in) + _violated(apart)

        v = self.descent.run(weights[-1].to(inside.x) / scale, losses, of, change, margin)
        weights = torch.cat([weights[:-1], (scale * v * mask)[None].cpu()])
        return replace(new, payload=replace(new.payload, weights=weights))

    def _others(self, lm: HFLM, log: EditLog, fresh: Sequence[int], draw: torch.Generator) -> list[list[int]]:
        """Prompts (ids) that look like the fresh edits and are none: theirs with other subjects, and others' with their
        subjects. Left out are those with the same next token as an edit of that subject: they may ask for the same."""
        about: dict[str, str] = {}  # text -> its subject
        for i in fresh:
            for j in torch.randint(len(log), (self.others,), generator=draw).tolist():
                one, two = log[i], log[j]
                about |= {one.about(two.subject): two.subject, two.about(one.subject): one.subject}
        likeliest = lm.next_logprobs([*(edit.prompt for edit in log), *about]).argmax(-1).tolist()
        taken = set(zip([edit.subject for edit in log], likeliest, strict=False))
        of_texts = zip(about.items(), likeliest[len(log) :], strict=True)
        return [lm.tokens.prompt(text) for (text, subject), token in of_texts if (subject, token) not in taken]

    def _merged(self, payload: SideMatrices) -> SideMatrices:
        """With the full shards made one matrix once they are enough, and the matrix before them, unless it stays."""
        full = [i for i, n in enumerate(payload.sizes) if n == self.shard]  # a merged one holds more
        if len(full) < self.merge:
            return payload
        weights, first = payload.weights, full[0] if self.retrieve else 0
        shares = [0.4 / len(full) if i in full else 0.6 for i in range(first, len(weights))]  # released code
        merged = ties(weights[first:], torch.tensor(shares), self.density)
        return replace(payload, weights=torch.cat([weights[:first], merged[None]]), of=payload.of.clamp(max=first))

    def _measured(self, lm: HFLM, memory: WiseMemory) -> WiseMemory:
        """With the distances of the edits in the last matrix as they are now."""
        lookup, payload = memory.lookup, memory.payload
        last = (payload.of == len(payload.weights) - 1).nonzero()[:, 0]
        inputs = self._inputs(lm, memory.site, [memory.log[i].prompt_ids for i in last.tolist()])
        distances = inputs.distances(payload.weights[-1].to(inputs.x)).to(lookup.distances)
        return replace(memory, lookup=replace(lookup, distances=lookup.distances.index_copy(0, last, distances)))

    def _inputs(self, lm: HFLM, site: str, prompts: Sequence[list[int]]) -> PromptInputs:
        return PromptInputs.read(site_tensors(lm, site, prompts)[0], self.at)


def _violated(x: Tensor) -> Tensor:
    """The mean of what is above 0."""
    return x.clamp(min=0).sum() / (x > 0).sum().clamp(min=1)
