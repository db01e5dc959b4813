"""Each layer's share of what the values lack: the layers of a turn, solved for one after another."""

from dataclasses import dataclass

from torch import Tensor

from errata.methods.closed_form import solve
from errata.methods.closed_form.context import EditContext
from errata.methods.closed_form.inverses import Inverses
from errata.methods.closed_form.keys import Site, SubjectReadings
from errata.methods.closed_form.wanted import FindsTargets
from errata.model.hf import HFLM
from errata.model.passes import float64_device
from errata.model.projection import KEY
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight


@dataclass(frozen=True, kw_only=True)
class SolvesLayers(FindsTargets):
    """A method that solves for the change of some layers, once it has the targets at the last of them."""

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
                changes[name] = _in_float32(change)
            context.changes = before + Delta(changes)
            keys |= {name: readings.mean.float() for name, readings in of_weight.items()}
        if self.history:
            for name, read_keys in keys.items():
                if len(seen := read_keys[read_keys.any(1)]):
                    context.memory = self._inverses(context).remember(name, seen, context.memory)

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


def _in_float32(change: Weight) -> Weight:
    """In the type and the form of a patch."""
    return change.float() if isinstance(change, Tensor) else LowRank(change.a.float(), change.b.float()).compact()
