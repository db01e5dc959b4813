"""A model that workers ask: the verbs of :class:`LM`, each of whose prompts goes to one of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack, override

from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.model.lm import LM, listed
from errata.model.sampling import Sampling, for_rows
from errata.model.workers import Workers
from errata.patch.patch import EMPTY, Patch

if TYPE_CHECKING:
    import numpy as np

    from errata.types import Score


class SharedOut(LM):
    """The model that the workers of a pool hold, with ``patch`` in force; what it replies is what one of them would.

    A prompt goes to a worker with every n-th other.
    """

    def __init__(self, pool: Workers, patch: Patch = EMPTY) -> None:
        self.pool, self.patch = pool, patch

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
        how: Any = {"until_answer": until_answer, "until": until}

        def of(rows: Sequence[int]) -> Mapping[str, Any]:
            return {**how, **for_rows(sampling, len(prompts), rows), "max_new_tokens": max_new_tokens}

        return self._each("generate", [prompts], of)

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> "list[Score]":
        return self._each("score", [prompts, targets])

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> "np.ndarray":
        import numpy as np

        rows = self._each("next_logprobs", [prompts])
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    @override
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        every = list(range(len(prompts))) if seeds is None else seeds

        def of(rows: Sequence[int]) -> Mapping[str, Any]:
            return {"top_k": top_k, "seeds": [every[i] for i in rows]}

        return self._each("prolong", [prompts, totals], of)

    @override
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        return self._each("explain", [prompts])

    def _each(
        self,
        verb: str,
        columns: Sequence[Sequence[Any]],
        of: Callable[[Sequence[int]], Mapping[str, Any]] = lambda rows: {},
    ) -> list[Any]:
        """What the verb gives for each row of the columns, in order; ``of`` are its options for some of the rows."""
        n, count = len(listed(columns[0])), self.pool.count
        if len(listed(columns[-1])) != n:
            raise BadInput(f"{verb} needs one for each prompt: {n} prompts, {len(columns[-1])} beside them")
        parts = [range(start, n, count) for start in range(min(n, count))]
        shards = [(self.patch, verb, [[column[i] for i in part] for column in columns], of(part)) for part in parts]
        replies: list[Any] = [None] * n
        for part, some in zip(parts, self.pool.map(asked, shards), strict=True):
            for i, reply in zip(part, some, strict=True):
                replies[i] = reply
        return replies


def asked(lm: HFLM, patch: Patch, verb: str, columns: Sequence[Sequence[Any]], options: Mapping[str, Any]) -> Any:
    """What a verb gives with a patch in force, in a worker."""
    with patch.applied(lm) as edited:
        return getattr(edited, verb)(*columns, **options)
