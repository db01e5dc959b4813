"""A transformers model as a language model: the verbs of :class:`LM`."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Unpack, override

from errata.answers import complete
from errata.errors import BadInput
from errata.model import passes
from errata.model.decoding import Choose, StopRule, TopK, continued, decoding_of, greedy, steps
from errata.model.lm import LM, check_targets, listed
from errata.model.reading import Pair, TensorPasses
from errata.model.sampling import Sampling, TopP, is_drawn, seeds_of, top_p
from errata.model.scoring import scored
from errata.model.spelling import UNFINISHED
from errata.types import Score

if TYPE_CHECKING:
    import numpy as np


class HFLM(TensorPasses, LM):
    """A transformers model, decoder-only or encoder-decoder: the verbs of :class:`LM`, and the passes of methods.

    Made by ``errata.load``. Every verb runs in batches of at most ``budget`` tokens and gives the same results whatever
    the batches are. Every verb raises :class:`InForce` while a patch is in force on the model: ask the view that
    ``patch.applied(lm)`` yields, which is an ``HFLM`` too.
    """

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<HFLM: {self.name or 'a model'}, {self.sites.depth} blocks, {dtype} on {self.device}>"

    @torch.no_grad()
    @override
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
        **sampling: Unpack[Sampling],
    ) -> list[str]:
        def ended(text: str) -> bool:
            return (until_answer and complete(text)) or any(stop in text for stop in until)

        self.check()
        rows, limits = self._ids(prompts), [max_new_tokens] * len(prompts)
        choose = top_p(sampling, len(rows), max_new_tokens) if is_drawn(sampling) else greedy
        new = self._continued(rows, limits, choose, ended if until_answer or until else None)
        return [self.tokens.continuation(row, ids) for row, ids in zip(rows, new, strict=True)]

    @torch.no_grad()
    @override
    def stream(self, prompt: str, max_new_tokens: int = 32, **sampling: Unpack[Sampling]) -> Iterator[str]:
        """:meth:`LM.stream`, token by token. A character of several tokens comes whole.

        Between tokens the model is free for others; a patch that is put on or taken off meanwhile is :class:`InForce`.
        """
        self.check()
        (row,), given = self._ids([prompt]), 0
        choose = top_p(sampling, 1, max_new_tokens) if is_drawn(sampling) else greedy
        stop = StopRule(self.tokens, [row], self._limits([row], [max_new_tokens]))
        ids: list[int] = []
        for (ids,) in steps(self, [row], [0], stop, choose):
            text = self.tokens.continuation(row, self.tokens.settled(ids)).rstrip(UNFINISHED)
            if len(text) > given:
                yield text[given:]
                given = len(text)
        if rest := self.tokens.continuation(row, ids)[given:]:
            yield rest

    @torch.no_grad()
    @override
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        self.check()
        rows = self._ids(prompts)
        limits = [max(0, total - len(row)) for total, row in zip(totals, rows, strict=True)]
        some = [i for i, limit in enumerate(limits) if limit]
        choose: Choose = greedy
        if top_k > 1:
            choose = TopK(top_k, [(seeds or range(len(prompts)))[i] for i in some], max(limits, default=0))
        new = self._continued([rows[i] for i in some], [limits[i] for i in some], choose, past_end=top_k > 1)
        texts = [""] * len(prompts)
        for i, ids in zip(some, new, strict=True):
            texts[i] = self.tokens.continuation(rows[i], ids)
        return texts

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        seed: int | Sequence[int] = 0,
        until: Sequence[str] = (),
    ) -> list[list[int]]:
        """Token ids that continue each prompt, drawn at temperature 1; an empty prompt begins a text.

        With a ``seed`` for each prompt its draws do not depend on the others. A continuation ends as soon as its text
        contains one of the texts in ``until``.
        """
        choose: Choose
        if isinstance(seed, int):
            generator = torch.Generator().manual_seed(seed)

            def draw(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
                return torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator)[:, 0]

            choose = draw
        else:
            choose = TopP(1.0, 1.0, seeds_of({"seed": seed}, len(prompts)), max_new_tokens)

        def ended(text: str) -> bool:
            return any(stop in text for stop in until)

        self.check()
        return self._continued(self._ids(prompts), [max_new_tokens] * len(prompts), choose, ended if until else None)

    def _continued(
        self,
        rows: Sequence[list[int]],
        limits: Sequence[int],
        choose: Choose,
        ended: Callable[[str], bool] | None = None,
        past_end: bool = False,
    ) -> list[list[int]]:
        """The new ids of each row of prompt ids, at most its limit of them, and as many as the model can read."""
        return continued(self, rows, self._limits(rows, limits), choose, ended, past_end)

    def _limits(self, rows: Sequence[list[int]], limits: Sequence[int]) -> Sequence[int]:
        """How many new tokens each row may have, as the model can read no more."""
        if min(limits, default=1) < 1:
            raise BadInput(f"max_new_tokens must be at least 1, found {min(limits)}")
        if self.tokens.limit is None:
            return limits
        read = [1 if self.seq2seq else len(row) for row in rows]  # an encoder-decoder writes behind a token of its own
        return [min(n, self.tokens.limit + 1 - k) for n, k in zip(limits, read, strict=True)]

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [self.tokens.prompt(_text(prompt)) for prompt in listed(prompts)]

    @torch.no_grad()
    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        self.check()
        check_targets(prompts, targets)
        rows = self._ids(prompts)
        ids = [self.tokens.target(prompt, _text(target)) for prompt, target in zip(prompts, targets, strict=True)]
        return scored(self, list(zip(rows, ids, strict=True)))

    @torch.no_grad()
    def score_ids(self, pairs: Sequence[Pair]) -> list[Score]:
        """:meth:`score` of token ids, (prompt, target), for texts that the tokenizer would cut in another way."""
        self.check()
        if long := [f"{len(p)} and {len(t)}" for p, t in pairs if not self.tokens.fits(p, t)]:
            raise BadInput(f"a prompt and a target have {long[0]} tokens; the model reads at most {self.tokens.limit}")
        return scored(self, pairs)

    @torch.no_grad()
    @override
    def next_logprobs(self, prompts: Sequence[str]) -> "np.ndarray":
        self.check()
        rows = self._ids(prompts)
        out = torch.empty(len(rows), 0)
        for batch in passes.budgeted([len(row) for row in rows], self.budget):
            logprobs = self.target_logits([(rows[i], [self.tokens.fill]) for i in batch]).float().log_softmax(-1)
            if not out.shape[1]:
                out = torch.empty(len(rows), logprobs.shape[-1])
            out[batch] = logprobs.cpu()
        return out.numpy()

    @torch.no_grad()
    @override
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        self.check()
        rows = self._ids(prompts)
        lines: list[list[str]] = [[] for _ in rows]
        lengths, equal = [len(row) for row in rows], not self.caching.padded
        for batch in passes.budgeted(lengths, self.budget, equal=equal) if self.explainers else ():
            decoding = decoding_of(self, [rows[i] for i in batch])
            decoding.logits()
            for explain in self.explainers:
                for i, line in zip(batch, explain(decoding.call), strict=True):
                    lines[i] += [line] if line else []
        return lines


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput(f"expected text, found {type(value).__name__}: {value!r}")
    return value
