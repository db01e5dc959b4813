"""Locate, then edit in closed form: what ROME, MEMIT and their kin have in common.

Find the hidden states with which the model gives the new answers (``targets``), read the keys of the subjects
(``keys``), and solve for the change of the down projections that maps the keys to them (``solve``). A method is a
choice of settings.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import State, Tags
from errata.methods.closed_form import solve
from errata.methods.closed_form.keys import Site, SubjectReadings, read_at_subjects
from errata.methods.closed_form.objective import TargetSettings
from errata.methods.closed_form.statistics import key_statistics
from errata.methods.closed_form.targets import find_deltas
from errata.methods.defaults import critical_layers
from errata.methods.outcomes import report
from errata.methods.settings import setting
from errata.methods.texts import contexts_of
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite
from errata.patch.delta import Delta, LowRank, weight_shape
from errata.patch.memory import GRAM, KEYS, remember
from errata.patch.patch import Patch
from errata.types import Edit

ANCHOR = "anchor/"  # memory of the length that NAS gives to new values
ANCHOR_FACTS = 100  # facts that it is measured on; NAS takes 1,000
ANCHOR_KEPT = 0.95  # of them, without the longest


@dataclass
class EditContext:
    """A batch of edits in the making: what it starts from, and the memory and the changes of weights so far."""

    lm: HFLM
    edits: list[Edit]
    contexts: list[str]
    state: State
    prior: Patch
    memory: Mapping[str, Tensor]
    changes: Delta = field(default_factory=lambda: Delta({}))

    def edited(self) -> Any:
        """Context manager: the model with the prior patch and the changes so far in force."""
        return (self.prior.without_wrappers() + Patch((self.changes,))).applied(self.lm)


@dataclass(frozen=True)
class Targets:
    """Targets ``delta`` (n, d); and in the bare prompt the ``output`` of the target site and the ``value`` v (n, d)."""

    delta: Tensor
    output: Tensor
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class ClosedForm(TargetSettings):
    """Settings that the family shares. Layers, learning rate and λ are relative to the model when None.

    ``blue`` edits only the first and the last layer, each with targets of its own (BLUE, "Rethinking Residual
    Distribution"). ``nas`` gives every new value the length that new values have on the unedited model (NAS,
    arXiv:2602.02543). ``preserve`` keeps what the model says of the subject; it is in none of the papers.
    """

    family: ClassVar[str] = "locate, then edit"
    needs_prepare: ClassVar[bool] = True
    stores: ClassVar[str] = "a low-rank change of the down projections, one rank per fact and layer"
    tags: ClassVar[Tags] = Tags(quick={"contexts": 0})
    one_by_one: ClassVar[bool] = False
    by_context_type: ClassVar[bool] = True  # in the mean key the empty context weighs as much as all others together
    LAM: ClassVar[float] = 0.92  # λ in units of the key's width: MEMIT's for GPT-J
    RATE: ClassVar[float] = 0.19  # one step of δ, of all its coordinates, in lengths of what it is added to

    layers: tuple[int, ...] | None = setting(None, "defaults.critical_layers")
    contexts: int = setting(5, "MEMIT's released code: 1 of 0 and 5 of 10 tokens", key="context_template_length_params")
    lam: float | None = setting(None, "LAM x width of the keys", key="mom2_update_weight")
    ridge: float = setting(1e-6, "x mean eigenvalue of C, added to it; the papers have none")
    history: bool = setting(False, "keys of earlier edits join C")
    blue: bool = setting(False, "BLUE: first and last layer, own residuals")
    nas: bool = setting(False, "NAS: anchored length of new values")

    # What a method of the family chooses --------------------------------------------------------------

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The layers that are edited where the settings name none."""
        return critical_layers(lm.model, lm.sites)

    def default_lam(self, lm: HFLM, state: State, path: str) -> float:
        """λ for the down projection at ``path`` where the settings give none."""
        return self.LAM * weight_shape(lm, f"{path}.weight")[1]

    def target_site(self, lm: HFLM, layer: int) -> InterventionSite:
        """Where δ is added: at the block's output, or where a norm follows the down projection at its own."""
        return InterventionSite(layer, mlp_output=lm.sites.gain[layer] is None)

    @property
    def metric_name(self) -> str:
        """The name under which a state keeps the metric."""
        return f"C+{self.ridge}"

    def metric(self, c: Tensor) -> Tensor:
        """(f, f): what measures keys, from their second moment C: its inverse, or a projector."""
        return solve.inverse_of(c, self.ridge)

    def share(self, layers_left: int) -> float:
        """The part of the residual that the first of ``layers_left`` layers takes."""
        return 1 / layers_left

    def residual(self, targets: Targets, output: Tensor, value: SubjectReadings, gain: float) -> Tensor:
        """(n, d): R = Z − H with Z the old ``targets.output`` + δ and H the ``output`` now, in units of values."""
        moved = targets.output - output
        return (targets.delta.to(moved) + moved) / gain

    def change(self, inverse: Tensor, key: SubjectReadings, residual: Tensor) -> LowRank:
        """ΔW (d, f) that adds the ``residual`` (n, d) to the values of the keys."""
        assert self.lam is not None
        return solve.least_squares(inverse, key.mean.T, residual.T, self.lam)

    # The two verbs ------------------------------------------------------------------------------------

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """The second moment C of the keys of each layer; ``data`` are texts (by default what goes with the model)."""
        return key_statistics(lm, self.chosen_layers(lm), data, self.seed)

    def chosen_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The layers that are edited, rising. Raises :class:`BadInput` for layers that the model does not have."""
        layers = self.default_layers(lm) if self.layers is None else self.layers
        if not layers or sorted(set(layers)) != list(layers) or not 0 <= layers[0] <= layers[-1] < lm.sites.depth:
            raise BadInput(f"{self.name}'s layers must rise within 0 to {lm.sites.depth - 1}; found {layers}")
        return layers

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        layers = self.chosen_layers(lm)
        if "layers" not in state.info or "norms" not in state.info:
            raise BadInput("this state holds no statistics of keys; make one with this method's prepare")
        if missing := [layer for layer in layers if layer not in state.info["layers"]]:
            raise BadInput(
                f"the state holds layers {state.info['layers']}, not {missing}; prepare with the same layers"
            )
        path = lm.sites.mlp_out[layers[-1]]
        width, _ = weight_shape(lm, f"{path}.weight")
        length = state.info["norms"][measured_at(lm, layers[-1])]
        return replace(
            self,
            layers=layers,
            lr=self.RATE * length / width**0.5 if self.lr is None else self.lr,
            lam=self.default_lam(lm, state, path) if self.lam is None else self.lam,
        )

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layers is not None
        contexts = contexts_of(lm, self.contexts, self.seed)
        turns = sorted({self.layers[:1], self.layers[-1:]}) if self.blue else [self.layers]
        for batch in [[edit] for edit in edits] if self.one_by_one else [list(edits)]:
            context = EditContext(lm, batch, contexts, state, prior, prior.memory)
            for layers in turns:
                self._edit_layers(context, layers)
            prior = replace(prior + Patch((context.changes,)), memory=context.memory)
        return prior

    def _edit_layers(self, context: EditContext, layers: tuple[int, ...]) -> None:
        """Finds targets at the last of the layers; then each takes its share of the residual (MEMIT, algorithm 1)."""
        lm, site = context.lm, self.target_site(context.lm, layers[-1])
        output = (site.path(lm.sites), "out")
        with context.edited() as edited:
            targets = self._targets(edited, context.edits, context, site)
        if self.nas:
            targets = self._anchored(context, targets, site)
        for i, layer in enumerate(layers):
            path = lm.sites.mlp_out[layer]
            key, value = (path, "in"), (path, "out")
            with context.edited() as edited:
                read = self._read(edited, context, [key, value], [output])
            gain = 1.0 if site.mlp_output else lm.sites.gain[layer] or 1.0
            residual = self.residual(targets, read[output].bare, read[value], gain) * self.share(len(layers) - i)
            change = self.change(self._inverse(context, layer), read[key], residual)
            low_rank = LowRank(change.a.float(), change.b.float()).compact()
            context.changes = context.changes + Delta({f"{path}.weight": low_rank})
            if self.history:
                self._remember(context, layer, read[key].mean.float())

    # Targets ------------------------------------------------------------------------------------------

    def _targets(self, lm: HFLM, edits: Sequence[Edit], context: EditContext, site: InterventionSite) -> Targets:
        """Searches δ with ``lm`` as it is now; the learning rate follows the lengths of hidden states at the site."""
        assert self.layers is not None and self.lr is not None
        output, value = (site.path(lm.sites), "out"), (lm.sites.mlp_out[site.layer], "out")
        scale = (measured_at(lm, site.layer), "out")
        bare = {at: readings.bare for at, readings in read_at_subjects(lm, edits, [""], [output, value, scale]).items()}
        length, norms = bare[scale].norm(dim=-1), context.state.info["norms"]  # (n,)
        rate = self.lr * norms[scale[0]] / norms[measured_at(lm, self.layers[-1])]
        settings, limits = replace(self, lr=rate), self.clamp * length
        result = find_deltas(lm, edits, site, context.contexts, settings, limits, length, plain=self.plain)
        report([edit.id for edit in edits], result.final_loss.tolist(), result.met.tolist())
        width = bare[output].shape[1]  # what PMET's search has beside it, for the attention, is dropped
        return Targets(result.delta[:, :width], bare[output], bare[value])

    def _anchored(self, context: EditContext, targets: Targets, site: InterventionSite) -> Targets:
        """Targets of new values v + δ of one length c; one of more than 2c makes no edit (NAS, released code)."""
        name = ANCHOR + context.lm.sites.mlp_out[site.layer]
        gain = 1.0 if site.mlp_output else context.lm.sites.gain[site.layer] or 1.0
        if name not in context.memory:
            context.memory = {**context.memory, name: self._anchor(context, site, gain)[None]}
        new = gain * targets.value + targets.delta  # (n, d)
        length, c = new.norm(dim=-1, keepdim=True), context.memory[name].to(new)
        anchored = new * c / length - gain * targets.value
        return replace(targets, delta=torch.where(length > 2 * c, torch.zeros_like(anchored), anchored))

    def _anchor(self, context: EditContext, site: InterventionSite, gain: float) -> Tensor:
        """The mean length of new values on the unedited model: over the model's training cases, or this batch."""
        lm = context.lm
        cases = lm.resources.cases() if lm.resources.cases else []
        edits = [edit for case in cases for edit in case.edits][:ANCHOR_FACTS] or context.edits
        targets = self._targets(lm, edits, context, site)
        lengths = (gain * targets.value + targets.delta).norm(dim=-1).sort().values
        return lengths[: max(1, int(ANCHOR_KEPT * len(lengths)))].mean()

    # Keys and what measures them ----------------------------------------------------------------------

    def _read(self, lm: HFLM, context: EditContext, sites: list[Site], bare: list[Site]) -> dict[Site, SubjectReadings]:
        return read_at_subjects(
            lm, context.edits, context.contexts, sites, bare=bare, by_context_type=self.by_context_type
        )

    def _running(self, context: EditContext, layer: int) -> solve.RunningInverse:
        path = context.lm.sites.mlp_out[layer]

        def make() -> solve.RunningInverse:
            c = context.state.tensors[f"C/{path}"]
            metric = self.metric(c.to(solve.float64_device(context.lm.device)))
            return solve.RunningInverse(metric.cpu())  # 8 f² bytes a layer: 1.6 GB in Llama 3 8B

        return context.state.once(f"{self.metric_name}/{path}", make)

    def _inverse(self, context: EditContext, layer: int) -> Tensor:
        """(f, f): the metric, with the keys of earlier edits where they count."""
        assert self.lam is not None
        running, path = self._running(context, layer), context.lm.sites.mlp_out[layer]
        if not self.history:
            return running.initial
        memory = context.prior.memory
        return running.after(memory.get(KEYS + path), memory.get(GRAM + path), self.lam)

    def _remember(self, context: EditContext, layer: int, keys: Tensor) -> None:
        """Adds the new keys (n, f) to the memory, and to the running inverse."""
        assert self.lam is not None
        path = context.lm.sites.mlp_out[layer]
        context.memory = remember(context.memory, path, keys)
        memory = context.memory[GRAM + path if GRAM + path in context.memory else KEYS + path]
        self._running(context, layer).add(keys, memory, self.lam)


def measured_at(lm: HFLM, layer: int) -> str:
    """The path whose output is what a δ at this layer is measured against."""
    return lm.sites.mlp_out[layer] if lm.sites.gain[layer] is None else lm.sites.layer[layer]
