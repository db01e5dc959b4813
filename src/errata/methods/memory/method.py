"""The method that fills a memory: ``prepare`` measures texts at the memory's layer, ``edit`` trains a longer memory."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Self

from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Method
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord
from errata.methods.memory.reading import Measured
from errata.methods.settings import close, setting
from errata.methods.state import State
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.projection import flow_shape
from errata.model.sites import Sites
from errata.model.texts import openings
from errata.patch.patch import Patch
from errata.patch.schema import Sizes
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class MemoryMethod(Method):
    """Puts edits into an :class:`EditMemory` beside one layer; no weight changes."""

    needs_prepare: ClassVar[bool] = True
    part: ClassVar[type[EditMemory[Any, Any]]]
    height: ClassVar[Fraction]  # share of the depth at which the memory sits by default
    blocks_above: ClassVar[int] = 0  # and how many blocks are at least above it, where there are so many
    writes: ClassVar[bool] = False  # whether it sits where targets are written (a decoder), not where prompts are read

    layer: int | None = setting(None)
    texts: int = setting(512, "openings of texts that are no edits", least=2)

    # What a method defines -------------------------------------------------------------------------

    @abstractmethod
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        """Tensors and JSON of the state, from texts that are no edits; its ``what`` says in a line what it holds."""

    @abstractmethod
    def empty(self, lm: HFLM, state: State) -> EditMemory[Any, Any]:
        """A memory without edits, with this method's settings."""

    @abstractmethod
    def train(self, lm: HFLM, old: Any, log: Sequence[EditRecord], state: State) -> EditMemory[Any, Any]:
        """The memory ``old`` with more edits; ``lm`` has everything else of the prior patch in force."""

    def read_once(self, lm: HFLM, state: State) -> None:
        """Keeps in the state what training asks of the unedited model ``lm`` and what all edits share."""

    def prepared_for(self, lm: HFLM) -> dict[str, Any]:
        """What a state must have been prepared for."""
        return {"method": self.name, "layer": self.resolved_layer(lm)}

    # What they share -------------------------------------------------------------------------------

    @override
    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """Measurements at the memory's layer: of openings of sentences of the texts given, else of the corpus that goes
        with the model, else of text sampled from it. Raises :class:`BadInput` for too few texts."""
        texts = openings(lm, data, self.texts, self.seed)
        if len(texts) < 2:
            raise BadInput(
                f"{self.name} prepares with two different texts at least, of four tokens or more; "
                f"found {len(texts)}: give more"
            )
        tensors, measured = self.measure(lm, texts)
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            **self.prepared_for(lm),
        }
        return State(tensors, info | measured)

    @override
    def check_state(self, lm: HFLM, state: State) -> None:
        if state.info:
            state.check(lm)
            state.check_for(**self.prepared_for(lm))
        super().check_state(lm, state)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        return replace(self, layer=self.resolved_layer(lm))

    @override
    def state_sizes(self, lm: HFLM) -> Sizes:
        return dict(zip(("out", "in"), flow_shape(lm.model, lm.sites, self.site(lm)), strict=True))

    def filled(self, **values: Any) -> Self:
        """The method with these values for settings that are None."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def stack(self, lm: HFLM) -> Sites:
        """The half of the model that the memory sits in."""
        return lm.sites if self.writes else lm.sites.prompt_stack

    def resolved_layer(self, lm: HFLM) -> int:
        """The layer of the memory. Raises :class:`BadInput` for one that the model does not have."""
        depth = self.stack(lm).depth
        default = max(0, min(int(self.height * depth), depth - 1 - self.blocks_above))
        layer = default if self.layer is None else self.layer
        if layer >= depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {depth - 1}; found {layer}")
        return layer

    def site(self, lm: HFLM) -> str:
        """Path of the down projection that the memory sits at."""
        return self.stack(lm).mlp_out[self.resolved_layer(lm)]

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        old = self._held(lm, state, prior)
        self.read_once(lm, state)
        log = [EditRecord.of(edit, lm.tokens) for edit in edits]
        with prior.swap(old, None).without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            new = self.train(edited, old, log, state)
        return prior.swap(old, new)

    def _held(self, lm: HFLM, state: State, prior: Patch) -> EditMemory[Any, Any]:
        """The memory in ``prior`` that these edits join, or an empty one; :class:`BadInput` where settings differ."""
        empty = self.empty(lm, state)
        for held in prior.of_kind(self.part):
            for name, value in empty.settings.items():
                if not close(found := held.settings[name], value):
                    raise BadInput(
                        f"the {self.name} memory in prior has {name} = {found}, and this {self.name} {value}; "
                        "go on with the same settings"
                    )
            return held
        return empty
