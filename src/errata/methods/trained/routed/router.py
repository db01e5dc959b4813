"""A language model beside the base one: it answers what it is responsible for, and the base model everything else.

Which of the two answers is decided at the prompt, in the same way for every verb. ``score`` and ``next_logprobs`` ask
the base model about all prompts and put the other one's answers in their places, so that the rest are bit for bit what
the base model gives for the same prompts. The verbs that write text ask it about the rest only, since each token
costs a pass: bit for bit as it answers these by themselves. Other rows in a batch change its padding, and with that
numbers by rounding.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from typing_extensions import Unpack, override

from errata.answers import complete
from errata.errors import BadInput, Unsupported
from errata.model import passes
from errata.model.decoding import Choose, StopRule, TopK, greedy
from errata.model.lm import LM, check_targets, listed
from errata.model.sampling import Sampling, for_rows, top_p
from errata.model.tokens import Tokens
from errata.types import Score, as_text

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

R = TypeVar("R")  # what is read in the place of a prompt that does not go to the base model
BUDGET = 8192  # tokens of a batch of small models


def budget_of(vocabulary: int) -> int:
    """Tokens of a batch in which each has a probability of every token: fewer in a large vocabulary."""
    return max(1, BUDGET // max(1, vocabulary // 4096))


class RoutedLM(LM, Generic[R]):
    """The inner model, and another one for the prompts for which ``read`` returns something that it reads."""

    def __init__(self, inner: LM) -> None:
        """Raises :class:`Unsupported` where the inner model has no tokens to answer in."""
        self.inner = inner
        if not isinstance(getattr(inner, "tokens", None), Tokens):
            raise Unsupported(f"a small model answers in the tokens of the base model; {type(inner).__name__} has none")

    @property
    def tokens(self) -> Tokens:
        """The inner model's."""
        return self.inner.tokens  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]

    @property
    def device(self) -> Any:
        """The inner model's, on which the other one runs too."""
        return getattr(self.inner, "device", None)

    @abstractmethod
    def read(self, prompts: Sequence[str]) -> list[R | None]:
        """For each prompt what the other model reads; None for what the base model answers."""

    @abstractmethod
    def size(self, row: R) -> int:
        """Tokens of what is read."""

    @abstractmethod
    def logprobs(self, rows: Sequence[R], targets: Sequence[Sequence[int]]) -> "list[Tensor]":
        """Log-probabilities of the other model at each token of each target, those before it being fed. (t, V) each."""

    @abstractmethod
    def written(self, rows: Sequence[R], stop: StopRule, choose: Choose, numbers: Sequence[int]) -> list[list[int]]:
        """Token ids that the other model writes behind each row until ``stop`` says so; ``numbers`` are for
        ``choose``."""

    @abstractmethod
    def lines(self, rows: Sequence[R]) -> list[str]:
        """A line about each row, for :meth:`explain`."""

    # The verbs -------------------------------------------------------------------------------------

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

        own, rest = self.parted(prompts)
        if max_new_tokens < 1:
            raise BadInput(f"max_new_tokens must be at least 1, found {max_new_tokens}")
        draws = for_rows(sampling, len(prompts), rest)
        asked = [prompts[i] for i in rest]
        base = self.inner.generate(asked, max_new_tokens, until_answer=until_answer, until=until, **draws)
        limits = dict.fromkeys(own, max_new_tokens)
        choose = top_p(sampling, len(prompts), max_new_tokens) if draws else greedy
        return _merged(
            rest, base, self._written(prompts, own, limits, choose, ended if until_answer or until else None)
        )

    @override
    def stream(self, prompt: str, max_new_tokens: int = 32, **sampling: Unpack[Sampling]) -> Iterator[str]:
        """What the other model answers comes in one piece."""
        own, _ = self.parted([prompt])
        return (super() if own else self.inner).stream(prompt, max_new_tokens, **sampling)

    @override
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        own, rest = self.parted(prompts)
        seeds = range(len(prompts)) if seeds is None else seeds
        base = self.inner.prolong(
            [prompts[i] for i in rest], [totals[i] for i in rest], top_k=top_k, seeds=[seeds[i] for i in rest]
        )
        limits = {i: max(0, totals[i] - len(self.tokens.prompt(prompts[i]))) for i in own}
        some = {i: row for i, row in own.items() if limits[i]}
        choose: Choose = greedy
        if top_k > 1:
            choose = TopK(top_k, seeds, max(limits.values(), default=0))
        texts = self._written(prompts, some, limits, choose, past_end=top_k > 1)
        return _merged(rest, base, dict.fromkeys(own, "") | texts)

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        own, _ = self.parted(prompts)
        check_targets(prompts, targets)
        scores = self.inner.score(prompts, targets)
        for i, score in self.own_scores(own, prompts, targets).items():
            scores[i] = score
        return scores

    def own_scores(self, own: dict[int, R], prompts: Sequence[str], targets: Sequence[str]) -> dict[int, Score]:
        """The other model's scores, by index, of prompts for which it read ``own``."""
        ids = {i: self.tokens.target(prompts[i], as_text(targets[i], "a target")) for i in own}
        return {i: _score(ids[i], table) for i, table in self._logprobs(own, ids)}

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> "npt.NDArray[np.float32]":
        own, _ = self.parted(prompts)
        logprobs = self.inner.next_logprobs(prompts)
        for i, table in self._logprobs(own, {i: [self.tokens.fill] for i in own}):
            logprobs[i] = table[0].numpy()
        return logprobs

    @override
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        """For what the other model answers a line of its own; for the rest what the inner model reports."""
        own, rest = self.parted(prompts)
        base = self.inner.explain([prompts[i] for i in rest])
        lines = self.lines(list(own.values()))
        return _merged(rest, base, {i: [line] for i, line in zip(own, lines, strict=True)})

    # Batches of the other model --------------------------------------------------------------------

    def parted(self, prompts: Sequence[str]) -> tuple[dict[int, R], list[int]]:
        """Index -> what the other model reads; and the indices for the base model, which refuses what is no text."""
        texts = [i for i, prompt in enumerate(listed(prompts)) if isinstance(prompt, str) and prompt.strip()]  # pyright: ignore[reportUnnecessaryIsInstance]
        read = self.read([as_text(prompts[i], "a prompt") for i in texts]) if texts else []
        own = {i: row for i, row in zip(texts, read, strict=True) if row is not None}
        return own, [i for i in range(len(prompts)) if i not in own]

    @torch.no_grad()
    def _logprobs(self, own: dict[int, R], ids: dict[int, list[int]]) -> "Iterator[tuple[int, Tensor]]":
        """Index -> :meth:`logprobs`, batch by batch: all together may be too large to hold."""
        order, budget = list(own), budget_of(self.tokens.rows or len(self.tokens.tokenizer))
        for batch in passes.budgeted([self.size(own[i]) + len(ids[i]) for i in order], budget):
            some = [order[j] for j in batch]
            yield from zip(some, self.logprobs([own[i] for i in some], [ids[i] for i in some]), strict=True)

    @torch.no_grad()
    def _written(
        self,
        prompts: Sequence[str],
        own: dict[int, R],
        limits: dict[int, int],
        choose: Choose,
        ended: Callable[[str], bool] | None = None,
        past_end: bool = False,
    ) -> dict[int, str]:
        order, texts = list(own), dict[int, str]()
        for batch in passes.budgeted([self.size(own[i]) + limits[i] for i in order], BUDGET):
            some = [order[j] for j in batch]
            heads = [self.tokens.prompt(prompts[i]) for i in some]
            stop = StopRule(self.tokens, heads, [limits[i] for i in some], ended, past_end)
            new = self.written([own[i] for i in some], stop, choose, some)
            texts |= {i: self.tokens.continuation(h, ids) for i, h, ids in zip(some, heads, new, strict=True)}
        return texts


T = TypeVar("T")


def _merged(rest: Sequence[int], base: Sequence[T], own: dict[int, T]) -> list[T]:
    """What the base model and the other one gave, in the order of the prompts."""
    found = own | dict(zip(rest, base, strict=True))
    return [found[i] for i in range(len(found))]


def _score(target: Sequence[int], logprobs: "Tensor") -> Score:
    given = logprobs[torch.arange(len(target)), torch.tensor(target)]
    return Score(tuple(target), tuple(given.tolist()), tuple(logprobs.argmax(-1).tolist()))
