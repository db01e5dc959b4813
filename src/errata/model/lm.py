"""The contract of a language model: the verbs of :class:`LM` on text, and the :class:`Call` that adapters read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from typing_extensions import Unpack

from errata.errors import BadInput, Unsupported
from errata.model.sampling import Sampling
from errata.types import Score

if TYPE_CHECKING:
    import numpy as np


class LM(Protocol):
    """The contract of a language model: text in, text and numbers out. Evaluation uses nothing else.

    Sub-class it to measure a model that is reached in another way (an API, say). ``generate`` is required; a verb that
    is left out raises :class:`Unsupported`, and tables show a dash where it was needed. Every verb takes a list and
    returns results in its order; how it makes batches must not change them. What is not text raises :class:`BadInput`.
    """

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
        **sampling: Unpack[Sampling],
    ) -> list[str]:
        """The continuation of each prompt: raw text without the prompt, its leading space included.

        Greedy, unless a ``temperature`` is given (above 0; None and 0 are greedy): then tokens are drawn, with
        ``top_p`` among the likeliest ones that together have this probability. A prompt's draws depend on ``seed`` and
        its index, or on its own entry of a list of seeds, and on no other prompt.

        It ends before an end token, after ``max_new_tokens`` (at least 1), or where the model can read no more. It may
        also end as soon as the answer is complete, with ``until_answer`` (:func:`errata.answers.complete`), and as soon
        as it contains one of the texts in ``until``: callers ignore what comes after.
        """
        ...

    def stream(self, prompt: str, max_new_tokens: int = 32, **sampling: Unpack[Sampling]) -> Iterator[str]:
        """The continuation of one prompt in pieces as they come; joined, they are what :meth:`generate` gives.

        One piece, where nothing says how its parts could be had. It may be left before its end.
        """
        yield from self.generate([prompt], max_new_tokens, **sampling)

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        """Log-probabilities and arg-max of each token of each target, the earlier target tokens being fed.

        One space is put between prompt and target, whether or not the target begins with one; none where the prompt
        ends with white space or is empty.
        """
        raise _missing(self, "score")

    def next_logprobs(self, prompts: Sequence[str]) -> "np.ndarray":
        """Natural log-probabilities of the token after each prompt. (b, V), float32."""
        raise _missing(self, "next_logprobs")

    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        """The continuation of each prompt up to ``totals`` tokens, prompt included: text without the prompt.

        Greedy and up to an end token. With ``top_k`` above 1 each token is drawn among the k most likely and end tokens
        end nothing, as in ROME's generator. A row's draws depend on its seed alone (by default its index).
        """
        raise _missing(self, "prolong")

    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        """What in the patch in force acts on each prompt: one line for each memory entry or fact that is used.

        Changes of weights act on every prompt and have no line.
        """
        return [[] for _ in prompts]


def check_targets(prompts: Sequence[str], targets: Sequence[str]) -> None:
    """Raises :class:`BadInput` unless there is a list of targets with one for each of a list of prompts."""
    if len(listed(prompts)) != len(listed(targets)):
        raise BadInput(f"score needs a target for each prompt: {len(prompts)} prompts, {len(targets)} targets")


def listed(texts: Sequence[str]) -> Sequence[str]:
    """The texts; :class:`BadInput` for a single one, whose letters would be taken for prompts."""
    if isinstance(texts, str):
        raise BadInput(f"expected a list of texts, found one text; put it in brackets: [{texts!r}]")
    return texts


def _missing(lm: object, verb: str) -> Unsupported:
    return Unsupported(f"{type(lm).__name__} has no {verb}; what is measured by it stays empty")


@dataclass(eq=False)
class Call:
    """One call of a verb on one batch, from the prompt's pass to the last new token, as adapters may read it."""

    mask: Tensor
    """1 where there is a token, 0 where there is padding; of the prompt and the answer so far. (b, t)."""
    prompt_end: Tensor | None = None
    """Column of each row's last prompt token in the pass that runs, (b,); None in the passes that decode after it."""
    step: int = 0
    """Tokens decoded so far."""
    ids: Tensor | None = None
    """Token ids of the pass that reads the prompts, with padding, and answers where they are fed; None in a pass of
    which no prompt is known. (b, t)"""
    memo: dict[Any, Tensor] = field(default_factory=dict)
    """What an adapter decided at the prompt: a tensor with a row for each row of the batch, under a key of its own."""

    def offsets(self, t: int, device: Any) -> Tensor:
        """Offset of each of the last t tokens from its row's last prompt token, (b, t).

        Negative before it, 0 at it, positive in the answer.
        """
        columns = torch.arange(t, device=device)[None]
        if self.prompt_end is not None:
            return columns - self.prompt_end.to(device)[:, None]
        # where the prompt is run again at each step (no cache), it ends `step` tokens before the last
        return (columns - (t - 1 - self.step)).expand(len(self.mask), t)

    def prompts(self) -> list[list[int]]:
        """Token ids of each row's prompt; none where the call does not know them."""
        if self.ids is None or self.prompt_end is None:
            return []
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        known = (self.mask > 0) & (columns <= self.prompt_end.to(self.ids.device)[:, None])
        return [row[chosen].tolist() for row, chosen in zip(self.ids, known, strict=True)]

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows of the batch (indices on the CPU, in order)."""
        self.mask, self.ids = self.mask[rows], None if self.ids is None else self.ids[rows]
        self.memo = {key: kept[rows] for key, kept in self.memo.items()}
