"""Locate, then edit in closed form: what ROME, MEMIT and their kin have in common.

Find the hidden states that say the new answers (``_targets``), read the keys of the subjects (``_keys``), and solve for
the change of the down projections that maps the ones to the others (``_solve``). A method is a choice of settings.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import Method, State, Tags
from errata.methods.closed_form import solve, targets
from errata.methods.closed_form.keys import Seen, at_subjects
from errata.methods.closed_form.statistics import key_statistics
from errata.methods.settings import setting
from errata.methods.texts import contexts_of
from errata.model.hf import HFLM
from errata.model.passes import InterventionSite
from errata.patch.delta import Delta, LowRank, weight_shape
from errata.patch.memory import GRAM, KEYS, remember
from errata.patch.patch import Patch
from errata.types import Edit

ANCHOR = "anchor/"  # memory of the length that NAS gives to new values
ANCHOR_FACTS = 100  # facts that it is measured on; NAS takes 1,000
ANCHOR_KEPT = 0.95  # of them, without the longest


@dataclass
class Run:
    """One batch on its way: what it starts from, and what has become of it so far."""

    lm: HFLM
    edits: list[Edit]
    contexts: list[str]
    state: State
    prior: Patch
    memory: Mapping[str, Tensor]
    new: Delta = field(default_factory=lambda: Delta({}))

    def edited(self) -> Any:
        """A ``with`` block with the prior patch and the new changes in force."""
        return (self.prior.inside() + Patch((self.new,))).applied(self.lm)


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Method):
    """Settings that the family shares. Layers, learning rate and λ are relative to the model when None.

    ``blue`` edits only the first and the last layer, each with targets of its own (BLUE, "Rethinking Residual
    Distribution"). ``nas`` gives every new value the length that new values have on the unedited model (NAS,
    arXiv:2602.02543). ``preserve`` keeps what the model says of the subject; it is in none of the papers.
    """

    needs_prepare: ClassVar[bool] = True
    stores: ClassVar[str] = "a low-rank change of the down projections, one rank per fact and layer"
    one_by_one: ClassVar[bool] = False
    by_type: ClassVar[bool] = True  # in the mean key the empty context weighs as much as all others together
    RATE: ClassVar[float]  # one step of δ in units of the length of what it is added to, when every coordinate moves

    layers: tuple[int, ...] | None = setting(None, "sites.critical_layers")
    contexts: int = setting(5, "MEMIT's released code: 1 of 0 and 5 of 10 tokens")
    steps: int = setting(25, "MEMIT, appendix B", above=0)
    lr: float | None = setting(None, "RATE x length / √d", above=0)
    clamp: float = setting(0.75, "x length of the hidden state; MEMIT, released code")
    kl: float = setting(0.0625, "ROME, released code")
    decay: float = setting(0.5, "ROME, released code")
    stop: float = setting(0.05, "ROME, released code")
    lam: float | None = setting(None, "relative to the width of the keys")
    ridge: float = setting(1e-6, "x mean eigenvalue of C, added to it; the papers have none")
    history: bool = setting(False, "keys of earlier edits join C")
    blue: bool = setting(False, "BLUE: first and last layer, own residuals")
    nas: bool = setting(False, "NAS: anchored length of new values")
    preserve: float = setting(0.0, "weight of keeping what the model says of the bare subject; not in the papers")
    preserve_samples: int = setting(8, "continuations of the subject, sampled from the unedited model")
    preserve_tokens: int = setting(9, "of each")
    plain: bool = setting(False, "the reference: one fact at a time, full passes")

    eased: ClassVar[float] = 1.0  # weight of an answer that is the arg-max (PMET)
    kl_stop: ClassVar[float | None] = None  # and the KL below which its search ends (PMET)
    tags: ClassVar[Tags] = Tags(quick={"contexts": 0})

    # What a method of the family chooses --------------------------------------------------------------

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        raise NotImplementedError

    def default_lam(self, lm: HFLM, state: State, site: str) -> float:
        raise NotImplementedError

    def place(self, lm: HFLM, layer: int) -> InterventionSite:
        """Where a target lives: at the block's output, or behind a norm at the down projection's own."""
        return InterventionSite(layer, inside=lm.sites.gain[layer] is None)

    @property
    def metric_name(self) -> str:
        return f"C+{self.ridge}"

    def metric(self, c: Tensor) -> Tensor:
        """(f, f): what measures keys, from their second moment C: its inverse, or a projector."""
        return solve.inverse_of(c, self.ridge)

    def share(self, left: int) -> float:
        """The part of the residual that a layer takes when ``left`` layers have not had their turn."""
        return 1 / left

    def residual(self, delta: Tensor, since: Tensor, values: Seen, gain: float) -> Tensor:
        """(n, d): what the values still lack: Z − H, with ``since`` what the place has lost since δ was found."""
        return (delta.to(since) + since) / gain

    def change(self, inverse: Tensor, keys: Seen, left: Tensor) -> LowRank:
        assert self.lam is not None
        return solve.least_squares(inverse, keys.mean.T, left.T, self.lam)

    # The two verbs ------------------------------------------------------------------------------------

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """The second moment C of the keys of each layer; ``data`` are texts (by default what goes with the model)."""
        return key_statistics(lm, self.chosen_layers(lm), data, self.seed)

    def chosen_layers(self, lm: HFLM) -> tuple[int, ...]:
        layers = self.default_layers(lm) if self.layers is None else self.layers
        if not layers or sorted(set(layers)) != list(layers) or not 0 <= layers[0] <= layers[-1] < lm.sites.depth:
            raise BadInput(f"{self.name}'s layers must rise within 0 to {lm.sites.depth - 1}; found {layers}")
        return layers

    def resolve(self, lm: HFLM, state: State) -> Self:
        layers = self.chosen_layers(lm)
        if missing := [layer for layer in layers if layer not in state.info["layers"]]:
            raise BadInput(
                f"the state holds layers {state.info['layers']}, not {missing}; prepare with the same layers"
            )
        site = lm.sites.mlp_out[layers[-1]]
        width, _ = weight_shape(lm, f"{site}.weight")
        norm = state.info["norms"][measured_at(lm, layers[-1])]
        return replace(
            self,
            layers=layers,
            lr=self.RATE * norm / width**0.5 if self.lr is None else self.lr,
            lam=self.default_lam(lm, state, site) if self.lam is None else self.lam,
        )

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layers is not None
        contexts = contexts_of(lm, self.contexts, self.seed)
        turns = sorted({self.layers[:1], self.layers[-1:]}) if self.blue else [self.layers]
        for batch in [[edit] for edit in edits] if self.one_by_one else [list(edits)]:
            run = Run(lm, batch, contexts, state, prior, prior.memory)
            for layers in turns:
                self._spread(run, layers)
            prior = replace(prior + Patch((run.new,)), memory=run.memory)
        return prior

    def _spread(self, run: Run, layers: tuple[int, ...]) -> None:
        """Targets at the last of the layers, then each layer takes its share of the rest (MEMIT, algorithm 1)."""
        assert self.lam is not None
        lm, place = run.lm, self.place(run.lm, layers[-1])
        here = (place.path(lm.sites), "out")
        with run.edited() as edited:
            delta, start = self._targets(edited, run.edits, run, place)
        if self.nas:
            delta = self._anchored(run, delta, start[1], place)
        for i, layer in enumerate(layers):
            key, value = ((lm.sites.mlp_out[layer], end) for end in ("in", "out"))
            with run.edited() as edited:
                seen = self._seen(edited, run, [key, value], [here])
            gain = 1.0 if place.inside else lm.sites.gain[layer] or 1.0
            left = self.residual(delta, start[0] - seen[here].bare, seen[value], gain)
            change = self.change(self._inverse(run, layer), seen[key], left * self.share(len(layers) - i))
            low = LowRank(change.a.float(), change.b.float()).compact()
            run.new = run.new + Delta({f"{key[0]}.weight": low})
            if self.history:
                self._remember(run, layer, seen[key].mean.float())

    # Targets ------------------------------------------------------------------------------------------

    def _targets(
        self, lm: HFLM, edits: Sequence[Edit], run: Run, place: InterventionSite
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """δ (n, d); and what stood at the place, and at the down projection, in the bare prompt (n, d)."""
        assert self.layers is not None and self.lr is not None
        here, value = (place.path(lm.sites), "out"), (lm.sites.mlp_out[place.layer], "out")
        scale = (measured_at(lm, place.layer), "out")
        seen = {site: its.bare for site, its in at_subjects(lm, edits, [""], [here, value, scale]).items()}
        length, norms = seen[scale].norm(dim=-1), run.state.info["norms"]  # (n,)
        rate = self.lr * norms[scale[0]] / norms[measured_at(lm, self.layers[-1])]
        goal = replace(self, lr=rate)
        found = targets.find_deltas(lm, edits, place, run.contexts, goal, self.clamp * length, length, plain=self.plain)
        return found.delta[:, : seen[here].shape[1]], (seen[here], seen[value])

    def _anchored(self, run: Run, delta: Tensor, value: Tensor, place: InterventionSite) -> Tensor:
        """δ for new values v + δ of one length c; one of more than 2c makes no edit (NAS, released code)."""
        name = ANCHOR + run.lm.sites.mlp_out[place.layer]
        gain = 1.0 if place.inside else run.lm.sites.gain[place.layer] or 1.0
        if name not in run.memory:
            run.memory = {**run.memory, name: self._anchor(run, place, gain)[None]}
        new = gain * value + delta  # (n, d)
        length, c = new.norm(dim=-1, keepdim=True), run.memory[name].to(new)
        return torch.where(length > 2 * c, torch.zeros_like(delta), new * c / length - gain * value)

    def _anchor(self, run: Run, place: InterventionSite, gain: float) -> Tensor:
        """The mean length of new values on the unedited model: over the model's training cases, or this batch."""
        cases = run.lm.resources.cases() if run.lm.resources.cases else []
        edits = [edit for case in cases for edit in case.edits][:ANCHOR_FACTS] or run.edits
        delta, (_, value) = self._targets(run.lm, edits, run, place)
        length = (gain * value + delta).norm(dim=-1).sort().values
        return length[: max(1, int(ANCHOR_KEPT * len(length)))].mean()

    # Keys and what measures them ----------------------------------------------------------------------

    def _seen(
        self, lm: HFLM, run: Run, sites: list[tuple[str, str]], bare: list[tuple[str, str]]
    ) -> dict[tuple[str, str], Seen]:
        return at_subjects(lm, run.edits, run.contexts, sites, bare=bare, by_type=self.by_type)

    def _running(self, run: Run, layer: int) -> solve.Running:
        site = run.lm.sites.mlp_out[layer]

        def make() -> solve.Running:
            c = run.state.tensors[f"C/{site}"]
            return solve.Running(self.metric(c.to(solve.exact_place(run.lm.device))))

        return run.state.once(f"{self.metric_name}/{site}", make)

    def _inverse(self, run: Run, layer: int) -> Tensor:
        assert self.lam is not None
        running, site = self._running(run, layer), run.lm.sites.mlp_out[layer]
        if not self.history:
            return running.start
        memory = run.prior.memory
        return running.after(memory.get(KEYS + site), memory.get(GRAM + site), self.lam)

    def _remember(self, run: Run, layer: int, keys: Tensor) -> None:
        assert self.lam is not None
        site = run.lm.sites.mlp_out[layer]
        run.memory = remember(run.memory, site, keys)
        held = run.memory[GRAM + site if GRAM + site in run.memory else KEYS + site]
        self._running(run, layer).learn(keys, held, self.lam)


def measured_at(lm: HFLM, layer: int) -> str:
    """The path whose output is what a δ at this layer is measured against."""
    return lm.sites.mlp_out[layer] if lm.sites.gain[layer] is None else lm.sites.layer[layer]
