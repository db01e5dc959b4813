"""MELO: clusters of prompts at one layer pick a small LoRA for the layers above it.

Yu et al. 2024, arXiv:2312.11795. The look-up runs where the prompt ends, at the layer of the clusters; the layers
above it come later in the same pass, so that the prompt's own tokens are read with the LoRA in force.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from typing_extensions import TypedDict, override

from errata.errors import BadInput, WrongModel
from errata.methods.base import Tags
from errata.methods.codebook.method import CodebookMethod
from errata.methods.codebook.spheres import Spheres
from errata.methods.codebook.training import Descent, Group, group_losses, uniform_noise
from errata.methods.memory.adapter import EditMemory, Payload, joint_training
from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.memory.nearest import Nearest
from errata.methods.memory.reading import Measured
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32
from errata.model.projection import flow_shape
from errata.patch.parts import output_replaced, widths
from errata.patch.schema import APART, Declared, Floats, Ints, Length, Number
from errata.printable import shown

SIZE_TEXTS = 64  # texts by which the size of what goes through a linear layer is measured

Factors = tuple[Tensor, Tensor]  # of LoRAs at one path: A (n, r, in) and B (n, out, r)


class Pair(TypedDict):
    """The shapes of :data:`Factors`, of b blocks."""

    a: Annotated[Tensor, Floats("b r *")]
    b: Annotated[Tensor, Floats("b * r")]


@dataclass(frozen=True, eq=False, kw_only=True)
class Clusters(Spheres):
    """Spheres of several prompts, around their mean. The query is the site's output at the prompt's last token.

    ``owner[i]`` is the cluster of prompt i, named after the first in it. The nearest prompt of the nearest cluster is
    found, if the cluster reaches that far. (The paper forgets prompts that a smaller cluster no longer reaches.)
    """

    queries: Annotated[Tensor, Floats("n out")]

    side: ClassVar[Literal["in", "out"]] = "out"
    together: ClassVar[bool] = False

    @property
    def cluster(self) -> Tensor:
        """The cluster of each prompt; of one that finds a newer edit it is its own. (n,)"""
        return torch.where(self.given_up, torch.arange(len(self.owner)), self.owner)

    @override
    def key(self, entry: int) -> Tensor:
        """The mean of the cluster's queries. (f,)"""
        return self.queries[self.cluster == entry].double().mean(0).to(self.queries)

    @cached_property
    def middles(self) -> Nearest:
        """The mean of each cluster's queries, in the row of the prompt that it is named after."""
        middles = Nearest(self.queries, self.index)
        cluster = self.cluster
        for entry in cluster[(cluster >= 0) & (cluster != torch.arange(len(cluster)))].unique().tolist():
            middles.put(entry, self.key(entry))
        return middles

    @property
    @override
    def keys(self) -> Nearest:
        return self.middles

    @override
    def goes_on(self, old: Any, log: EditLog) -> None:
        super().goes_on(old, log)
        object.__setattr__(self, "middles", Nearest(self.queries, old.middles))

    @override
    def open(self, i: int, log: EditLog) -> None:
        self.middles.back(i)
        super().open(i, log)

    @override
    def match(self, q: Tensor) -> tuple[Tensor, Tensor]:
        clusters, near = super().match(q)
        cluster = self.cluster
        members = {entry: (cluster == entry).nonzero()[:, 0] for entry in clusters.tolist() if entry >= 0}
        return self._nearest_of(clusters, q, members), near

    @override
    def found(self, q: Tensor) -> Tensor:
        return self._nearest_of(super().found(q), q, self.several)

    @cached_property
    def several(self) -> dict[int, Tensor]:
        """The prompts of each cluster that has more than its first: of a table whose edits have all been placed."""
        cluster, order = self.cluster.sort(stable=True)
        entries, counts = cluster.unique_consecutive(return_counts=True)
        some = ((counts > 1) & (entries >= 0)).nonzero()[:, 0].tolist()
        members = order.split(counts.tolist())
        return {int(entries[i]): members[i] for i in some}

    def _nearest_of(self, clusters: Tensor, q: Tensor, members: Mapping[int, Tensor]) -> Tensor:
        """The prompts of clusters (b,) that are nearest to queries (b, f), by their ``members``; -1 of none. (b,)"""
        nearest = clusters.clone()
        for at, cluster in enumerate(clusters.tolist()):
            if cluster in members:
                some = members[cluster]
                nearest[at] = some[self.index.distances(q[at].cpu(), some).argmin()]
        return nearest

    @override
    def radius_joined(self, entry: int, distance: float) -> float:
        """The distance of its farthest prompt, and at least the first radius."""
        self.middles.put(entry, self.key(entry))
        apart = self.index.distances(self.middles.moved[entry], (self.owner == entry).nonzero()[:, 0])
        return max(float(apart.max()), float(self.reach[entry]))


