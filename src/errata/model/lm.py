"""What a language model is to Errata: the verbs of :class:`LM` on text, and the :class:`Call` that adapters see."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from errata.types import Score

if TYPE_CHECKING:
    import numpy as np


class LM(Protocol):
    """Text in, text and numbers out: all that evaluation may see."""

    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = 32, *, until_answer: bool = False
    ) -> list[str]: ...
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]: ...
    def next_logprobs(self, prompts: Sequence[str]) -> "np.ndarray": ...
    def explain(self, prompts: Sequence[str]) -> list[list[str]]: ...


@dataclass(eq=False)
class Call:
    """What an adapter may know while the model runs: one lives from prefill to the last token.

    ``prompt_end`` is the index of each row's last prompt token in this pass (b,), or None while decoding; ``mask`` is
    1 where there is a token; ``memo`` holds what an adapter decided at the prompt, a tensor with a row per row.
    """

    mask: Tensor  # (b, t)
    prompt_end: Tensor | None = None  # (b,)
    step: int = 0
    memo: dict[Any, Tensor] = field(default_factory=dict)

    def offsets(self, t: int, device: Any) -> Tensor:
        """(b, t): how far each of a decoder pass's last ``t`` tokens stands behind its row's last prompt token."""
        at = torch.arange(t, device=device)[None]
        if self.prompt_end is not None:
            return at - self.prompt_end.to(device)[:, None]
        # where the prompt is run again at each step (no cache), it ends `step` tokens before the last
        return (at - (t - 1 - self.step)).expand(len(self.mask), t)

    def select(self, rows: Tensor) -> None:
        """Keeps some of the rows."""
        self.mask = self.mask[rows]
        self.memo = {key: kept[rows] for key, kept in self.memo.items()}
