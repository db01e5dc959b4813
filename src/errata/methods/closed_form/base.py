"""Locate, then edit in closed form: what ROME, MEMIT and their kin have in common.

Find the hidden states with which the model gives the new answers (``wanted``), read the keys of the subjects
(``keys``), and solve for the change of the down projections that maps the keys to them (``layers``). A method is a
choice of settings (``choices``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from typing_extensions import override

from errata.errors import BadInput
from errata.methods.closed_form.again import solved_again
from errata.methods.closed_form.context import EditContext
from errata.methods.closed_form.cost import steps
from errata.methods.closed_form.found import Found, with_whole_targets
from errata.methods.closed_form.keys import check_reads_subjects
from errata.methods.closed_form.layers import SolvesLayers
from errata.methods.closed_form.statistics import check_statistics, key_statistics
from errata.methods.closed_form.wanted import measured_at
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.projection import Projection
from errata.model.size import Size, Step, Work
from errata.model.texts import contexts_of
from errata.patch.patch import Patch
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class ClosedForm(SolvesLayers):
    """The two verbs of the family, what they cost, and an edit taken out."""

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """The second moment C of the keys of each layer; ``data`` are texts (by default what goes with the model)."""
        check_reads_subjects(lm)
        return key_statistics(lm, self.chosen_layers(lm), data, self.seed)

    @override
    def check_state(self, lm: HFLM, state: State) -> None:
        super().check_state(lm, state)
        layers, norms = self.chosen_layers(lm), state.info["norms"]
        if missing := [layer for layer in layers if layer not in state.info["layers"]]:
            raise BadInput(
                f"the state holds layers {state.info['layers']}, not {missing}; prepare with the same layers"
            )
        check_statistics(lm, layers, state)
        if missing := [at for at in (measured_at(lm, layer) for layer in layers) if not norms.get(at, 0.0) > 0]:
            raise BadInput(f"this state does not say how long the outputs of {missing[0]} are; prepare anew")

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        layers = self.chosen_layers(lm)
        together = layers[0] < layers[-1] and not self.blue and not self.own_output
        if together and (
            unknown := [n for n in layers if not lm.sites.gain[n] and not any(lm.sites.mlp_norm[n : n + 1])]
        ):
            raise BadInput(
                f"layers {unknown} of {lm.name} have a norm behind the down projection that is not known, so what "
                f"several layers add up to cannot be told. Edit one (layers=({layers[-1]},)), or name the norms: "
                "errata.load(model, sites=dataclasses.replace(lm.sites, mlp_norm=(...)))"
            )
        width, key_width = Projection.of(lm.sites, layers[-1]).shape(lm.model)
        length = state.info["norms"][measured_at(lm, layers[-1])]
        rate = self.ADAM_RATE if self.optimizer == "adam" else self.RATE
        return replace(
            self,
            layers=layers,
            lr=rate * length / width**0.5 if self.lr is None else self.lr,
            lam=self.default_lam(lm, state, key_width) if self.lam is None else self.lam,
        )

    @property
    def turns(self) -> list[tuple[int, ...]]:
        """The layers that are solved for together, in turn; targets are searched at the last of each."""
        assert self.layers is not None
        return sorted({self.layers[:1], self.layers[-1:]}) if self.blue else [self.layers]

    @override
    def record(self, lm: HFLM) -> dict[str, Any]:
        return {"targets": self._target_paths(lm)} if self.keeps_targets else {}

    def _target_paths(self, lm: HFLM) -> list[str]:
        """The projections at whose layers targets are searched."""
        return [lm.sites.mlp_out[layers[-1]] for layers in self.turns]

    @override
    def without(
        self, lm: HFLM, patch: Patch, edit_id: str, state: State | None = None, *, search: bool = False
    ) -> tuple[Patch, str]:
        return solved_again(lm, patch, edit_id, state, search=search)

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        return self.solved(lm, edits, state, prior, Found())

    def solved(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch, found: Found) -> Patch:
        """``prior`` and these edits; what is ``found`` already is not searched for. The settings are resolved."""
        drawn = (self.contexts, self.seed, sorted(lm.tokens.ends), str(lm.dtype), lm.budget)  # what contexts depend on
        contexts = state.once(f"contexts/{drawn}", lambda: contexts_of(lm, self.contexts, self.seed))
        prior, found.kept = with_whole_targets(prior, self._target_paths(lm) if self.keeps_targets else [])
        for batch in self.batches(edits):
            rows = self.rows(lm, batch, contexts)
            context = EditContext(lm, batch, contexts, state, prior, prior.memory, rows, found)
            for layers in self.turns:
                self._edit_layers(context, layers)
            prior = replace(prior + Patch((context.changes,)), memory=context.memory)
        return prior

    @override
    def cost(self, size: Size, work: Work) -> list[Step]:
        return steps(self, size, work)

    @override
    def lighter(self, lm: HFLM) -> dict[str, Self]:
        layers = self.chosen_layers(lm)
        if len(layers) < 2:
            return {}
        middle = layers[(len(layers) - 1) // 2]
        first_and_last = {} if self.blue else {"blue=True": replace(self, blue=True)}
        return {**first_and_last, f"layers={middle}": replace(self, layers=(middle,), blue=False)}