@dataclass(frozen=True, eq=False, kw_only=True)
class LoRABlocks(Payload):
    """A LoRA at several paths for each block of a few edits."""

    rank: Annotated[int, Number("r")]
    layers: list[int]
    targets: list[str]
    of: Annotated[Tensor, Ints("n", 0, "b")]  # the block of each edit
    # path -> those of all blocks
    factors: Annotated[Mapping[str, Factors], APART] = field(default_factory=dict[str, Factors])

    @override
    def apply(self, call: Call, x: Tensor, y: Tensor, entry: Tensor) -> Tensor:
        return y  # the LoRAs sit elsewhere: :meth:`at`

    def at(self, path: str, x: Tensor, y: Tensor, entry: Tensor) -> Tensor:
        """The output of the linear layer at ``path``, with the blocks of the entries (b,) in force. (b, t, out)"""
        block = self.of[entry.cpu().clamp(min=0)]
        a, b = self.factors[path]
        return torch.where((entry >= 0).to(y.device)[:, None, None], y + low_rank(x, a[block], b[block]).to(y), y)

    @override
    def tensors(self) -> dict[str, Tensor]:
        pairs = {f"{n}.{path}": t for path, ab in self.factors.items() for n, t in zip("ab", ab, strict=True)}
        return {**super().tensors(), **pairs}

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        a, b = ({n[2:]: t for n, t in tensors.items() if n.startswith(side)} for side in ("a.", "b."))
        if unpaired := sorted(a.keys() ^ b.keys()):
            raise BadInput(f"of the two factors at {shown(unpaired[0])} one is missing")
        blocks = super().build(config, {n: t for n, t in tensors.items() if not n.startswith(("a.", "b."))})
        return replace(blocks, factors={path: (a[path], b[path]) for path in a})

    @override
    def declared(self, prefix: str = "") -> list[Declared]:
        pairs = [(f"{prefix}{path} ", Pair, {"a": a, "b": b}) for path, (a, b) in self.factors.items()]
        return [*super().declared(prefix), *pairs]

    @override
    def kept(self, log: EditLog, keep: Sequence[int]) -> Self:
        kept = torch.zeros(len(log), dtype=torch.bool)
        kept[list(keep)] = True
        for i in (~kept).nonzero()[:, 0].tolist():
            if bool((later := kept[i:] & (self.of[i:] == self.of[i])).any()):
                raise joint_training(log[i + int(later.int().argmax())], log, keep)
        used, of = self.of[list(keep)].unique(return_inverse=True)
        return replace(self, of=of, factors={path: (a[used], b[used]) for path, (a, b) in self.factors.items()})

    @override
    def details(self, log: EditLog, i: int) -> dict[str, Any]:
        return {"block": int(self.of[i])}


