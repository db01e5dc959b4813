"""Steering: a direction, found by contrast, that is added to the hidden state wherever the model answers.

For changes of manner or of a whole class of answers ("everybody speaks French"), not of single facts: it acts on every
prompt. Panickssery et al. 2023, arXiv:2312.06681; pairs that differ in their context as in Turner et al. 2023,
arXiv:2308.10248.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from string import Formatter
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from errata.answers import answer_of
from errata.errors import BadInput, Unsupported
from errata.methods.base import Method, State, Tags
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.parts import Adapter
from errata.patch.patch import Patch
from errata.types import Edit

SHARE = 0.6  # of a hidden state's length is what strength 1 adds; measured on the bundled model


@dataclass(frozen=True)
class Pair:
    """An edit as the direction remembers it: after ``prompt`` rather ``towards`` than ``away``."""

    id: str
    prompt: str
    towards: str
    away: str


@dataclass(frozen=True, eq=False)
class SteeringVector(Adapter):
    """Adds to what a block hands on, from the prompt's last token on: the direction of the mean of ``differences``,
    ``strength`` x SHARE as long as the hidden states were. Lengths of raw differences say how far two answers are
    apart, not how hard to push (the paper makes them alike too)."""

    kind: ClassVar[str] = "steering"

    site: str  # a block
    strength: float
    pairs: tuple[Pair, ...]
    differences: Tensor  # (n, d)
    sizes: Tensor  # (n,): lengths of the hidden states that they are of

    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        if call is None or self.strength == 0 or (call.prompt_end is None and call.step == 0):
            return y
        return torch.where(call.offsets(y.shape[1], y.device)[..., None] >= 0, y + self.vector.to(y), y)

    @property
    def vector(self) -> Tensor:
        """What is added: (d,)."""
        return SHARE * self.strength * self.sizes.mean() * normalize(self.differences.mean(0), dim=0)

    def longer(self, pairs: Sequence[Pair], differences: Tensor, sizes: Tensor) -> Self:
        return replace(
            self,
            pairs=(*self.pairs, *pairs),
            differences=torch.cat([self.differences, differences]),
            sizes=torch.cat([self.sizes, sizes]),
        )

    def without(self, edit_id: str) -> "SteeringVector | None":
        keep = [i for i, pair in enumerate(self.pairs) if pair.id != edit_id]
        if not keep:
            return None
        pairs = tuple(self.pairs[i] for i in keep)
        return replace(self, pairs=pairs, differences=self.differences[keep], sizes=self.sizes[keep])

    def entries(self) -> list[dict[str, Any]]:
        return [
            {"edit": pair.id, "prompt": pair.prompt, "towards": pair.towards, "away": pair.away, "norm": round(norm, 4)}
            for pair, norm in zip(self.pairs, self.differences.norm(dim=-1).tolist(), strict=True)
        ]

    def summary(self) -> list[dict[str, Any]]:
        norm = round(float(self.vector.norm()), 4)
        return [{"kind": self.kind, "site": self.site, "edits": len(self.pairs), "norm": norm}]

    def config(self) -> dict[str, Any]:
        return {"site": self.site, "strength": self.strength, "pairs": [asdict(pair) for pair in self.pairs]}

    def tensors(self) -> dict[str, Tensor]:
        return {"differences": self.differences, "sizes": self.sizes}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        pairs = tuple(Pair(**pair) for pair in config["pairs"])
        return cls(config["site"], config["strength"], pairs, **tensors)


@dataclass(frozen=True, kw_only=True)
class Steering(Method):
    """A direction from what the model is about to say when told the old answer to that when told the new one."""

    name: ClassVar[str] = "steering"
    family: ClassVar[str] = "representation"
    paper: ClassVar[str] = "Panickssery et al. 2023, Contrastive Activation Addition, arXiv:2312.06681"
    stores: ClassVar[str] = "a vector for each edit; their mean is added on every prompt; no weight changes"
    tags: ClassVar[Tags] = Tags(reads_context=True)

    layers: tuple[int, ...] | None = setting(
        None, "7/8 up, where an answer is about to be said; the paper steers manner: 13 of 32"
    )
    strength: float = setting(1.0, "paper: -2 to 2, in units of the difference; below 0 it steers away", least=-inf)
    context: str = setting("Fact: {fact}. {prompt}", "how a model is told a fact; the pair differs in it alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _names(self.context) == ["fact", "prompt"] or not self.context.endswith("{prompt}"):
            raise BadInput(
                "steering's context holds {fact} and then, at its end, {prompt}, where the model answers; "
                f"found {self.context!r}"
            )

    def resolve(self, lm: HFLM, state: State) -> Self:
        if lm.seq2seq:
            raise Unsupported("steering acts where a decoder reads its prompt; this model has an encoder for that")
        depth = lm.sites.depth
        layers = (7 * depth // 8,) if self.layers is None else self.layers
        if not layers or max(layers) >= depth:
            raise BadInput(f"steering's layers lie within 0 to {depth - 1}; found {list(layers)}")
        return replace(self, layers=tuple(sorted(set(layers))))

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layers is not None
        sites = [lm.sites.layer[layer] for layer in self.layers]
        old = [self._before(lm, prior, site) for site in sites]
        others = prior
        for part in old:
            others = others.swap(part, None)
        with others.without_wrappers().applied(lm) as edited:
            pairs = self._pairs(edited, edits)
            found = self._differences(edited, pairs, sites)
        for part in old:
            prior = prior.swap(part, part.longer(pairs, *found[part.site]))
        return prior

    def _before(self, lm: HFLM, prior: Patch, site: str) -> SteeringVector:
        """The direction in ``prior`` that these edits go into, or an empty one."""
        for part in prior.of_kind(SteeringVector):
            if part.site == site:
                if part.strength != self.strength:
                    raise BadInput(
                        f"the direction in prior has strength {part.strength}, and this one {self.strength}; "
                        "go on with the same strength"
                    )
                return part
        return SteeringVector(site, self.strength, (), torch.empty(0, lm.config.hidden_size), torch.empty(0))

    def _pairs(self, lm: HFLM, edits: Sequence[Edit]) -> tuple[Pair, ...]:
        """What to contrast; where an edit names no old answer, the model's own."""
        said = lm.generate([edit.prompt for edit in edits if edit.target_true is None], until_answer=True)
        own = iter([answer_of(text).strip() for text in said])
        away = [next(own) if edit.target_true is None else edit.target_true for edit in edits]
        return tuple(Pair(e.id, e.prompt, e.target_new, old) for e, old in zip(edits, away, strict=True))

    def _differences(self, lm: HFLM, pairs: Sequence[Pair], sites: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """site -> (n, d), (n,): h(told the new answer) - h(told the old one), where the model is about to answer, and
        how long the latter is."""
        told = [
            self.context.format(fact=f"{pair.prompt} {answer}", prompt=pair.prompt)
            for pair in pairs
            for answer in (pair.towards, pair.away)
        ]
        rows = [lm.tokens.prompt(text) for text in told]
        read = lm.read(rows, [[len(row) - 1] for row in rows], [(site, "out") for site in sites])
        return {site: (h[0::2] - h[1::2], h[1::2].norm(dim=-1)) for (site, _), h in read.items()}


def _names(form: str) -> list[str | None]:
    """The fields of a format, in order."""
    try:
        return [name for _, name, _, _ in Formatter().parse(form) if name is not None]
    except ValueError:
        return []
