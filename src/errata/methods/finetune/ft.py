"""FT, FT-L and FT-M: one down projection fine-tuned on the new answers.

FT and FT-L after Zhu et al. 2020, arXiv:2012.00363, as baselines of ROME (arXiv:2202.05262, appendix E.2);
FT-M from EasyEdit (Wang et al. 2023, arXiv:2308.07269).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import override

from errata.methods.finetune.base import FineTuning
from errata.methods.settings import setting
from errata.model.hf import HFLM


@dataclass(frozen=True, kw_only=True)
class FT(FineTuning):
    """Adam on one down projection, with every target token read at the prompt's last position."""

    name: ClassVar[str] = "ft"
    paper: ClassVar[str] = "Zhu et al. 2020, Modifying Memories in Transformer Models, arXiv:2012.00363"

    objective: Literal["prompt_last", "target"] = setting(
        "prompt_last", "ROME, released code", key="objective_optimization"
    )


@dataclass(frozen=True, kw_only=True)
class FTL(FT):
    """FT that keeps every weight within ``box`` of its old value."""

    name: ClassVar[str] = "ft-l"

    # x root mean square of the weights: two steps wide. ROME's is one in GPT-2 XL (both 5e-4), in which the bundled
    # model learns 3 facts of 100; in two it learns 70.
    BOX: ClassVar[float] = 0.04

    @override
    def default_layer(self, lm: HFLM) -> int:
        return 0  # released code, all GPT-2s

    @override
    def default_box(self, scale: float) -> float | None:
        return self.BOX * scale


@dataclass(frozen=True, kw_only=True)
class FTM(FineTuning):
    """FT with cross-entropy on the target's own tokens, the prompt masked."""

    name: ClassVar[str] = "ft-m"
    paper: ClassVar[str] = "Wang et al. 2023, EasyEdit, arXiv:2308.07269"

    objective: Literal["prompt_last", "target"] = setting("target", "EasyEdit", key="objective_optimization")
