"""Many facts at once, spread over a few layers: MEMIT, and what changes one of its terms (PMET, AlphaEdit)."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from errata.methods.base import State
from errata.methods.closed_form import solve
from errata.methods.closed_form.base import ClosedForm
from errata.methods.defaults import critical_layers
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.passes import InterventionSite
from errata.patch.delta import weight_shape

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MEMIT(ClosedForm):
    """Targets at the last of the critical layers, each layer solving for its share: algorithm 1 of the paper.

    λ is LAM x the key's width, since E[kᵀC⁻¹k] = d_ff: the paper's 15,000 for GPT-J; its 20,000 for GPT-2 XL is 3.4
    times the rule, as the two differ by that in these units. The learning rate is RATE of the hidden state's length,
    found on the bundled model: the paper's 0.5 depends on a length that it does not give. ``history`` adds the keys of
    earlier edits to C, which the paper's sequential form leaves out. ``preserve`` (8 is a good weight) keeps what the
    model says of the subject otherwise; it is not in the paper.
    """

    name: ClassVar[str] = "memit"
    family: ClassVar[str] = "locate, then edit"
    paper: ClassVar[str] = "Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229"

    LAM: ClassVar[float] = 0.92
    RATE: ClassVar[float] = 0.19

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        return critical_layers(lm.model, lm.sites)

    def default_lam(self, lm: HFLM, state: State, site: str) -> float:
        return self.LAM * weight_shape(lm, f"{site}.weight")[1]


@dataclass(frozen=True, kw_only=True)
class PMET(MEMIT):
    """Targets for the down projection itself, found beside a δ of the attention that is thrown away.

    What attention could have said does not end up in the weights. A layer takes 1 / √left of the residual. Once the
    answer is the arg-max it weighs a tenth, and the search ends where the KL is small. λ is the paper's 6,000 for GPT-J
    in units of the key's width; the rate stands to MEMIT's as the paper's 0.2 to 0.5.
    """

    name: ClassVar[str] = "pmet"
    paper: ClassVar[str] = "Li et al. 2024, PMET: Precise Model Editing in a Transformer, arXiv:2308.08742"

    LAM: ClassVar[float] = 0.37
    RATE: ClassVar[float] = 0.076
    eased: ClassVar[float] = 0.1
    kl_stop: ClassVar[float | None] = 0.01

    steps: int = setting(30, "section 5.1", above=0)
    kl: float = setting(1.0, "section 5.1")

    def place(self, lm: HFLM, layer: int) -> InterventionSite:
        return InterventionSite(layer, inside=True, attention=True)

    def share(self, left: int) -> float:
        return left**-0.5


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(MEMIT):
    """MEMIT in the null space of what the model knows: no key of C is moved, so that Δ K0 ≈ 0 (equation 12).

    The null space are the directions of C's smallest eigenvalues that together hold ``cut`` of their sum; the paper's
    cut is absolute (0.02) and depends on the scale of activations. λ is MEMIT's, as P is scaled to E[kᵀPk] = d_ff; the
    paper's 10 depends on that scale too.
    """

    name: ClassVar[str] = "alphaedit"
    paper: ClassVar[str] = "Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing, arXiv:2410.02355"

    cut: float = setting(0.02, "share of C's trace")
    history: bool = setting(True, "keys of earlier edits join")

    @property
    def metric_name(self) -> str:
        return f"P{self.cut}"

    def metric(self, c: Tensor) -> Tensor:
        """P, scaled so that E[kᵀPk] = d_ff as with C⁻¹: λ is then in MEMIT's units."""
        projector = solve.null_projector(c, self.cut)
        log.info("%s: %.0f of %d directions are free", self.name, projector.trace(), len(c))
        return projector * (len(c) / (projector * c).sum().clamp(min=1e-12))
