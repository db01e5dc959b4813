"""MELO: clusters of questions at one layer pick a small LoRA for the layers above it.

Yu et al. 2024, arXiv:2312.11795. The decision is taken where the prompt ends, at the layer of the clusters; the layers
above it come later in the same pass, so that the prompt's own tokens are read with the LoRA in force.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import State, Tags
from errata.methods.codebook.base import Codebook, KeyedMethod, Logged, costs, descend, drawn
from errata.methods.codebook.spheres import Spheres
from errata.methods.settings import setting
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted
from errata.patch.delta import weight_shape
from errata.patch.parts import output_replaced

SIZED = 64  # texts by which the size of what goes through a linear layer is told

Pair = tuple[Tensor, Tensor]  # of a LoRA at one path, or of several: A (…, r, in) and B (…, out, r)


@dataclass(frozen=True, eq=False)
class MeloClusters(Spheres):
    """Questions in clusters, and blocks of LoRA. ``settings`` are radius, rank, layers and targets.

    ``owner[i]`` is the cluster of question i (named after the first in it), or -1 once it is forgotten; ``values[i]``
    its block. The nearest question of the nearest cluster answers, if the cluster reaches that far.
    """

    kind: ClassVar[str] = "melo"
    side: ClassVar[Literal["in", "out"]] = "out"

    blocks: Mapping[str, Pair] = field(default_factory=dict[str, Pair])  # path -> the blocks, stacked

    @classmethod
    def empty(cls, site: str, settings: Mapping[str, Any], f: int, d: int) -> Self:
        return super().empty(site, settings, f, 1)

    # The clusters ----------------------------------------------------------------------------------

    def centres(self) -> Tensor:
        """(n, f): the mean of each cluster's questions, in the row of the question that it is named after."""
        held = self.owner >= 0
        sums = torch.zeros_like(self.queries).index_add(0, self.owner[held], self.queries[held])
        counts = torch.bincount(self.owner[held], minlength=len(self.owner))
        return sums / counts.clamp(min=1)[:, None]

    def look(self, q: Tensor) -> tuple[Tensor, Tensor]:
        cluster, near = super().look(q)
        others = self.owner.to(q.device) != cluster[:, None]  # (b, n)
        return torch.cdist(q, self.queries.to(q)).masked_fill(others, torch.inf).argmin(-1), near

    def joined(self, entry: int, distance: float) -> float:
        """As far as its farthest question, and at least as at first."""
        return max(float(self._distances(entry).max()), float(self.settings["radius"]))

    def split(self, entry: int) -> None:
        """Questions that the smaller cluster does not reach are forgotten."""
        members = (self.owner == entry).nonzero()[:, 0]
        for i in members[self._distances(entry) > self.radii[entry]].tolist():
            self.forget(i)

    def _distances(self, entry: int) -> Tensor:
        """Of the questions of a cluster from its centre."""
        return (self.queries[self.owner == entry] - self.centres()[entry]).norm(dim=-1)

    def forget(self, i: int) -> None:
        cluster = int(self.owner[i])
        self.owner[i] = -1
        if cluster >= 0 and not (self.owner == cluster).any():
            self.radii[cluster] = -1.0

    @cached_property
    def latest(self) -> Tensor:
        return torch.arange(len(self.log))  # a question answers for itself

    def group(self, i: int) -> list[int]:
        """The edits that share a block with edit i, up to itself."""
        return (self.values[: i + 1, 0] == self.values[i, 0]).nonzero()[:, 0].tolist()

    def without(self, edit_id: str) -> "Codebook | None":
        book = super().without(edit_id)
        if book is None or book is self:
            return book
        used, values = book.values[:, 0].long().unique(return_inverse=True)
        blocks = {path: (a[used], b[used]) for path, (a, b) in self.blocks.items()}
        return replace(cast("MeloClusters", book), values=values[:, None].to(self.values), blocks=blocks)

    # The LoRA --------------------------------------------------------------------------------------

    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        self.decided(call, x, y)
        return y

    @contextmanager
    def in_force(self, lm: HFLM) -> Generator[None, None, None]:
        adapted = (output_replaced(lm, path, partial(self._adapt, path)) for path in self.blocks)
        with super().in_force(lm), hooks.all_of(adapted):
            yield

    def _adapt(self, path: str, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        if call is None or id(self) not in call.memo:
            return y
        entry = call.memo[id(self)].cpu()  # (b,)
        block = self.values[entry.clamp(min=0), 0].long()
        added = low_rank(x, self.blocks[path][0][block], self.blocks[path][1][block])
        return torch.where((entry >= 0).to(y.device)[:, None, None], y + added.to(y), y)

    # What it holds ---------------------------------------------------------------------------------

    def entries(self) -> list[dict[str, Any]]:
        return [
            {
                "edit": edit.id,
                "prompt": edit.prompt,
                "cluster": int(self.owner[i]),
                "block": int(self.values[i, 0]),
                "radius": round(float(self.radii[self.owner[i]]), 4),
            }
            for i, edit in enumerate(self.log)
            if self.owner[i] >= 0
        ]

    def summary(self) -> list[dict[str, Any]]:
        (line,) = super().summary()
        blocks = {path: len(a) for path, (a, _) in self.blocks.items()}
        return [line, *({"kind": self.kind, "site": path, "blocks": n} for path, n in blocks.items())]

    def tensors(self) -> dict[str, Tensor]:
        a = {f"a.{path}": pair[0] for path, pair in self.blocks.items()}
        return super().tensors() | a | {f"b.{path}": pair[1] for path, pair in self.blocks.items()}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        own = {name: its for name, its in tensors.items() if not name.startswith(("a.", "b."))}
        paths = [name.removeprefix("a.") for name in tensors if name.startswith("a.")]
        return replace(super().build(config, own), blocks={p: (tensors[f"a.{p}"], tensors[f"b.{p}"]) for p in paths})


def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(b, t, out): B A x, with an A (b, r, in) and a B (b, out, r) for each row."""
    x = at_least_float32(x)
    return (x @ a.to(x).mT) @ b.to(x).mT


@dataclass(frozen=True, kw_only=True)
class MELO(KeyedMethod):
    """A few edits share a LoRA, which is in force for questions that fall into a cluster of theirs.

    A and B are trained in units of what goes in and comes out where they sit; the released code scales a block's step
    by the number of blocks instead. Answers are held against each other by their ids (there: by the sum of them).
    """

    name: ClassVar[str] = "melo"
    paper: ClassVar[str] = "Yu et al. 2024, MELO, arXiv:2312.11795"
    stores: ClassVar[str] = "clusters of questions, and a LoRA for a few edits each; no weight changes"
    book: ClassVar[type[Codebook]] = MeloClusters
    tags: ClassVar[Tags] = Tags(quick={"steps": 30})

    layer: int | None = setting(None, "of the clusters: 3/4 up, with two blocks above: 36 of 48 (paper: 35)")
    layers: tuple[int, ...] | None = setting(
        None, "of the LoRA, above that: the next two (paper: 36 and 37), in a decoder too"
    )
    targets: tuple[Literal["mlp_in", "mlp_out"], ...] = setting(("mlp_in",), "paper, GPT-2 XL; T5: both")
    share: float = setting(1e-2, "of pairs of different texts, that look like the same question; measured here")
    rank: int = setting(2, "paper", above=0)
    edits: int = setting(4, "of a block; paper, GPT-2 XL", above=0)
    steps: int = setting(50, "paper", above=0)
    lr: float = setting(0.05, "of a size; paper: 1e-3 to 1e-2 outright", above=0)
    halve: int = setting(20, "paper: steps after which the rate is half of what it was")
    radius: float | None = setting(
        None, "half the distance that `share` of pairs of texts fall short of; paper: 0.1 to 75"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets or (self.layers is not None and not self.layers):
            raise BadInput("melo needs targets, and layers for its LoRA or None for the two above the clusters")

    def default_layer(self, depth: int) -> int:
        return min(3 * depth // 4, depth - 3)

    def reach(self, quantiles: Tensor) -> dict[str, float]:
        return {"radius": float(quantiles[round(self.share * (len(quantiles) - 1))]) / 2}

    def rule(self) -> dict[str, Any]:
        return {
            "radius": self.radius,
            "rank": self.rank,
            "layers": list(self.layers or ()),
            "targets": list(self.targets),
        }

    def measured(self, lm: HFLM, prompts: Sequence[list[int]]) -> dict[str, Any]:
        return {"sizes": _sizes(lm, self._paths(lm), prompts[:SIZED])}

    def resolve(self, lm: HFLM, state: State) -> Self:
        method = super().resolve(lm, state)
        method = replace(method, layers=method._layers(lm))
        if missing := [path for path in method._paths(lm) if path not in state.info["sizes"]]:
            raise BadInput(f"this state was prepared without {missing[0]}; prepare anew, with these settings")
        return method

    def _layers(self, lm: HFLM) -> tuple[int, ...]:
        at, depth = self._layer(lm), lm.sites.prompt_stack.depth
        layers = tuple(range(at + 1, min(at + 3, depth))) if self.layers is None else self.layers
        if not layers or min(layers) <= at or max(layers) >= depth:
            raise BadInput(
                f"melo's LoRA must lie above its clusters (layer {at}) and within 0 to {depth - 1}; found {layers}"
            )
        return layers

    def _paths(self, lm: HFLM) -> list[str]:
        """The linear layers that get a LoRA: of the stack that reads the prompt, and of the decoder."""
        stacks = [lm.sites.prompt_stack, lm.sites.decoder] if lm.seq2seq else [lm.sites]
        paths: list[str] = []
        for stack in stacks:
            for target in self.targets:
                for layer in self._layers(lm):
                    its: str | tuple[str, ...] = getattr(stack, target)[layer] if layer < stack.depth else ()
                    paths += [its] if isinstance(its, str) else its
        return paths

    def _trained(
        self, lm: HFLM, old: Codebook, log: Sequence[Logged], queries: Tensor, outs: Tensor, state: State
    ) -> Codebook:
        assert isinstance(old, MeloClusters)
        first = int(old.values.max()) + 1 if len(old.log) else 0
        of = first + torch.arange(len(log)) // self.edits
        wanted = [log[at : at + self.edits] for at in range(0, len(log), self.edits)]
        blocks = self._blocks(lm, wanted, state.info["sizes"])
        if old.blocks:
            blocks = {
                p: (torch.cat([old.blocks[p][0], a]), torch.cat([old.blocks[p][1], b])) for p, (a, b) in blocks.items()
            }
        return replace(old.longer(log, queries, of[:, None].to(queries)), blocks=blocks)

    def _blocks(
        self, lm: HFLM, wanted: Sequence[Sequence[Logged]], sizes: Mapping[str, Sequence[float]]
    ) -> dict[str, Pair]:
        """Path -> for each group of edits an A (k, r, in) and a B (k, out, r) with which the model answers them."""
        widths = {path: weight_shape(lm, f"{path}.weight")[::-1] for path in sizes}
        units = {
            p: (1 / (size[0] * widths[p][0] ** 0.5), size[1]) for p, size in sizes.items()
        }  # so that A x is near 1
        leaves: list[list[Tensor]] = []  # A and B of each path in turn
        for its in wanted:
            noise = drawn(self.seed, its[0], torch.empty(self.rank, sum(n for n, _ in widths.values())))
            starts = ((2 * noise - 1) * 3**0.5).split([n for n, _ in widths.values()], 1)  # of variance 1
            outs = [torch.zeros(out, self.rank) for _, out in widths.values()]
            leaves.append([leaf.clone().requires_grad_() for pair in zip(starts, outs, strict=True) for leaf in pair])

        def stacked(groups: Sequence[int]) -> dict[str, Pair]:
            columns = [torch.stack(its) for its in zip(*(leaves[i] for i in groups), strict=True)]
            pairs = zip(units.items(), columns[::2], columns[1::2], strict=True)
            return {path: (a * unit[0], b * unit[1]) for (path, unit), a, b in pairs}

        def losses(running: list[int]) -> Tensor:
            of = [n for n, i in enumerate(running) for _ in wanted[i]]
            with hooks.all_of(
                output_replaced(lm, path, partial(_added, a[of], b[of])) for path, (a, b) in stacked(running).items()
            ):
                return costs(lm, [wanted[i] for i in running])

        lengths = [sum(len(edit.asked) + len(edit.answer) for edit in its) for its in wanted]
        for running in budgeted(lengths, lm.budget):
            descend(leaves, running, losses, self.steps, self.lr, self.stop, self.halve)
        return {path: (a.detach(), b.detach()) for path, (a, b) in stacked(range(len(wanted))).items()}


def _added(a: Tensor, b: Tensor, call: Any, x: Tensor, y: Tensor) -> Tensor:
    return y + low_rank(x, a, b).to(y)


@torch.no_grad()
def _sizes(lm: HFLM, paths: Sequence[str], prompts: Sequence[list[int]]) -> dict[str, list[float]]:
    """Root mean squares of what goes in and comes out of linear layers."""
    found: dict[str, list[float]] = {}

    def note(path: str, call: Any, x: Tensor, y: Tensor) -> Tensor:
        real = call.mask.to(x.device) > 0 if call.mask.shape == x.shape[:2] else ...  # a decoder's only token is real
        found[path] = [float(at_least_float32(its[real]).square().mean().sqrt()) for its in (x, y)]
        return y

    with hooks.all_of(output_replaced(lm, path, partial(note, path)) for path in paths):
        lm.target_logits([(prompt, [lm.tokens.fill]) for prompt in prompts])
    return found
