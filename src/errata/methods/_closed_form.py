"""Locate, then edit in closed form: what ROME, MEMIT and their kin have in common.

Find the hidden states that say the new answers (``_targets``), read the keys of the subjects (``_keys``), and solve for
the change of the down projections that maps the ones to the others (``_solve``). A method is a choice of settings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from errata.errors import BadInput
from errata.lm import HFLM
from errata.methods import _keys, _solve, _statistics, _targets
from errata.methods.base import Method, State
from errata.passes import Place
from errata.patch import GRAM, KEYS, Delta, LowRank, Patch, remember, weight_shape
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Method):
    """Settings that the family shares. Layers, learning rate and λ are relative to the model when None."""

    needs_prepare: ClassVar[bool] = True
    stores: ClassVar[str] = "a low-rank change of the down projections, one rank per fact and layer"
    one_by_one: ClassVar[bool] = False
    RATE: ClassVar[float]  # one step of δ in units of the length of what it is added to, when every coordinate moves

    layers: tuple[int, ...] | None = None  # sites.critical_layers
    contexts: int = 5
    steps: int = 25
    lr: float | None = None  # RATE x length / √d
    clamp: float = 0.75
    kl: float = 0.0625
    decay: float = 0.5
    stop: float = 0.05
    lam: float | None = None
    history: bool = False
    preserve: float = 0.0  # weight of keeping what the model says of the bare subject; not in the papers
    preserve_samples: int = 8
    preserve_tokens: int = 9
    plain: bool = False  # the reference: one fact at a time, full passes

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        raise NotImplementedError

    def default_lam(self, width: int) -> float:
        raise NotImplementedError

    def chosen_layers(self, lm: HFLM) -> tuple[int, ...]:
        layers = self.default_layers(lm) if self.layers is None else self.layers
        if not layers or sorted(set(layers)) != list(layers) or not 0 <= layers[0] <= layers[-1] < lm.sites.depth:
            raise BadInput(f"{self.name}'s layers must rise within 0 to {lm.sites.depth - 1}; found {layers}")
        return layers

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """The second moment C of the keys of each layer; ``data`` are texts (by default what goes with the model)."""
        return _statistics.key_statistics(lm, self.chosen_layers(lm), data, self.seed)

    def resolve(self, lm: HFLM, state: State) -> Self:
        layers = self.chosen_layers(lm)
        if missing := [layer for layer in layers if layer not in state.info["layers"]]:
            raise BadInput(
                f"the state holds layers {state.info['layers']}, not {missing}; prepare with the same layers"
            )
        width, size = weight_shape(lm, f"{lm.sites.mlp_out[layers[-1]]}.weight")
        norm = state.info["norms"][place_of(lm, layers[-1]).path(lm.sites)]
        return replace(
            self,
            layers=layers,
            lr=self.RATE * norm / width**0.5 if self.lr is None else self.lr,
            lam=self.default_lam(size) if self.lam is None else self.lam,
        )

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        contexts = _keys.contexts_of(lm, self.contexts, self.seed)
        for batch in [[edit] for edit in edits] if self.one_by_one else [list(edits)]:
            prior = self._step(lm, batch, contexts, state, prior)
        return prior

    def _step(self, lm: HFLM, edits: list[Edit], contexts: list[str], state: State, prior: Patch) -> Patch:
        """One batch: targets at the last layer, then each layer takes its share of the rest (MEMIT, algorithm 1)."""
        assert self.layers is not None and self.lam is not None
        inside = prior.inside()
        place = place_of(lm, self.layers[-1])
        with inside.applied(lm) as edited:
            delta, start = self._targets(edited, edits, contexts, place)
        new, memory = Delta({}), prior.memory
        for i, layer in enumerate(self.layers):
            site = lm.sites.mlp_out[layer]
            with (inside + Patch((new,))).applied(lm) as edited:
                keys, values, here = self._seen(edited, edits, contexts, site, place)
            gain = lm.sites.gain[layer] or 1.0
            left = self.residual(delta, start - here.bare, values, gain) / (len(self.layers) - i)
            change = self._change(self._inverse(state, site, prior), keys, left)
            new = new + Delta({f"{site}.weight": LowRank(change.a.float(), change.b.float()).compact()})
            if self.history:
                memory = remember(memory, site, keys.mean.float())
        return replace(prior + Patch((new,)), memory=memory)

    def _targets(self, lm: HFLM, edits: list[Edit], contexts: list[str], place: Place) -> tuple[Tensor, Tensor]:
        """δ (n, d), and what stood at the place before (n, d)."""
        here = (place.path(lm.sites), "out")
        start = _keys.at_subjects(lm, edits, [""], [here])[here].bare
        length = start.norm(dim=-1)  # (n,)
        found = _targets.find_deltas(lm, edits, place, contexts, self, self.clamp * length, length, plain=self.plain)
        return found.delta, start

    def _seen(
        self, lm: HFLM, edits: list[Edit], contexts: list[str], site: str, place: Place
    ) -> tuple[_keys.Seen, _keys.Seen, _keys.Seen]:
        """Keys (n, f) and values (n, d) of a down projection, and the state at the place (n, d)."""
        key, value, here = (site, "in"), (site, "out"), (place.path(lm.sites), "out")
        seen = _keys.at_subjects(lm, edits, contexts, [key, value], bare=[here], by_type=not self.one_by_one)
        return seen[key], seen[value], seen[here]

    def residual(self, delta: Tensor, since: Tensor, values: _keys.Seen, gain: float) -> Tensor:
        """(n, d): what the values still lack: Z − H, with ``since`` what the place has lost since δ was found."""
        return (delta.to(since) + since) / gain

    def _change(self, inverse: _solve.Inverse, keys: _keys.Seen, left: Tensor) -> LowRank:
        assert self.lam is not None
        return _solve.least_squares(inverse, keys.mean.T, left.T, self.lam)

    def _inverse(self, state: State, site: str, prior: Patch) -> _solve.Inverse:
        assert self.lam is not None
        c = state.tensors[f"C/{site}"]
        if self.history and GRAM + site in prior.memory:
            return _solve.inverse_of(c.double() + prior.memory[GRAM + site].double() / self.lam)
        inverse = state.once(f"inverse/{site}", lambda: _solve.inverse_of(c))
        if self.history and KEYS + site in prior.memory:
            return _solve.with_keys(inverse, prior.memory[KEYS + site].T.double(), self.lam)
        return inverse


def place_of(lm: HFLM, layer: int) -> Place:
    """Where a target lives: at the block's output, or behind a norm at the down projection's own."""
    return Place(layer, inside=lm.sites.gain[layer] is None)
