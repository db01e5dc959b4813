"""What a language model is to Errata: the verbs of :class:`LM` on text, and the :class:`Call` that adapters see."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from errata.errors import Unsupported
from errata.types import Score

if TYPE_CHECKING:
    import numpy as np


class LM(Protocol):
    """The contract of a language model: text in, text and numbers out. It is all that evaluation may see.

    Sub-class it to measure a model that is reached in another way (an API, say): ``generate`` is enough, a verb that is
    left out raises :class:`Unsupported`, and tables show a dash where it would have been needed. Every verb takes a
    list and answers in its order, whatever batches it makes; it raises :class:`BadInput` for what is no text.
    """

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        """The greedy continuation of each prompt, as raw text without the prompt and with the space it begins with.

        It ends before the end token or after ``max_new_tokens``. With ``until_answer`` it may end as soon as the answer
        is complete (:func:`errata.answers.complete`), and as soon as it holds one of the texts in ``until``: what comes
        behind does not matter to the caller.
        """
        ...

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        """What the model gives each target behind its prompt, fed token by token.

        One space stands between the two, whether or not the target brings it, and none where the prompt ends with
        white space or is empty. A :class:`Score` has an entry for each token of the target.
        """
        raise _missing(self, "score")

    def next_logprobs(self, prompts: Sequence[str]) -> "np.ndarray":
        """Natural log-probabilities of the token after each prompt: (b, V), float32."""
        raise _missing(self, "next_logprobs")

    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        """What continues each prompt until both together hold ``totals`` tokens, as text without the prompt.

        Greedy and up to an end token; with ``top_k`` above 1 drawn among the k most likely tokens, and on past end
        tokens, as ROME's generator does. A row's draws depend on its seed alone.
        """
        raise _missing(self, "prolong")

    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        """What in the patch in force acts on each prompt: a line for each memory entry that fires there."""
        return [[] for _ in prompts]


def _missing(lm: object, verb: str) -> Unsupported:
    return Unsupported(f"{type(lm).__name__} has no {verb}; what is measured by it stays empty")


@dataclass(eq=False)
class Call:
    """What an adapter may read while the model runs; one call lives from the prompt's pass to the last new token.

    ``prompt_end`` is the column of each row's last prompt token in this pass, (b,), or None in the passes of decoding
    that follow it; ``mask`` is 1 where there is a token and 0 where there is padding, prompt and answer so far, (b, t);
    ``step`` counts the tokens decoded so far; ``memo`` holds what an adapter decided at the prompt: a tensor with a row
    for each row of the batch, under a key of the adapter's own.
    """

    mask: Tensor  # (b, t)
    prompt_end: Tensor | None = None  # (b,)
    step: int = 0
    memo: dict[Any, Tensor] = field(default_factory=dict)

    def offsets(self, t: int, device: Any) -> Tensor:
        """Offset of each of the last t tokens from its row's last prompt token, (b, t).

        Negative before it, 0 at it, positive in the answer.
        """
        at = torch.arange(t, device=device)[None]
        if self.prompt_end is not None:
            return at - self.prompt_end.to(device)[:, None]
        # where the prompt is run again at each step (no cache), it ends `step` tokens before the last
        return (at - (t - 1 - self.step)).expand(len(self.mask), t)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch (indices, in order): finished ones have left."""
        self.mask = self.mask[rows]
        self.memo = {key: kept[rows] for key, kept in self.memo.items()}
