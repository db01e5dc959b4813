"""A method in one file, with a part of its own: a vector that is added wherever the last block's MLP writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from errata.methods.base import Method, State
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.parts import Adapter
from errata.patch.patch import Patch
from errata.types import Edit


@dataclass(frozen=True, eq=False)
class ToyVector(Adapter):
    """Adds one vector to what a module puts out, at every token."""

    kind: ClassVar[str] = "toy-vector"
    site: str
    vector: Tensor  # (d,)

    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        return y + self.vector.to(y)

    def config(self) -> dict[str, Any]:
        return {"site": self.site}

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ToyVector":
        return cls(config["site"], tensors["vector"])


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Adds the head's rows of the answers' first tokens: those answers become likelier after any prompt."""

    name: ClassVar[str] = "toy"
    family: ClassVar[str] = "toy"
    paper: ClassVar[str] = "none"
    stores: ClassVar[str] = "a vector"

    strength: float = setting(100.0, "of the sum of the head's rows", above=0)

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        head = lm.model.get_parameter(f"{lm.sites.lm_head}.weight").detach().float().cpu()
        first = [lm.tokens.target(edit.prompt, edit.target_new)[0] for edit in edits]
        vector = self.strength * head[first].sum(0)  # (d,)
        return prior + Patch((ToyVector(lm.sites.mlp_out[-1], vector),))
