"""What the new values shall be: targets that are searched for, or known, and with NAS of one length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from errata.methods.closed_form.anchor import ANCHOR, anchor_edits, anchor_of, anchored
from errata.methods.closed_form.choices import Choices
from errata.methods.closed_form.context import EditContext, Targets
from errata.model.added import InterventionSite
from errata.model.heap import give_back
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class FindsTargets(Choices):
    """A method whose targets are found at one layer."""

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


def measured_at(lm: HFLM, layer: int) -> str:
    """The path whose output is what a δ at this layer is measured against."""
    return lm.sites.mlp_out[layer] if lm.sites.gain[layer] is None else lm.sites.layer[layer]
