"""AlphaEdit: MEMIT in the null space of what the model knows."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from errata.methods.base import Tags
from errata.methods.closed_form import solve
from errata.methods.closed_form.base import ClosedForm
from errata.methods.settings import setting


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(ClosedForm):
    """MEMIT with a projector P in the place of C⁻¹: no key of C is moved, so that Δ K0 ≈ 0 (equation 12).

    The null space are the directions of C's smallest eigenvalues that together hold ``cut`` of their sum; the paper's
    cut is absolute (0.02) and depends on the scale of activations. λ is MEMIT's, as P is scaled to E[kᵀPk] = d_ff; the
    paper's 10 depends on that scale too.
    """

    name: ClassVar[str] = "alphaedit"
    paper: ClassVar[str] = "Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing, arXiv:2410.02355"
    tags: ClassVar[Tags] = Tags(quick={"contexts": 0, "cut": 0.1, "layers": (1,)})  # few sentences leave few directions

    METRIC_FLOP: ClassVar[float] = 11.0  # f³: eigenvectors some 9, the projector up to 2
    METRIC_COPIES: ClassVar[float] = 4.0  # C, its eigenvectors and LAPACK's two

    cut: float = setting(0.02, "share of C's trace", key="nullspace_threshold")
    lam: float | None = setting(None, "MEMIT's, LAM x width of the keys", key="L2")
    history: bool = setting(True, "keys of earlier edits join")

    @property
    @override
    def metric_name(self) -> str:
        return f"P{self.cut}"

    @override
    def metric(self, c: Tensor) -> Tensor:
        """P, scaled so that E[kᵀPk] = d_ff as with C⁻¹."""
        return solve.scaled_null_projector(c, self.cut)
