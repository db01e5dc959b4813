"""What editors of MLP weights share: which blocks and linears they change, and what they are trained for."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Method
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.method import TrainedMethod
from errata.model.hf import HFLM
from errata.model.projection import linears_of
from errata.model.reading import Pair
from errata.model.sites import Sites
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class MLPWeights(Method):
    """A method that changes MLP weights of some blocks, in an encoder-decoder those of both stacks."""

    layers: tuple[int, ...] | None = setting(
        None, "blocks whose MLP is changed; in an encoder, those as far from its end"
    )

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        depth = lm.sites.depth
        layers = self.default_layers(lm) if self.layers is None else tuple(sorted(set(self.layers)))
        if not layers or layers[0] < 0 or layers[-1] >= depth:
            raise BadInput(f"{self.name}'s layers lie within 0 to {depth - 1}; found {list(layers)}")
        return replace(self, layers=layers)

    @abstractmethod
    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The blocks where the settings name none."""

    def linears(self, sites: Sites, layer: int) -> list[str]:
        """Paths of the linears of a block that are changed: by default the down projection (:func:`linears_of`)."""
        return linears_of(sites, layer)

    def names(self, lm: HFLM) -> list[str]:
        """Parameter names of the weights that are changed."""
        assert self.layers is not None
        stacks = [lm.sites, *([lm.sites.encoder] if lm.sites.encoder else [])]
        depth = lm.sites.depth  # the same blocks of an encoder, counted from its end
        chosen = [(s, s.depth - depth + i) for s in stacks for i in self.layers if s.depth - depth + i >= 0]
        paths = [path for sites, i in chosen for path in self.linears(sites, i)]
        return [f"{path}.weight" for path in paths]

    def pairs(self, lm: HFLM, edits: Sequence[Edit]) -> list[Pair]:
        """Token ids of each edit's prompt and new answer."""
        return [(lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new)) for e in edits]


@dataclass(frozen=True, kw_only=True)
class MLPEditor(MLPWeights, TrainedMethod):
    """A trained method that changes MLP weights; by default the whole MLPs of the last blocks, as MEND does."""

    c_edit: float = setting(1.0, "weight of the new answers")
    c_keep: float = setting(1.0, "weight of what must stay", key="cloc")
    follow: int = setting(2, "prompts in other words for each example of a step", above=0)
    keep: int = setting(3, "prompts to keep for each example of a step", above=0)

    @override
    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The last three blocks; of an encoder-decoder the last two of each stack (MEND, section 4)."""
        count = 2 if lm.seq2seq else 3
        return tuple(range(max(0, lm.sites.depth - count), lm.sites.depth))

    @override
    def linears(self, sites: Sites, layer: int) -> list[str]:
        return linears_of(sites, layer) if sites.experts_of(layer) else [*sites.mlp_in[layer], sites.mlp_out[layer]]
