"""GRACE: keys with a radius each; where a prompt's query falls within one, its value replaces the layer's output.

Hartvigsen et al. 2023, arXiv:2211.11031. The site is a down projection's output and the query its input at the
prompt's last token: that is what the paper edits in GPT-J and Llama (in GPT-2 XL it is the up projection).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
from typing_extensions import override

from errata.methods.base import State, Tags
from errata.methods.codebook.keys import Spheres
from errata.methods.codebook.training import key_statistics
from errata.methods.codebook.values import Values, ValueSettings, train_values
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import Measured, quantile
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.patch.delta import weight_shape


class GraceCodebook(EditMemory[Spheres, Values]):
    """Values of prompts that lie within a sphere around an edit's prompt."""

    kind: ClassVar[str] = "grace"


@dataclass(frozen=True, kw_only=True)
class GRACE(ValueSettings, MemoryMethod):
    """A codebook that replaces a layer's output for prompts near those that were edited."""

    name: ClassVar[str] = "grace"
    family: ClassVar[str] = "codebook"
    paper: ClassVar[str] = "Hartvigsen et al. 2023, Aging with GRACE, arXiv:2211.11031"
    stores: ClassVar[str] = "a key, a value and a radius for each edit; no weight changes"
    part: ClassVar[type[EditMemory[Any, Any]]] = GraceCodebook
    height: ClassVar[Fraction] = Fraction(5, 6)
    blocks_above: ClassVar[int] = 2
    tags: ClassVar[Tags] = Tags(quick={"steps": 30}, memory=True)

    layer: int | None = setting(
        None, "5/6 up, with two blocks above: 40 of 48 (paper: 35), 23 of 28 (25), 26 of 32 (27)"
    )
    texts: int = setting(512, "openings of texts whose queries are compared")
    share: float = setting(1e-3, "of pairs of different texts, that count as the same question", most=1)
    steps: int = setting(100, "released code", key="n_iter", above=0)
    radius: float | None = setting(
        None, "half the distance that `share` of pairs of texts fall short of; paper: 1.0", key="eps"
    )

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        return key_statistics(lm, self.site(lm), Spheres.empty(0, radius=0.0), texts)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        return resolved.filled(radius=quantile(state.tensors["apart"], self.share) / 2, lr=state.info["size"])

    @override
    def empty(self, lm: HFLM, state: State) -> GraceCodebook:
        d, f = weight_shape(lm, f"{self.site(lm)}.weight")
        values = Values(replace=self.replace, add=False, values=torch.empty(0, d))
        return GraceCodebook(self.site(lm), (), Spheres.empty(f, radius=self.radius), values)

    @override
    def train(self, lm: HFLM, old: GraceCodebook, log: Sequence[EditRecord], state: State) -> GraceCodebook:
        scale = state.info["size"] if self.init == "cold" else None
        return train_values(lm, old, log, self.descent, self.seed, scale)
