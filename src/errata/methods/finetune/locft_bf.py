"""LocFT-BF: FT-M breadth-first, on a layer of its own."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from errata.methods.finetune.base import FineTuning
from errata.methods.settings import setting
from errata.model.hf import HFLM


@dataclass(frozen=True, kw_only=True)
class LocFTBF(FineTuning):
    """FT-M breadth-first: each round takes all edits in a new order, one step per mini-batch, and learns the end too.

    The paper's layer is 22 of 32 in Llama 3 and 6 of 28 in Qwen 2.5, found by search; the rule here is the former's.
    """

    name: ClassVar[str] = "locft-bf"
    paper: ClassVar[str] = "Yang et al. 2026, Fine-tuning Done Right in Model Editing, arXiv:2509.22072"

    layer: int | None = setting(None, "11/16 of the depth: the paper's 22 of Llama 3's 32")
    steps: int = setting(25, "paper: epochs", key="num_steps")
    batch: int = setting(100, "paper, for thousands of edits", key="batch_size")
    min_batches: int = setting(5, "measured here: 100 edits in one step a round are not learned in 25")
    end: bool = setting(True, "released code: the end-of-text token behind the answer")
    shuffle: bool = setting(True, "paper")

    @override
    def default_layer(self, lm: HFLM) -> int:
        return (22 * lm.sites.depth + 16) // 32
