"""WISE: a side memory for the edits, and a distance that tells whether a prompt is one of them.

Wang et al. 2024, arXiv:2405.14768. d(x) = ‖ΔW x‖ is trained to be large for what is edited and small for what is not;
a prompt is routed to the memory where d is largest, if that passes a share of the smallest d of an edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import State, Tags
from errata.methods.settings import setting
from errata.methods.side_memory.base import Change, Known, Side, SideMethod, dense, inputs, of_prompts, sparse
from errata.model.hf import HFLM
from errata.model.lm import Call

WIDTH = 22  # of the columns of a matrix to one edit in a shard: a row has free entries in proportion to its columns


@dataclass(frozen=True, eq=False)
class WiseMemory(Side):
    """A few side memories, the last of them open for more edits.

    ``settings`` are at, ratio, retrieve (whether each memory has a threshold of its own), and how shards are made.
    """

    kind: ClassVar[str] = "wise"

    weights: Tensor  # (m, d, f): ΔW of each
    memory: Tensor  # (n,): where each edit is
    distances: Tensor  # (n,): d of each edit there

    def route(self, call: Call, x: Tensor) -> Tensor:
        said = torch.einsum("btf,mdf->btmd", x, self.on("weights", x))
        d = of_prompts(call, said.norm(dim=-1), self.settings["at"])  # (b, m)
        passed = d > self.thresholds.to(d)
        return torch.where(passed.any(-1), d.masked_fill(~passed, -1).argmax(-1), -1)

    def said(self, x: Tensor, to: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:2], self.weights.shape[1])
        for m in to.unique().tolist():
            rows = (to == m).nonzero()[:, 0]
            out = out.index_copy(0, rows, x[rows] @ self.on("weights", x)[m].T)
        return out

    @property
    def thresholds(self) -> Tensor:
        """(m,): ratio times the smallest distance of an edit, in that memory or in any."""
        least = torch.full((len(self.weights),), torch.inf).scatter_reduce(0, self.memory, self.distances, "amin")
        return self.settings["ratio"] * (least if self.settings["retrieve"] else least.amin().expand_as(least))

    @property
    def sizes(self) -> list[int]:
        """How many edits each memory was made of."""
        return torch.bincount(self.memory, minlength=len(self.weights)).tolist()

    def named(self, to: int) -> str:
        its = self.sizes[to]
        return f"side memory {to + 1} of {len(self.weights)}, with {its} edit{'s' if its > 1 else ''}"

    def entries(self) -> list[dict[str, Any]]:
        """The distance is that of the edit's own prompt."""
        return [
            {
                "edit": self.log[i].id,
                "prompt": self.log[i].prompt,
                "memory": int(self.memory[i]) + 1,
                "distance": round(float(self.distances[i]), 4),
            }
            for i in range(len(self.log))
        ]

    def summary(self) -> list[dict[str, Any]]:
        lines = zip(self.weights, self.sizes, self.thresholds.tolist(), strict=True)
        return [
            {
                "kind": self.kind,
                "site": self.site,
                "edits": n,
                "norm": round(float(w.norm()), 4),
                "threshold": round(t, 4),
            }
            for w, n, t in lines
        ]

    def config(self) -> dict[str, Any]:
        return {**super().config(), "width": self.weights.shape[-1]}

    def tensors(self) -> dict[str, Tensor]:
        return {**sparse("weights", self.weights), "memory": self.memory, "distances": self.distances}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        log = tuple(Known(**edit) for edit in config["log"])
        weights = dense("weights", tensors, config["width"])
        return cls(config["site"], config["settings"], log, weights, tensors["memory"], tensors["distances"])


@dataclass(frozen=True)
class Points:
    """What goes in at the site for some prompts, at the tokens that count: x (T, f), and the prompt ``of`` each."""

    x: Tensor
    of: Tensor
    n: int

    def distances(self, w: Tensor) -> Tensor:
        """(n,): the mean of ‖w x‖ over each prompt's tokens."""
        each = (self.x @ w.T).norm(dim=-1)
        return each.new_zeros(self.n).index_add(0, self.of, each) / torch.bincount(self.of)


