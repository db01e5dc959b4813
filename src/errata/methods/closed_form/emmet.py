"""EMMET: the new values of a whole batch met at once, in one layer."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from errata.methods.base import State
from errata.methods.closed_form.single_layer import SingleLayer
from errata.methods.settings import setting
from errata.model.hf import HFLM


@dataclass(frozen=True, kw_only=True)
class EMMET(SingleLayer):
    """r-ROME for a batch: equation 5 of the paper with α = ``lam`` for conditioning.

    With α = 0 and one fact it is r-ROME.
    """

    name: ClassVar[str] = "emmet"
    paper: ClassVar[str] = "Gupta et al. 2024, A Unified Framework for Model Editing, arXiv:2403.14236"

    ALPHA: ClassVar[float] = 0.1  # the paper's, whatever the model: far below E[kᵀC⁻¹k] = d_ff in all of them

    lam: float | None = setting(None, "α = 0.1, the paper's (ALPHA)", key="emmet_lambda")

    @override
    def default_lam(self, lm: HFLM, state: State, path: str) -> float:
        return self.ALPHA
