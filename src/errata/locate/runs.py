"""The corrupted runs of causal tracing, batched, and the same runs with clean states restored."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from errata.model import hooks, passes
from errata.model.hf import HFLM
from errata.model.lm import Call

log = logging.getLogger(__name__)


def probability(logits: Tensor, o: int) -> Tensor:
    """P(o) from logits (b, V), in float64 on the CPU. (b,)."""
    return (logits[:, o] - logits.logsumexp(-1)).cpu().double().exp()


class CorruptedRuns:
    """The corrupted run of every noise draw, and the same runs with states restored.

    Blocks below the first restored state do not run again: their output is that of the corrupted run. Whether this
    gives the same logits is checked for every depth; if it does not, every block runs.
    """

    def __init__(self, lm: HFLM, ids: Sequence[int], first: int, o: int, noise: Tensor) -> None:
        """``first``: the subject's first token; ``noise`` (samples, subject tokens, d) is added from there on."""
        self.lm, self.o, self.first, self.noise = lm, o, first, noise
        self.ids = torch.tensor([list(ids)], device=lm.device)  # (1, t)
        self.rows = max(1, lm.budget // len(ids))  # of a batch
        self._forms: list[Any] = [None] * lm.sites.depth  # an output of each block, for its form
        self._hidden: list[list[Tensor]] = [[] for _ in self._forms]
        logits = [self._logits(draws, extra=self._storing()) for draws in torch.arange(len(noise)).split(self.rows)]
        self._stored = [torch.cat(batches) for batches in self._hidden]  # (samples, t, d) for each layer
        self.probability = float(torch.cat([probability(batch, o) for batch in logits]).mean())
        self._may_skip = self._skipping_holds(logits[0][:1])

    def restored(self, states: Mapping[str, Tensor], skipped: int) -> Tensor:
        """P(o) with the clean outputs of modules restored at one position, for each from the subject on. (positions,).

        ``states`` maps module paths to their clean outputs (positions, width); ``skipped`` blocks come before them all.
        """
        width = self.ids.shape[1] - self.first
        pairs = torch.cartesian_prod(torch.arange(len(self.noise)), torch.arange(width))  # (samples · positions, 2)
        batches = [part.unbind(1) for part in pairs.split(self.rows)]
        p = [
            probability(
                self._logits(draws, skipped if self._may_skip else 0, self._restoring(states, positions)), self.o
            )
            for draws, positions in batches
        ]
        return torch.cat(p).view(len(self.noise), width).mean(0)

    def _logits(self, draws: Tensor, skipped: int = 0, extra: Iterable[AbstractContextManager[None]] = ()) -> Tensor:
        """Logits at the last token of a row for each draw; the first ``skipped`` blocks do not run. (b, V)."""
        lm, b, t = self.lm, len(draws), self.ids.shape[1]
        ids = self.ids.repeat(b, 1)
        mask, last = torch.ones_like(ids), torch.full((b,), t - 1, device=ids.device)
        with (
            lm.calling(Call(mask, last)),
            hooks.forward_replaced(self._stored_outputs(draws, skipped)),
            hooks.after(lm.model.get_submodule(lm.sites.embed), lambda args, kwargs, out: self._corrupted(out, draws)),
            hooks.all_of(extra),
            passes.gathered(lm.model, lm.sites, torch.arange(b), last),
        ):
            return passes.at_least_float32(lm.run(passes.inputs_of(lm.model, ids, mask)).logits[0])

    def _corrupted(self, embedded: Tensor, draws: Tensor) -> Tensor:
        noisy = embedded.clone()
        noisy[:, self.first : self.first + self.noise.shape[1]] += self.noise[draws].to(embedded)
        return noisy

    def _stored_outputs(self, draws: Tensor, skipped: int) -> dict[Any, Any]:
        """Block -> a forward that returns the stored output of the last skipped block, for each skipped block."""
        if not skipped:
            return {}
        hidden = self._stored[skipped - 1]
        output = passes.with_hidden(self._forms[skipped - 1], hidden[draws.to(hidden.device)])
        return {self.lm.model.get_submodule(path): lambda *_, **__: output for path in self.lm.sites.layer[:skipped]}

    def _storing(self) -> list[AbstractContextManager[None]]:
        """Hooks that store the output of each block."""

        def store(layer: int, output: Any) -> None:
            self._forms[layer] = output
            self._hidden[layer].append(passes.hidden_of(output).clone())  # the next block may write into it

        def hook(layer: int, path: str) -> AbstractContextManager[None]:
            return hooks.after(self.lm.model.get_submodule(path), lambda args, kwargs, out: store(layer, out))

        return [hook(layer, path) for layer, path in enumerate(self.lm.sites.layer)]

    def _restoring(self, states: Mapping[str, Tensor], positions: Tensor) -> list[AbstractContextManager[None]]:
        """Hooks that restore one position of each row, (b,), counted from the subject's first token."""

        def restore(output: Any, clean: Tensor) -> Any:
            hidden = passes.hidden_of(output)
            changed = passes.unflattened(hidden, len(positions)).clone()
            changed[torch.arange(len(positions)), self.first + positions] = clean[positions].to(changed)
            return passes.with_hidden(output, changed.view_as(hidden))

        def hook(path: str, clean: Tensor) -> AbstractContextManager[None]:
            return hooks.after(self.lm.model.get_submodule(path), lambda args, kwargs, out: restore(out, clean))

        return [hook(path, clean) for path, clean in states.items()]

    def _skipping_holds(self, full: Tensor) -> bool:
        """Whether one draw, run from any layer on, gives the logits (1, V) of the whole run."""
        one = torch.zeros(1, dtype=torch.long)
        same = all(passes.same_logits(self._logits(one, n), full) for n in range(1, self.lm.sites.depth + 1))
        if not same:
            log.warning("%s does not give the same logits when run from a layer on; all layers run", self.lm.name)
        return same