def ties(deltas: Tensor, weights: Tensor, density: float) -> Tensor:
    """(d, f): TIES (arXiv:2306.01708) of changes (m, d, f). Each keeps its largest entries, as many as ``density`` of
    all; an entry is the weighted mean of those that have the sign of their weighted sum."""
    flat = deltas.flatten(1)
    keep = flat.abs().topk(max(1, round(density * flat.shape[1])), -1).indices
    kept = torch.zeros_like(flat).scatter(1, keep, flat.gather(1, keep))
    share = weights.to(flat)[:, None] * (kept.sign() == (weights.to(flat)[:, None] * kept).sum(0).sign())
    share = share * (kept != 0)
    merged = (share * kept).sum(0) / share.sum(0).clamp(min=torch.finfo(flat.dtype).tiny)
    return merged.view_as(deltas[0])


@dataclass(frozen=True, kw_only=True)
class WISE(SideMethod):
    """Edits go into side memories, shard by shard; a distance routes prompts to them.

    Steps are clipped (``clip``); the paper's box of W ± 1 is left out, since its size is of one model.
    """

    name: ClassVar[str] = "wise"
    paper: ClassVar[str] = "Wang et al. 2024, WISE, arXiv:2405.14768"
    stores: ClassVar[str] = "a sparse change of one matrix, kept apart, for each shard of edits"
    part: ClassVar[type[Side]] = WiseMemory
    tags: ClassVar[Tags] = Tags(quick={"contexts": 1, "shard": 500})

    steps: int = setting(50, "paper: 40 to 70", above=0)
    # distances in units of what the layer says; paper: 5, 20 and 10 outright, here in the same proportion
    alpha: float = setting(0.75, "d of what is not edited, at most")
    beta: float = setting(3.0, "d of what is edited, at least")
    gamma: float = setting(1.5, "d of what is edited less d of what is not, at least")
    ratio: float = setting(
        0.98, "of an edit's smallest d, which a prompt must pass; paper: 0.8 to 0.88, here too little"
    )
    texts: int = setting(1024, "openings of texts, to tell edits from others by")
    mask: float = setting(0.2, "of a matrix's entries that a shard may change; paper", above=0)
    shard: int | None = setting(
        None, "edits in a shard: d_ff / 22; released code: 500, in Llama 2 with 11,008", above=0
    )
    merge: int = setting(
        10, "shards that are merged into one memory; released code: 2, which here costs locality", above=0
    )
    density: float = setting(0.53, "TIES's; paper", above=0)
    retrieve: bool = setting(True, "merged memories stay apart, each with its threshold; released code, for Llama 2")
    replay: int = setting(
        50, "earlier edits of the shard that are learned again; all keep their distance (as in appendix B.3)"
    )
    others: int = setting(8, "prompts of each edit about other subjects, and of others about its, that are not edited")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge < 2:
            raise BadInput(f"wise merges two shards or more; found merge = {self.merge}")
        if too := [name for name in ("ratio", "mask", "density") if getattr(self, name) > 1]:
            raise BadInput(f"wise's {too[0]} lies within 0 to 1; found {getattr(self, too[0])}")

    def resolve(self, lm: HFLM, state: State) -> Self:
        made = super().resolve(lm, state)
        shard = max(1, state.tensors["x"].shape[-1] // WIDTH) if self.shard is None else self.shard
        return replace(made, shard=shard)

    def seen(self, xs: Sequence[Tensor]) -> dict[str, Tensor]:
        its = [self._counting(x) for x in xs]
        return {"x": torch.cat(its), "lengths": torch.tensor([len(x) for x in its])}

    def rule(self, state: State) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("at", "ratio", "retrieve", "shard", "mask")}

    def empty(self, site: str, rule: Mapping[str, Any], f: int, d: int, state: State) -> WiseMemory:
        return WiseMemory(site, rule, (), torch.empty(0, d, f), torch.empty(0).long(), torch.empty(0))

    def _learned(self, lm: HFLM, old: WiseMemory, log: Sequence[Known], state: State) -> WiseMemory:
        assert self.shard is not None
        left = list(log)
        while left:
            if not old.sizes or old.sizes[-1] >= self.shard:
                old = replace(old, weights=torch.cat([old.weights, torch.zeros(1, *old.weights.shape[1:])]))
            room = self.shard - old.sizes[-1]
            old = self._measured(lm, self._merged(self._taught(lm, old, left[:room], state)))
            left = left[room:]
        return old

    def _taught(self, lm: HFLM, old: WiseMemory, log: Sequence[Known], state: State) -> WiseMemory:
        """With more edits in the last memory; their distances are still to be measured."""
        n, last, unit = len(old.log), len(old.weights) - 1, self.unit(state)
        new = replace(
            old,
            log=(*old.log, *log),
            memory=torch.cat([old.memory, torch.full((len(log),), last)]),
            distances=torch.cat([old.distances, torch.zeros(len(log))]),
        )
        g = torch.Generator().manual_seed(self.seed + n)
        fresh = [i for i in new.current if i >= n]
        known = [i for i in new.current if i < n and new.memory[i] == last]
        again = [known[i] for i in torch.randperm(len(known), generator=g)[: self.replay].tolist()]
        lessons, of = self.lessons(lm, old.site, [new.log[i] for i in again + fresh], bare=len(again))
        held = [new.log[i].asked for i in known] + [asked for asked, _ in lessons.rows]
        inside = self._points(inputs(lm, old.site, held)[0])
        elsewhere = [new.log[i].asked for i in new.current if new.memory[i] != last]  # appendix B.3
        others = inputs(lm, old.site, elsewhere + self._others(lm, new, fresh, g))[0]
        usual = state.tensors["x"].to(inside.x).split(state.tensors["lengths"].tolist())
        outside = self._points([*usual, *others])
        drawn = torch.Generator().manual_seed(self.seed + n - old.sizes[-1])  # once for a shard, however it is filled
        mask = (torch.rand(old.weights.shape[1:], generator=drawn) < self.mask).to(inside.x)

        def change(v: Tensor) -> Change:
            return lambda rows, x: x @ (unit * v * mask).T

        def margin(v: Tensor) -> Tensor:
            w = v * mask / state.info["in"]  # distances in units of what the layer says
            d_in, d_out = inside.distances(w), outside.distances(w)
            apart = self.gamma - (d_in[:, None] - d_out)
            return _violated(d_out - self.alpha) + _violated(self.beta - d_in) + _violated(apart)

        v = self.descend(old.weights[-1].to(inside.x) / unit, lessons, of, change, margin)
        return replace(new, weights=torch.cat([old.weights[:-1], (unit * v * mask)[None].cpu()]))

    def _others(self, lm: HFLM, part: WiseMemory, fresh: Sequence[int], g: torch.Generator) -> list[list[int]]:
        """Prompts (ids) that look like the fresh edits and are none: the same said of other subjects, and other
        things of theirs. What the model answers as it does an edit of that subject may ask for the same: left out."""
        about: dict[str, str] = {}  # text -> its subject
        for i in fresh:
            for j in torch.randint(len(part.log), (self.others,), generator=g).tolist():
                one, two = part.log[i], part.log[j]
                about |= {one.of(two.subject): two.subject, two.of(one.subject): one.subject}
        edits = [edit.prompt for edit in part.log]
        said = lm.next_logprobs([*edits, *about]).argmax(-1).tolist()
        taken = set(zip([edit.subject for edit in part.log], said, strict=False))
        of_texts = zip(about.items(), said[len(edits) :], strict=True)
        return [lm.tokens.prompt(text) for (text, subject), answer in of_texts if (subject, answer) not in taken]

    def _merged(self, part: WiseMemory) -> WiseMemory:
        """With the shards made one memory once there are enough of them, and the memory before it, unless it stays."""
        full = [i for i, n in enumerate(part.sizes) if n == self.shard]  # a merged one holds more
        if len(full) < self.merge:
            return part
        first = full[0] if self.retrieve else 0
        shares = [0.4 / len(full) if i in full else 0.6 for i in range(first, len(part.weights))]  # released code
        merged = ties(part.weights[first:], torch.tensor(shares), self.density)
        return replace(
            part, weights=torch.cat([part.weights[:first], merged[None]]), memory=part.memory.clamp(max=first)
        )

    def _measured(self, lm: HFLM, part: WiseMemory) -> WiseMemory:
        """With the distances of the edits in the last memory as they are now."""
        its = (part.memory == len(part.weights) - 1).nonzero()[:, 0]
        points = self._points(inputs(lm, part.site, [part.log[i].asked for i in its.tolist()])[0])
        found = points.distances(part.weights[-1].to(points.x)).to(part.distances)
        return replace(part, distances=part.distances.index_copy(0, its, found))

    def _counting(self, x: Tensor) -> Tensor:
        """Those of a prompt's tokens (t, f) that decide."""
        return x[-1:] if self.at == "last" else x

    def _points(self, xs: Sequence[Tensor]) -> Points:
        its = [self._counting(x) for x in xs]
        of = torch.arange(len(its)).repeat_interleave(torch.tensor([len(x) for x in its]))
        return Points(torch.cat(its), of.to(its[0].device), len(its))


def _violated(x: Tensor) -> Tensor:
    """The mean of what is above 0."""
    return x.clamp(min=0).sum() / (x > 0).sum().clamp(min=1)
