"""WISE: a side matrix for the edits, and a distance that tells whether a prompt is one of them.

Wang et al. 2024, arXiv:2405.14768. d(x) = ‖ΔW x‖ is trained to be large for what is edited and small for what is not;
a prompt is routed to the matrix where d is largest, if that passes a threshold (:mod:`.shards`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord, current
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import Measured
from errata.methods.memory.replacing import replaced
from errata.methods.outcomes import report
from errata.methods.settings import setting
from errata.methods.side_memory.alike import Asked, alike, names_in, parting
from errata.methods.side_memory.margins import Margins, PromptInputs
from errata.methods.side_memory.matrix import deciding
from errata.methods.side_memory.shards import Distances, SideMatrices, WiseMemory, ties
from errata.methods.side_memory.training import (
    Change,
    SideSettings,
    SideSizes,
    SiteLosses,
    side_statistics,
    training_rows,
    unit,
)
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.projection import flow_shape
from errata.patch.schema import Floats, Ints

OUTBID = 1.05  # times what another matrix gives: d of an edit's prompt in its own, at least
SLACK = 0.99  # times the smallest d of an edit, its threshold at most: room for the rounding of half precision
SAMPLE = 64  # edits of a matrix by which its threshold is measured, at most
WIDTH = 22  # columns of a matrix to one edit in a shard: a row has free entries in proportion to its columns


class Inputs(SideSizes):
    """What WISE's state holds: the layer's inputs at the deciding tokens of texts, and the names in those."""

    x: Annotated[Tensor, Floats("tokens in")]
    lengths: Annotated[Tensor, Ints("*", least=1)]
    names: list[str]


@dataclass(frozen=True, kw_only=True)
class WISE(SideSettings, MemoryMethod):
    """Edits go into side matrices, shard by shard; a distance routes prompts to them.

    The threshold is measured, where the paper takes a share of the smallest distance of an edit, which says nothing of
    how near other words and other questions come: it lies where the edits, and other edits' prompts that ask for the
    same, part from texts and from prompts that look like edits and are none (:mod:`errata.methods.side_memory.alike`),
    drawn anew after training. With 30 edits of the bundled model's validation split, against 0.98 of the smallest
    distance and without names of texts among what is not edited: paraphrases 0.97 to 1.00, questions 0.97 to 1.00,
    neighbours 0.94 to 0.97, same subject 0.99 to 1.00; with 30 test edits of a model of another world and shape, which
    nothing was chosen on: 0.98, 0.90, 0.98, 1.00; of a Llama-like model (validation): 0.91, 0.88, 0.97, 0.93.

    Steps are clipped (``clip``); the paper's box of W ± 1 is left out, since its size is of one model.
    """

    name: ClassVar[str] = "wise"
    family: ClassVar[str] = "side memory"
    paper: ClassVar[str] = "Wang et al. 2024, WISE, arXiv:2405.14768"
    stores: ClassVar[str] = "a sparse change of one matrix, kept apart, for each shard of edits"
    part: ClassVar[type[EditMemory[Any, Any]]] = WiseMemory
    holds: ClassVar[type[Any] | None] = Inputs
    height: ClassVar[Fraction] = Fraction(3, 4)
    tags: ClassVar[Tags] = Tags(quick={"contexts": 1, "shard": 500}, memory=True)

    layer: int | None = setting(None, "3/4 up: 21 of 28, 24 of 32 (paper: 27)")
    steps: int = setting(50, "paper: 40 to 70", key="n_iter")
    # distances in units of the layer's outputs; paper: 5, 20 and 10 outright, here in the same proportion
    alpha: float = setting(0.75, "d of what is not edited, at most")
    beta: float = setting(3.0, "d of what is edited, at least")
    gamma: float = setting(1.5, "d of what is edited less d of what is not, at least")
    ratio: float | None = setting(
        None,
        "of an edit's smallest d, which a prompt must pass; paper: 0.8 to 0.88; by default the threshold is measured",
        key="act_ratio",
        above=0,
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
    others: int = setting(
        8, "prompts that look like an edit and are none: its own about others, others' about its subject, of each"
    )

    @override
    def prepared_for(self, lm: HFLM) -> dict[str, Any]:
        return {**super().prepared_for(lm), "at": self.at}

    @override
    def read_once(self, lm: HFLM, state: State) -> None:
        self.before(lm, state, self.seed)

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        xs, info = side_statistics(lm, self.site(lm), texts)
        kept = [deciding(x, self.at) for x in xs]
        info["names"] = names_in(texts)
        return {"x": torch.cat(kept), "lengths": torch.tensor([len(x) for x in kept])}, info

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved, lengths = super().resolve(lm, state), state.tensors["lengths"]
        if int(lengths.sum()) != len(state.tensors["x"]):
            raise BadInput(f"this state's lengths are of {int(lengths.sum())} tokens, not of its own; prepare anew")
        return resolved.filled(shard=max(1, state.tensors["x"].shape[-1] // WIDTH))

    @override
    def empty(self, lm: HFLM, state: State) -> WiseMemory:
        d, f = flow_shape(lm.model, lm.sites, self.site(lm))
        settings: dict[str, Any] = {"at": self.at, "ratio": self.ratio, "retrieve": self.retrieve}
        lookup = Distances(**settings, distances=torch.empty(0), thresholds=torch.empty(0))
        none = torch.empty(0, dtype=torch.long)
        payload = SideMatrices(shard=self.shard, mask=self.mask, weights=torch.empty(0, d, f), of=none)
        return WiseMemory(self.site(lm), (), lookup, payload)

    @override
    def train(self, lm: HFLM, old: WiseMemory, log: Sequence[EditRecord], state: State) -> WiseMemory:
        """An edit that replaces others is trained into the matrix that holds the first of them, so that no other matrix
        answers for it; the rest go into the last one, while it has room, or a new one."""
        assert self.shard is not None
        n = len(old.log)
        found = replaced(lm, old, (old.payload.of >= 0).nonzero()[:, 0].tolist(), log)
        of = torch.cat([old.payload.of, torch.full((len(log),), -1)])
        homes = {n + j: int(of[found[j][0]]) if found[j] else -1 for j in current(log)}
        of[[i for of_one in found for i in of_one]] = -1
        distances = torch.cat([old.lookup.distances, torch.zeros(len(log))])
        memory = replace(
            old,
            log=(*old.log, *log),
            lookup=replace(old.lookup, distances=distances),
            payload=replace(old.payload, of=of),
        )
        before = {n + j: [old.log[i] for i in found[j]] for j in range(len(log))}
        asked = Asked(lm, memory.site, self.at)
        for m in sorted({*homes.values()} - {-1}):
            fresh = [i for i, home in homes.items() if home == m]
            memory = self._trained(asked, memory, m, fresh, before, state)
        left = [i for i, home in homes.items() if home < 0]
        while left:
            weights, sizes = memory.payload.weights, memory.payload.sizes
            if not sizes or sizes[-1] >= self.shard:
                weights = torch.cat([weights, torch.zeros(1, *weights.shape[1:])])
                memory = replace(memory, payload=replace(memory.payload, weights=weights))
            room = self.shard - memory.payload.sizes[-1]
            memory = self._trained(asked, memory, len(weights) - 1, left[:room], before, state)
            merged = self._merged(memory.payload)
            if merged is not memory.payload:
                memory = self._measured(asked, replace(memory, payload=merged), len(merged.weights) - 1, state)
            left = left[room:]
        return memory

    def _trained(
        self,
        asked: Asked,
        memory: WiseMemory,
        m: int,
        fresh: Sequence[int],
        before: Mapping[int, Sequence[EditRecord]],
        state: State,
    ) -> WiseMemory:
        """With the ``fresh`` edits (indices) in matrix m, and the distances measured that this changed; ``before`` has
        the edits that each replaces."""
        lm, log = asked.lm, memory.log
        weights, of_matrix = memory.payload.weights, memory.payload.of.clone()
        draw = torch.Generator().manual_seed(self.seed + fresh[0])
        live = (of_matrix >= 0).nonzero()[:, 0].tolist()
        known = [i for i in live if of_matrix[i] == m]
        again = [known[i] for i in torch.randperm(len(known), generator=draw)[: self.replay].tolist()]
        edits, contexts = [log[i] for i in (*again, *fresh)], self.before(lm, state, self.seed)
        replacing = [*([] for _ in again), *(before[i] for i in fresh)]
        rows, of = training_rows(lm, edits, contexts, replacing, bare=len(again))
        losses = SiteLosses(lm, memory.site, rows, [lm.tokens.prompt(context) for context in contexts])
        others = asked.inputs(alike(asked, log, fresh, state.info["names"], self.others, draw)[1])
        elsewhere = asked.of(log[i] for i in live if of_matrix[i] != m)  # appendix B.3
        own = PromptInputs.read([*asked.of(log[i] for i in known), *losses.inputs(self.at)], self.at)
        usual, near = self._usual(state, own.x), [*elsewhere, *others]
        scale, per_input = unit(state), 1 / state.info["in"]  # distances are in units of the layer's outputs
        inside = PromptInputs.joined([own], per_input)
        outside = PromptInputs.joined([usual, *([PromptInputs.read(near, self.at)] if near else ())], per_input)
        rivals = [OUTBID / scale * inside.distances(w.to(inside.x)) for i, w in enumerate(weights) if i != m]
        least = torch.stack([inside.x.new_full((inside.n,), self.beta), *rivals]).amax(0)
        margins, mask = Margins(inside, outside, least, self.alpha, self.gamma), self._mask(weights[m], fresh[0])
        of_matrix[list(fresh)] = m

        def change(v: Tensor) -> Change:
            return lambda rows, x: (scale * x) @ v.T

        v, ended = self.descent.run(
            weights[m].to(inside.x) / scale, losses, of, change, margins.penalty, mask.to(inside.x)
        )
        report([edit.id for edit in edits], ended.tolist(), (ended <= self.stop).tolist())
        weights = weights.clone()
        weights[m] = (scale * v).cpu()
        payload = replace(memory.payload, weights=weights, of=of_matrix)
        return self._measured(asked, replace(memory, payload=payload), m, state)

    def _merged(self, payload: SideMatrices) -> SideMatrices:
        """With the full shards made one matrix once they are enough, and the matrix before them, unless it stays."""
        assert self.shard is not None
        last, sizes = len(payload.weights) - 1, payload.sizes
        # a merged one holds more; one that lost an edit to another stays full
        full = [i for i, n in enumerate(sizes) if n <= self.shard and (i < last or n == self.shard)]
        if len(full) < self.merge:
            return payload
        weights, first = payload.weights, full[0] if self.retrieve else 0
        shares = [0.4 / len(full) if i in full else 0.6 for i in range(first, len(weights))]  # released code
        merged = ties(weights[first:], torch.tensor(shares), self.density)
        return replace(payload, weights=torch.cat([weights[:first], merged[None]]), of=payload.of.clamp(max=first))

    def _mask(self, weight: Tensor, seed: int) -> Tensor:
        """Which entries of a matrix its edits may change: those that earlier ones changed, else a share at random."""
        if (weight != 0).any():
            return weight != 0
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(self.seed + seed)) < self.mask

    def _measured(self, asked: Asked, memory: WiseMemory, m: int, state: State) -> WiseMemory:
        """With the distances of the edits in matrix m, and its threshold, as they are now."""
        lookup, payload = memory.lookup, memory.payload
        own = (payload.of == m).nonzero()[:, 0]
        inputs = PromptInputs.read(asked.of(memory.log[i] for i in own.tolist()), self.at)
        w = payload.weights[m].to(inputs.x)
        d = inputs.distances(w)
        threshold = self.ratio * float(d.min()) if self.ratio else self._threshold(asked, memory, own, w, d, state)
        thresholds = lookup.thresholds.tolist()
        thresholds = [*thresholds[:m], threshold, *thresholds[m + 1 : len(payload.weights)]]  # fewer, after a merge
        distances = lookup.distances.index_copy(0, own, d.to(lookup.distances))
        return replace(memory, lookup=replace(lookup, distances=distances, thresholds=torch.tensor(thresholds)))

    def _threshold(self, asked: Asked, memory: WiseMemory, own: Tensor, w: Tensor, d: Tensor, state: State) -> float:
        """Where the edits ``own`` (indices), with distances ``d``, and they in other words part from what is not
        edited, as far as their matrix w was not trained on it; below the smallest d."""
        draw = torch.Generator().manual_seed(self.seed + len(memory.log))
        some = own[torch.randperm(len(own), generator=draw)[:SAMPLE]].tolist()
        found = alike(asked, memory.log, some, state.info["names"], self.others, draw)
        same, others = (
            PromptInputs.read(asked.inputs(texts), self.at).distances(w) if texts else d[:0] for texts in found
        )
        outside = [x for x in (self._usual(state, w).distances(w), others) if len(x)]
        return min(parting(torch.cat([d, same]), outside), SLACK * float(d.min()))

    def _usual(self, state: State, like: Tensor) -> PromptInputs:
        """The inputs that the state holds of each text, where ``like`` is."""
        lengths = state.tensors["lengths"].cpu()
        of = torch.arange(len(lengths)).repeat_interleave(lengths)
        return PromptInputs(state.tensors["x"].to(like), of.to(like.device), len(lengths))
