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
from errata.methods.closed_form.again import Found, solved_again, with_whole_targets
from errata.methods.closed_form.anchor import ANCHOR, anchor_edits, anchor_of, anchored
from errata.methods.closed_form.cost import steps
from errata.methods.closed_form.inverses import Inverses
from errata.methods.closed_form.keys import Site, SubjectReadings, SubjectRows, check_reads_subjects
from errata.methods.closed_form.objective import TargetSettings
from errata.methods.closed_form.outlet import Outlet
from errata.methods.closed_form.search import SearchResult
from errata.methods.closed_form.statistics import KeyStatistics, check_statistics, key_statistics
from errata.methods.closed_form.targets import find_deltas
from errata.methods.defaults import critical_layers
from errata.methods.outcomes import report
from errata.methods.settings import setting
from errata.methods.texts import contexts_of
from errata.model.heap import give_back
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite
from errata.model.passes import float64_device
from errata.model.projection import KEY, Projection
from errata.model.size import Size, Step, Work
from errata.patch.delta import Delta, LowRank, Weight
from errata.patch.memory import TARGETS, remember_targets
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit


@dataclass
class EditContext:
    """A batch of edits in the making: what it starts from, and the memory and the changes of weights so far."""

    lm: HFLM
    edits: list[Edit]
    contexts: list[str]
    state: State
    prior: Patch
    memory: Mapping[str, Tensor]
    rows: SubjectRows
    found: Found = field(default_factory=Found)
    changes: Delta = field(default_factory=lambda: Delta({}))
    kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Keys (m, f) of each weight whose values are to stay, beside those that C stands for."""
    searched: dict[InterventionSite, "Targets"] = field(default_factory=dict[InterventionSite, "Targets"])
    """Targets by site, of a method that solves for them more than once."""

    def keep(self, layer: int, delta: Tensor) -> None:
        """Keeps δ (n, d) in the memory, unless there are too many of them or earlier ones are missing there."""
        path, most = self.lm.sites.mlp_out[layer], Projection.of(self.lm.sites, layer).shape(self.lm.model)[1]
        if path in self.found.kept:
            self.memory = remember_targets(self.memory, path, delta.cpu().contiguous(), most)
            self.found.kept -= {path} - {name.removeprefix(TARGETS) for name in self.memory}

    def in_force(self) -> Patch:
        """The prior patch and the changes so far."""
        return self.prior.without_wrappers() + Patch((self.changes,))

    def edited(self) -> Any:
        """Context manager: the model with the prior patch and the changes so far in force."""
        return self.in_force().applied(self.lm)


@dataclass(frozen=True)
class Targets:
    """What the new values shall be: v + ``delta`` (n, d), with v the old ``value`` in the bare prompt.

    ``inside`` and ``outside`` (n, d) are what flowed there on the value's way to the hidden state (:class:`Outlet`).
    """

    delta: Tensor
    value: Tensor
    inside: Tensor
    outside: Tensor


@dataclass(frozen=True, kw_only=True)
class ClosedForm(TargetSettings):
    """Settings that the family shares. Layers, learning rate and λ are relative to the model when None.

    ``blue`` edits only the first and the last layer, each with targets of its own (BLUE, "Rethinking Residual
    Distribution"). ``nas`` gives every new value the length that new values have on the unedited model (NAS,
    arXiv:2602.02543). ``preserve`` keeps what the model says of the subject; it is in none of the papers.
    """

    family: ClassVar[str] = "locate, then edit"
    needs_prepare: ClassVar[bool] = True
    holds: ClassVar[type[Any] | None] = KeyStatistics
    stores: ClassVar[str] = "a low-rank change of the down projections, one rank per fact and layer"
    tags: ClassVar[Tags] = Tags(quick={"contexts": 0})
    one_by_one: ClassVar[bool] = False
    by_context_type: ClassVar[bool] = True  # in the mean key the empty context weighs as much as all others together
    keeps_targets: ClassVar[bool] = True  # of each edit the one that it has, so that another edit can be taken out
    own_output: ClassVar[bool] = False  # the residual is that of the projection's own output, not the hidden state's
    LAM: ClassVar[float] = 0.92  # λ in units of the key's width: MEMIT's for GPT-J
    METRIC_FLOP: ClassVar[float] = 1.0  # f³: a Cholesky factor takes a third, the inverse from it two
    METRIC_COPIES: ClassVar[float] = 1.0  # matrices (f, f) of float64 that making the metric holds at its peak
    RATE: ClassVar[float] = 0.4  # the first step of δ, in lengths of what it is added to
    ADAM_RATE: ClassVar[float] = 0.19  # the same by Adam, whose steps do not fall

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

    def default_lam(self, lm: HFLM, state: State, width: int) -> float:
        """λ for a down projection with keys of this width where the settings give none."""
        return self.LAM * width

    def target_site(self, lm: HFLM, layer: int) -> InterventionSite:
        """Where δ is added: at the block's output, or where a norm follows the down projection at its own."""
        return InterventionSite(layer, mlp_output=lm.sites.gain[layer] is None)

    def outlet(self, lm: HFLM, layer: int) -> Outlet:
        """From the layer's new values to what the residual is measured at."""
        return Outlet.own(lm, layer) if self.own_output else Outlet.of(lm, layer)

    @property
    def metric_name(self) -> str:
        """The name under which a state keeps the metric."""
        return f"C+{self.ridge}"

    def metric(self, c: Tensor) -> Tensor:
        """(f, f): what measures keys, from their second moment C: its inverse, or a projector."""
        return solve.inverse_of(c, self.ridge)

    def measures(self, hidden: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """(n, paths) each: the lengths that δ's bound and its decay are measured by: those of the hidden state.

        ``own`` are those of the outputs to which the parts of δ are added.
        """
        return hidden, hidden

    def rows(self, lm: HFLM, edits: Sequence[Edit], contexts: Sequence[str]) -> SubjectRows:
        """The rows that end at the key tokens, behind each context: those of the edits' subjects."""
        return SubjectRows.of(lm, edits, contexts)

    def search(
        self, lm: HFLM, edits: Sequence[Edit], site: InterventionSite, contexts: Sequence[str], **how: Any
    ) -> SearchResult:
        """δ for each key token; ``how`` is as for :func:`find_deltas`, and the outcomes are reported."""
        result = find_deltas(lm, edits, site, contexts, **how)
        report([edit.id for edit in edits], result.final_loss.tolist(), result.met.tolist())
        return result

    @property
    def reads_values(self) -> bool:
        """Whether the residual asks for the projection's own output behind contexts."""
        return False

    def batches(self, edits: Sequence[Edit]) -> list[list[Edit]]:
        """The edits in parts, each made with those before it in force."""
        return [[edit] for edit in edits] if self.one_by_one else [list(edits)]

    def at_once(self, n: int) -> int:
        """How many of ``n`` edits are in a part."""
        return min(n, 1) if self.one_by_one else n

    def share(self, layers_left: int) -> float:
        """The part of the residual that the first of ``layers_left`` layers takes."""
        return 1 / layers_left

    def residual(self, targets: Targets, moved: Tensor, value: SubjectReadings) -> Tensor:
        """(n, d): what the values of the keys lack; ``moved`` is what the layer's share of the target asks for."""
        return moved

    def change(
        self, inverses: Iterable[solve.Metric], keys: Sequence[SubjectReadings], residual: Tensor
    ) -> Sequence[LowRank]:
        """ΔW (d, f) of each weight of a down projection: together they add the ``residual`` (n, d) to the values."""
        assert self.lam is not None
        return solve.least_squares(inverses, [key.mean.T for key in keys], residual.T, self.lam)

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

    # The two verbs ------------------------------------------------------------------------------------

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """The second moment C of the keys of each layer; ``data`` are texts (by default what goes with the model)."""
        check_reads_subjects(lm)
        return key_statistics(lm, self.chosen_layers(lm), data, self.seed)

    def chosen_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The layers that are edited, rising. Raises :class:`BadInput` for layers that the model does not have."""
        layers = self.default_layers(lm) if self.layers is None else self.layers
        if not layers or sorted(set(layers)) != list(layers) or not 0 <= layers[0] <= layers[-1] < lm.sites.depth:
            raise BadInput(f"{self.name}'s layers must rise within 0 to {lm.sites.depth - 1}; found {layers}")
        return layers

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

    def _edit_layers(self, context: EditContext, layers: tuple[int, ...]) -> None:
        """Finds targets at the last of the layers; then each takes its share of the residual (MEMIT, algorithm 1).

        Behind a norm the last layer cannot give every share. What it could not, the others do; and as they meet it
        but nearly, the one before the last has a second turn, for that alone.
        """
        lm, site = context.lm, self.target_site(context.lm, layers[-1])
        outlets = {layer: self.outlet(lm, layer) for layer in layers}
        last, before = outlets[layers[-1]], context.changes
        known = context.found.take(lm.sites.mlp_out[layers[-1]], len(context.edits))
        with context.edited() as edited:
            targets = self._targets(edited, context.edits, context, site, known)
        context.keep(layers[-1], targets.delta)
        if self.nas:
            targets = self._anchored(context, targets, site)
        wanted = targets.outside + last.moved(targets.inside, targets.delta)  # z
        turns = [(layer, len(layers) - i) for i, layer in enumerate(layers)]  # and how many layers are left
        if last.norm is not None and layers[0] < layers[-1]:
            turns.insert(-1, (layers[-2], 1))
        found_before = {last.outside: targets.outside, last.inside: targets.inside}  # nothing has changed since
        residuals: dict[int, Tensor] = {}
        changes: dict[str, Weight] = {}
        keys: dict[str, Tensor] = {}
        for layer, left in turns:
            path, outlet = lm.sites.mlp_out[layer], outlets[layer]
            value = (path, "out")
            sites = [(path, KEY), *([value] if self.reads_values else [])]
            bare = [site for site in (last.outside, last.inside, outlet.inside, value) if site not in found_before]
            with context.edited() as edited:
                read = self._read(edited, context, sites, bare)
            read = {at: SubjectReadings(x, x) for at, x in found_before.items()} | read
            found_before = {}
            keys_read = {name: r for (name, side), r in read.items() if side == KEY}
            of_weight = {name: r for name, r in keys_read.items() if r.mean.any()} or keys_read
            inside, lacking = read[outlet.inside].bare, wanted - read[last.outside].bare
            unmet, like = last.unmet(read[last.inside].bare, lacking / left), inside
            if layer == layers[-1]:
                moved, like = lacking, targets.inside + targets.delta
            elif left > 1:
                moved = lacking * self.share(left) + unmet / (left - 1)
            else:
                moved = unmet
            residual = self.residual(targets, outlet.change(inside, moved, like), read[value])
            residuals[layer] = residuals.get(layer, 0) + residual
            inverses = (self._metric(context, name) for name in of_weight)  # one at a time
            found = self.change(inverses, list(of_weight.values()), residuals[layer])
            for name, change in zip(of_weight, found, strict=True):
                changes[name] = LowRank(change.a.float(), change.b.float()).compact()
            context.changes = before + Delta(changes)
            keys |= {name: readings.mean.float() for name, readings in of_weight.items()}
        if self.history:
            for name, read_keys in keys.items():
                if len(seen := read_keys[read_keys.any(1)]):
                    context.memory = self._inverses(context).remember(name, seen, context.memory)

    # Targets ------------------------------------------------------------------------------------------

    def _targets(
        self,
        lm: HFLM,
        edits: Sequence[Edit],
        context: EditContext,
        site: InterventionSite,
        known: Tensor | None = None,
    ) -> Targets:
        """Searches δ with ``lm`` as it is now, unless it is ``known`` (n, d), and reads what it is added to."""
        outlet, value = self.outlet(lm, site.layer), (lm.sites.mlp_out[site.layer], "out")
        scale = (measured_at(lm, site.layer), "out")
        outputs = [(path, "out") for path in site.paths(lm.sites)]
        sites = [value, *outputs, scale, outlet.inside, outlet.outside]
        bare = {at: readings.bare for at, readings in self.rows(lm, edits, [""]).read(lm, sites).items()}
        read = bare[value], bare[outlet.inside], bare[outlet.outside]
        if known is not None:
            return Targets(known.to(bare[value]), *read)
        delta = self._searched(lm, edits, context, site, [bare[at] for at in outputs], bare[scale])
        return Targets(delta / (1.0 if site.mlp_output else outlet.gain), *read)

    def _searched(
        self,
        lm: HFLM,
        edits: Sequence[Edit],
        context: EditContext,
        site: InterventionSite,
        outputs: Sequence[Tensor],
        scale: Tensor,
    ) -> Tensor:
        """δ (n, d) at the site; the learning rate follows the lengths of hidden states there.

        ``outputs`` (n, d) are those of the site's paths, ``scale`` what a δ is measured against.
        """
        assert self.layers is not None and self.lr is not None
        hidden = scale.norm(dim=-1, keepdim=True).expand(-1, len(outputs))  # (n, paths)
        own = torch.stack([output.norm(dim=-1) for output in outputs], 1)
        bound, unit = self.measures(hidden, own)
        norms = context.state.info["norms"]
        length = norms[measured_at(lm, site.layer)]
        settings = replace(self, lr=self.lr * length / norms[measured_at(lm, self.layers[-1])])
        under = EMPTY if lm.unedited else context.in_force()
        how: Any = {"settings": settings, "limits": self.clamp * bound, "units": unit}
        result = self.search(lm, edits, site, context.contexts, **how, plain=self.plain, under=under)
        give_back()  # before matrices (f, f) are made: what the steps of a search leave is in small pieces
        return result.delta[:, : outputs[0].shape[1]]  # what PMET's has beside it, for the attention, is dropped

    def _anchored(self, context: EditContext, targets: Targets, site: InterventionSite) -> Targets:
        """Targets of new values of one length, which is in the memory from the first edit on (NAS)."""
        name = ANCHOR + context.lm.sites.mlp_out[site.layer]
        if name not in context.memory:
            found = self._targets(context.lm, anchor_edits(context.lm, self.seed), context, site)
            context.memory = {**context.memory, name: anchor_of(found.value + found.delta)[None]}
        return replace(targets, delta=anchored(targets.delta, targets.value, context.memory[name]))

    # Keys and what measures them ----------------------------------------------------------------------

    def _read(self, lm: HFLM, context: EditContext, sites: list[Site], bare: list[Site]) -> dict[Site, SubjectReadings]:
        return context.rows.read(lm, sites, bare=bare, by_context_type=self.by_context_type)

    def _inverses(self, context: EditContext) -> Inverses:
        assert self.layers is not None and self.lam is not None
        about = (self.metric_name, self.metric, self.lam, self.history, len(self.layers))
        return Inverses(context.state, float64_device(context.lm.device), *about)

    def _metric(self, context: EditContext, weight: str) -> solve.Metric:
        """(f, f): what measures a weight's keys, with those of earlier edits where they count, and those kept."""
        assert self.lam is not None
        inverse, kept = self._inverses(context).of(weight, context.prior.memory), context.kept.get(weight)
        return inverse if kept is None else solve.Keeping.of(inverse, kept.T, self.lam)


def measured_at(lm: HFLM, layer: int) -> str:
    """The path whose output is what a δ at this layer is measured against."""
    return lm.sites.mlp_out[layer] if lm.sites.gain[layer] is None else lm.sites.layer[layer]
