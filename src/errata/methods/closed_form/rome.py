"""ROME: one fact at a time, exactly, in one layer (Meng et al. 2022, arXiv:2202.05262).

r-ROME mends its keys; EMMET solves for a whole batch.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import State
from errata.methods.closed_form import solve
from errata.methods.closed_form.base import ClosedForm
from errata.methods.closed_form.keys import Seen
from errata.methods.defaults import critical_layer
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.patch.delta import LowRank

Keys = Literal["mixed", "averaged", "bare"]


@dataclass(frozen=True, kw_only=True)
class ROME(ClosedForm):
    """W' k* = v* with the least change of what other keys give: equation 2 of the paper.

    ``keys`` says which key is k*. The released code takes the average over contexts for the direction and the bare
    prompt's in the equation (``mixed``), which now and then makes a huge update; r-ROME takes the average everywhere
    (``averaged``), p-ROME the bare prompt's (``bare``).
    """

    name: ClassVar[str] = "rome"
    family: ClassVar[str] = "locate, then edit"
    paper: ClassVar[str] = "Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262"
    one_by_one: ClassVar[bool] = True
    by_type: ClassVar[bool] = False
    RATE: ClassVar[float] = 0.4  # found on the bundled model; the paper's 0.5 depends on lengths that it does not give

    contexts: int = setting(20, "released code: 10 prefixes of 5 tokens and 10 of 10")
    steps: int = setting(20, "appendix E.5", above=0)
    clamp: float = setting(1.5, "x hidden state; released code: 4 x MLP output, in the bundled model a tenth of it")
    keys: Keys = setting("mixed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.one_by_one and self.history:
            raise BadInput(f"{self.name} solves each fact exactly and keeps no history; leave history=False")

    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        return (critical_layer(lm.model, lm.sites),)

    def default_lam(self, lm: HFLM, state: State, site: str) -> float:
        return 0.0

    def residual(self, delta: Tensor, since: Tensor, values: Seen, gain: float) -> Tensor:
        """v* − W k*, with v* = v + δ in the bare prompt."""
        missing = values.bare - values.mean if self.keys == "averaged" else 0.0
        return delta.to(since) / gain + missing

    def change(self, inverse: Tensor, keys: Seen, left: Tensor) -> LowRank:
        assert self.lam is not None
        direction = keys.bare if self.keys == "bare" else keys.mean
        at = keys.mean if self.keys == "averaged" else keys.bare
        return solve.least_squares(inverse, direction.T, left.T, self.lam, at.T)


@dataclass(frozen=True, kw_only=True)
class RROME(ROME):
    """ROME with the averaged key everywhere (Gupta et al. 2024, arXiv:2403.07175)."""

    name: ClassVar[str] = "r-rome"
    paper: ClassVar[str] = "Gupta et al. 2024, Rebuilding ROME, arXiv:2403.07175"

    keys: Keys = setting("averaged")


@dataclass(frozen=True, kw_only=True)
class EMMET(RROME):
    """r-ROME for a batch: every new value is met at once, equation 5 of the paper with α = ``lam`` for conditioning.

    With α = 0 and one fact it is r-ROME.
    """

    name: ClassVar[str] = "emmet"
    paper: ClassVar[str] = "Gupta et al. 2024, A Unified Framework for Model Editing, arXiv:2403.14236"
    one_by_one: ClassVar[bool] = False

    ALPHA: ClassVar[float] = 0.1  # the paper's, whatever the model: far below E[kᵀC⁻¹k] = d_ff in all of them

    def default_lam(self, lm: HFLM, state: State, site: str) -> float:
        return self.ALPHA
