"""What trained editors of MLP weights share: which blocks they change, and what they are trained for."""

from dataclasses import dataclass, replace
from typing import Self

from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import State
from errata.methods.settings import setting
from errata.methods.trained.method import TrainedMethod
from errata.model.hf import HFLM
from errata.model.sites import Sites


@dataclass(frozen=True, kw_only=True)
class MLPEditor(TrainedMethod):
    """A trained method that changes the MLP weights of some blocks, in an encoder-decoder those of both stacks."""

    layers: tuple[int, ...] | None = setting(None, "blocks whose MLP is changed: the last three (of 8 or more)")
    c_edit: float = setting(0.1, "MEND, appendix: weight of the new answers")
    c_keep: float = setting(1.0, "MEND, appendix: weight of what must stay", key="cloc")
    follow: int = setting(2, "prompts in other words for each example of a step", above=0)
    keep: int = setting(3, "prompts to keep for each example of a step", above=0)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        depth = lm.sites.depth
        layers = self.default_layers(lm) if self.layers is None else tuple(sorted(set(self.layers)))
        if not layers or layers[-1] >= depth:
            raise BadInput(f"{self.name}'s layers lie within 0 to {depth - 1}; found {list(layers)}")
        return replace(self, layers=layers)

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The blocks where the settings name none."""
        count = 2 if lm.seq2seq else 3
        return tuple(range(max(0, lm.sites.depth - count), lm.sites.depth))

    def linears(self, sites: Sites, layer: int) -> list[str]:
        """Paths of the linears of a block that are changed: the whole MLP."""
        return [*sites.mlp_in[layer], sites.mlp_out[layer]]

    def names(self, lm: HFLM) -> list[str]:
        """Parameter names of the weights that are changed; in an encoder-decoder those of both stacks."""
        assert self.layers is not None
        stacks = [lm.sites, *([lm.sites.encoder] if lm.sites.encoder else [])]
        return [
            f"{path}.weight"
            for sites in stacks
            for layer in self.layers
            if layer < sites.depth
            for path in self.linears(sites, layer)
        ]
