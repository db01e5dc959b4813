"""GRACE: keys with a radius each; where a prompt's query falls within one, its value replaces the layer's output.

Hartvigsen et al. 2023, arXiv:2211.11031. The site is a down projection's output and the query its input at the
prompt's last token: that is what the paper edits in GPT-J and Llama (in GPT-2 XL it is the up projection).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from typing_extensions import override

from errata.methods.base import Tags
from errata.methods.codebook.spheres import Spheres
from errata.methods.codebook.values import ValueMethod, Values
from errata.methods.memory.adapter import EditMemory
from errata.methods.settings import setting


class GraceCodebook(EditMemory[Spheres, Values]):
    """Values of prompts that lie within a sphere around an edit's prompt."""

    kind: ClassVar[str] = "grace"
    by_rows: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class GRACE(ValueMethod):
    """A codebook that replaces a layer's output for prompts near those that were edited."""

    name: ClassVar[str] = "grace"
    family: ClassVar[str] = "codebook"
    paper: ClassVar[str] = "Hartvigsen et al. 2023, Aging with GRACE, arXiv:2211.11031"
    stores: ClassVar[str] = "a key, a value and a radius for each edit; no weight changes"
    part: ClassVar[type[EditMemory[Any, Any]]] = GraceCodebook
    height: ClassVar[Fraction] = Fraction(5, 6)
    tags: ClassVar[Tags] = Tags(quick={"steps": 30}, memory=True)

    layer: int | None = setting(None, "5/6 up, with a block above: 40 of 48 (paper: 35), 23 of 28 (25), 26 of 32 (27)")
    steps: int = setting(100, "released code", key="n_iter", above=0)
    radius: float | None = setting(
        None, "of each edit half the way to where other texts begin (all but `share` of them); paper: 1.0", key="eps"
    )

    @override
    def keys(self, f: int) -> Spheres:
        return Spheres.empty(f, split=self.radius is not None)

    @override
    def fixed_reach(self) -> float | None:
        return self.radius