class MeloClusters(EditMemory[Clusters, LoRABlocks]):
    """LoRAs of prompts that lie within a cluster of edits' prompts."""

    kind: ClassVar[str] = "melo"
    by_rows: ClassVar[bool] = True

    @contextmanager
    @override
    def in_force(self, lm: HFLM) -> Generator[None, None, None]:
        adapted = (output_replaced(lm, path, partial(self._at, path)) for path in self.payload.factors)
        with super().in_force(lm), hooks.all_of(adapted):
            yield

    @override
    def check_model(self, lm: HFLM) -> None:
        """The LoRAs sit at linear layers of their sizes, too."""
        super().check_model(lm)
        for path, (a, b) in self.payload.factors.items():
            if widths(lm, path, self.kind) != (b.shape[1], a.shape[2]):
                raise WrongModel(f"the melo part of this patch expects {path} to be {b.shape[1]} x {a.shape[2]}")

    def _at(self, path: str, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        entry = None if call is None else call.memo.get(id(self))
        return y if entry is None else self.payload.at(path, x, y, self.lookup.rows(entry))

    @override
    def summary(self) -> list[dict[str, Any]]:
        blocks = {path: len(a) for path, (a, _) in self.payload.factors.items()}
        return [*super().summary(), *({"kind": self.kind, "site": path, "blocks": n} for path, n in blocks.items())]


def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """B A x, with an A (b, r, in) and a B (b, out, r) for each row of x (b, t, in). (b, t, out)"""
    x = at_least_float32(x)
    return (x @ a.to(x).mT) @ b.to(x).mT


class OutputQueries(TypedDict):
    """What MELO's state holds: texts, their queries, and sizes at the linear layers that get a LoRA."""

    queries: Annotated[Tensor, Floats("texts out")]
    texts: Annotated[list[str], Length("texts")]
    size: float
    sizes: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class MELO(CodebookMethod):
    """A few edits share a LoRA, which is in force for prompts that fall into a cluster of theirs.

    A and B are trained in units of what goes in and comes out where they sit; the released code scales a block's step
    by the number of blocks instead. Targets are compared by their ids (there: by the sum of them).
    """

    name: ClassVar[str] = "melo"
    family: ClassVar[str] = "codebook"
    paper: ClassVar[str] = "Yu et al. 2024, MELO, arXiv:2312.11795"
    stores: ClassVar[str] = "clusters of questions, and a LoRA for a few edits each; no weight changes"
    part: ClassVar[type[EditMemory[Any, Any]]] = MeloClusters
    holds: ClassVar[type[Any] | None] = OutputQueries
    height: ClassVar[Fraction] = Fraction(3, 4)
    tags: ClassVar[Tags] = Tags(quick={"steps": 30}, memory=True)

    layer: int | None = setting(None, "of the clusters: 3/4 up, with a block above: 36 of 48 (paper: 35)")
    layers: tuple[int, ...] | None = setting(
        None, "of the LoRA, above that: the next two (paper: 36 and 37), in a decoder too"
    )
    targets: tuple[Literal["mlp_in", "mlp_out"], ...] = setting(("mlp_in",), "paper, GPT-2 XL; T5: both")
    radius: float | None = setting(
        None,
        "of each edit half the way to where other texts begin (all but `share` of them); paper: 0.1 to 75",
        key="init_radius",
    )
    rank: int = setting(2, "paper", key="num_rank_per_block", above=0)
    edits: int = setting(4, "of a block; paper, GPT-2 XL", key="num_edit_per_block", above=0)
    steps: int = setting(50, "paper", key="num_iter", above=0)
    lr: float = setting(0.05, "of a size; paper: 1e-3 to 1e-2 outright", key="edit_lr", above=0)
    halve: int = setting(20, "paper: steps after which the rate is half of what it was")
    stop: float = setting(0.02, "loss of a target token below which a block is done; released code: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets or (self.layers is not None and not self.layers):
            raise BadInput("melo needs targets, and layers for its LoRA or None for the two above the clusters")

    @override
    def keys(self, f: int) -> Clusters:
        return Clusters.empty(f, split=self.radius is not None)

    @override
    def fixed_reach(self) -> float | None:
        return self.radius

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        tensors, info = super().measure(lm, texts)
        return tensors, info | {"sizes": _sizes(lm, self._paths(lm), texts[:SIZE_TEXTS])}

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        resolved = resolved.filled(layers=self._lora_layers(lm))
        if missing := [path for path in resolved._paths(lm) if path not in state.info["sizes"]]:
            raise BadInput(f"this state was prepared without {missing[0]}; prepare anew, with these settings")
        return resolved

    def _lora_layers(self, lm: HFLM) -> tuple[int, ...]:
        at, depth = self.resolved_layer(lm), lm.sites.prompt_stack.depth
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
                for layer in self._lora_layers(lm):
                    found: str | tuple[str, ...] = getattr(stack, target)[layer] if layer < stack.depth else ()
                    paths += [found] if isinstance(found, str) else found
        return paths

    @override
    def empty(self, lm: HFLM, state: State) -> MeloClusters:
        d, _ = flow_shape(lm.model, lm.sites, self.site(lm))
        layers, targets = list(self.layers or ()), [str(target) for target in self.targets]
        blocks = LoRABlocks(rank=self.rank, layers=layers, targets=targets, of=torch.empty(0, dtype=torch.long))
        return MeloClusters(self.site(lm), (), self.keys(d), blocks)

    @override
    def train(self, lm: HFLM, old: MeloClusters, log: Sequence[EditRecord], state: State) -> MeloClusters:
        lookup, training, _ = self.placed(lm, old, log, state)
        whole, blocks = (*old.log, *log), old.payload
        first = int(blocks.of.max()) + 1 if len(blocks.of) else 0
        of = torch.cat([blocks.of, first + torch.arange(len(log)) // self.edits])
        asked = [self.asked(lm, whole, training[i], len(old.log) + i) for i in range(len(log))]
        groups = [
            [record for some in asked[at : at + self.edits] for record in some] for at in range(0, len(log), self.edits)
        ]
        factors = self._trained(lm, groups, state.info["sizes"])
        if blocks.factors and blocks.factors.keys() != factors.keys():
            raise BadInput(
                f"the LoRA in prior sits at {', '.join(blocks.factors)}, and this one at {', '.join(factors)}"
            )
        for path, pair in blocks.factors.items():
            factors[path] = (torch.cat([pair[0], factors[path][0]]), torch.cat([pair[1], factors[path][1]]))
        return replace(old, log=whole, lookup=lookup, payload=replace(blocks, of=of, factors=factors))

    def _trained(self, lm: HFLM, groups: Sequence[Group], sizes: Mapping[str, Sequence[float]]) -> dict[str, Factors]:
        """Path -> for each group of edits an A and a B with which the model gives their targets."""
        shapes = {path: flow_shape(lm.model, lm.sites, path) for path in sizes}  # (out, in)
        units = {  # so that A x is near 1
            path: (1 / (size[0] * shapes[path][1] ** 0.5), size[1]) for path, size in sizes.items()
        }
        leaves = [self._start(group[0], list(shapes.values())) for group in groups]

        def stacked(chosen: Sequence[int]) -> dict[str, Factors]:
            columns = [torch.stack(column) for column in zip(*(leaves[i] for i in chosen), strict=True)]
            pairs = zip(units.items(), columns[::2], columns[1::2], strict=True)
            return {path: (a * unit[0], b * unit[1]) for (path, unit), a, b in pairs}

        def losses(running: list[int]) -> Tensor:
            row = [n for n, i in enumerate(running) for _ in groups[i]]
            with hooks.all_of(
                output_replaced(lm, path, partial(_added, a[row], b[row])) for path, (a, b) in stacked(running).items()
            ):
                return group_losses(lm, [groups[i] for i in running])

        Descent(self.steps, self.lr, self.stop, self.halve).run(lm, groups, leaves, losses)
        return {path: (a.detach(), b.detach()) for path, (a, b) in stacked(range(len(groups))).items()}

    def _start(self, first: EditRecord, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """A (r, in) of variance 1 and B (out, r) of zeros for each path in turn, as leaves."""
        noise = uniform_noise(self.seed, first, torch.empty(self.rank, sum(n for _, n in shapes)))
        starts = ((2 * noise - 1) * 3**0.5).split([n for _, n in shapes], 1)
        pairs = zip(starts, (torch.zeros(out, self.rank) for out, _ in shapes), strict=True)
        return [leaf.clone().requires_grad_() for pair in pairs for leaf in pair]


def _added(a: Tensor, b: Tensor, call: Any, x: Tensor, y: Tensor) -> Tensor:
    return y + low_rank(x, a, b).to(y)


@torch.no_grad()
def _sizes(lm: HFLM, paths: Sequence[str], texts: Sequence[str]) -> dict[str, list[float]]:
    """Path -> root mean squares of what goes into and comes out of the linear layer there."""
    found: dict[str, list[float]] = {}

    def note(path: str, call: Any, x: Tensor, y: Tensor) -> Tensor:
        real = call.mask.to(x.device) > 0 if call.mask.shape == x.shape[:2] else ...  # a decoder's only token is real
        found[path] = [float(at_least_float32(flow[real]).square().mean().sqrt()) for flow in (x, y)]
        return y

    with hooks.all_of(output_replaced(lm, path, partial(note, path)) for path in paths):
        lm.target_logits([(lm.tokens.prompt(text), [lm.tokens.fill]) for text in texts])
    return found
