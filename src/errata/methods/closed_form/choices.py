"""What a closed-form method chooses: its settings, and the terms of the equation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.closed_form import portions, solve
from errata.methods.closed_form.context import Targets
from errata.methods.closed_form.keys import SubjectReadings, SubjectRows
from errata.methods.closed_form.objective import TargetSettings
from errata.methods.closed_form.outlet import Outlet
from errata.methods.closed_form.search import SearchResult
from errata.methods.closed_form.statistics import KeyStatistics
from errata.methods.closed_form.targets import find_deltas
from errata.methods.defaults import critical_layers
from errata.methods.outcomes import report
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.patch.low_rank import Weight
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class Choices(TargetSettings):
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

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The layers that are edited where the settings name none."""
        return critical_layers(lm.model, lm.sites)

    def chosen_layers(self, lm: HFLM) -> tuple[int, ...]:
        """The layers that are edited, rising. Raises :class:`BadInput` for layers that the model does not have."""
        layers = self.default_layers(lm) if self.layers is None else self.layers
        if not layers or sorted(set(layers)) != list(layers) or not 0 <= layers[0] <= layers[-1] < lm.sites.depth:
            raise BadInput(f"{self.name}'s layers must rise within 0 to {lm.sites.depth - 1}; found {layers}")
        return layers

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
    ) -> Sequence[Weight]:
        """ΔW (d, f) of each weight of a down projection: together they add the ``residual`` (n, d) to the values."""
        assert self.lam is not None
        k = [key.mean.T for key in keys]
        if len(k) == 1 and portions.pays(k[0], self.lam):
            return [portions.least_squares(metric, k[0], residual.T, self.lam) for metric in inverses]
        return solve.least_squares(inverses, k, residual.T, self.lam)
