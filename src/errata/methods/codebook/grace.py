"""GRACE: keys with a radius each; the layer says an entry's value where a question falls within its radius.

Hartvigsen et al. 2023, arXiv:2211.11031. The site is a down projection's output and the query its input at the
prompt's last token: that is what the paper edits in GPT-J and Llama (in GPT-2 XL it is the up projection).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from errata.methods.base import Tags
from errata.methods.codebook.base import Codebook, CodebookMethod
from errata.methods.codebook.spheres import Spheres
from errata.methods.settings import setting


class GraceCodebook(Spheres):
    """An entry's centre is its first question. ``settings`` are replace and radius."""

    kind: ClassVar[str] = "grace"

    def joined(self, entry: int, distance: float) -> float:
        return max(float(self.radii[entry]), distance)


@dataclass(frozen=True, kw_only=True)
class GRACE(CodebookMethod):
    """A codebook that replaces what a layer says to questions near those that were edited."""

    name: ClassVar[str] = "grace"
    paper: ClassVar[str] = "Hartvigsen et al. 2023, Aging with GRACE, arXiv:2211.11031"
    stores: ClassVar[str] = "a key, a value and a radius for each edit; no weight changes"
    book: ClassVar[type[Codebook]] = GraceCodebook
    tags: ClassVar[Tags] = Tags(quick={"steps": 30})

    layer: int | None = setting(
        None, "5/6 up, with two blocks above: 40 of 48 (paper: 35), 23 of 28 (25), 26 of 32 (27)"
    )
    steps: int = setting(100, "released code", above=0)
    radius: float | None = setting(None, "half the distance that `share` of pairs of texts fall short of; paper: 1.0")

    def default_layer(self, depth: int) -> int:
        return min(5 * depth // 6, depth - 3)

    def reach(self, quantiles: Tensor) -> dict[str, float]:
        return {"radius": float(quantiles[round(self.share * (len(quantiles) - 1))]) / 2}

    def rule(self) -> dict[str, Any]:
        return {"replace": self.replace, "radius": self.radius}
