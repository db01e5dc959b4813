"""The gradient of an edit at chosen linears, token by token: the input u of the linear, and δ at its output.

The gradient of a linear's weight is Σ δ uᵀ over tokens (MEND, section 3); editors here work with the factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32, budgeted, unflattened
from errata.model.reading import Pair

SCALE = 2.0**10  # of the loss, and undone in δ: in float16 a small δ would be 0


@dataclass(frozen=True)
class TokenGradients:
    """Of one linear, for each token through which the loss depends on it."""

    u: Tensor
    """Inputs. (k, f)"""
    delta: Tensor
    """Gradients at the output. (k, d)"""
    of: Tensor
    """The pair (edit) that each is of. (k,)"""

    def only(self, pair: int) -> "TokenGradients":
        """Those of one pair."""
        chosen = self.of == pair
        return TokenGradients(self.u[chosen], self.delta[chosen], self.of[chosen])


Gradients = Mapping[str, TokenGradients]  # by the parameter's name


def only(gradients: Gradients, pair: int) -> Gradients:
    """Those of one pair."""
    return {name: g.only(pair) for name, g in gradients.items()}


def token_gradients(
    lm: HFLM,
    pairs: Sequence[Pair],
    names: Sequence[str],
    weights: Mapping[str, Tensor] | None = None,
    *,
    answers_only: bool = False,
) -> dict[str, TokenGradients]:
    """For each weight by its parameter's name, u and δ of the mean −log p of each pair's target tokens.

    One forward and one backward pass for each batch. Tokens whose δ is zero are left out, as padding is; with
    ``answers_only`` so are those of a decoder that do not predict a target token; of an encoder-decoder all count.
    ``weights`` stand in the place of the model's.
    """
    found: dict[str, list[TokenGradients]] = {name: [] for name in names}
    for batch in budgeted([len(p) + len(t) for p, t in pairs], lm.budget):
        for name, part in _of_batch(lm, pairs, batch, names, weights, answers_only).items():
            found[name].append(part)
    return {name: _ordered(parts) for name, parts in found.items()}


def _of_batch(
    lm: HFLM,
    pairs: Sequence[Pair],
    batch: Sequence[int],
    names: Sequence[str],
    weights: Mapping[str, Tensor] | None,
    answers_only: bool,
) -> dict[str, TokenGradients]:
    some = [pairs[i] for i in batch]
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def keep(args: hooks.Args, kwargs: hooks.Kwargs, output: Tensor) -> Tensor:
            added = torch.zeros_like(output, requires_grad=True)  # whose gradient is that of the output
            seen[name] = args[0].detach(), added
            return output + added

        return hooks.after(lm.model.get_submodule(name.removesuffix(".weight")), keep)

    with torch.enable_grad(), hooks.all_of(watch(name) for name in names):
        loss = _loss(lm.target_logits(some, weights), some)
        deltas = torch.autograd.grad(loss * SCALE, [seen[name][1] for name in names])
    rows = torch.tensor(batch, device=lm.device)
    found: dict[str, TokenGradients] = {}
    for name, delta in zip(names, deltas, strict=True):
        both = (at_least_float32(x).to(rows.device) for x in (seen[name][0], delta))  # blocks may lie on other devices
        u, d = (unflattened(x, len(some)) for x in both)
        d = d / SCALE
        chosen = d.ne(0).any(-1)
        if answers_only and not lm.seq2seq:
            chosen &= _predicting(some, chosen)
        found[name] = TokenGradients(u[chosen], d[chosen], rows[:, None].expand(chosen.shape)[chosen])
    return found


def _loss(logits: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The sum over pairs of the mean −log p of their target tokens."""
    targets = torch.tensor([token for _, target in pairs for token in target], device=logits.device)
    share = torch.tensor([1 / len(target) for _, target in pairs for _ in target], device=logits.device)
    nll = -at_least_float32(logits).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return (nll * share.to(nll)).sum()


def _predicting(pairs: Sequence[Pair], like: Tensor) -> Tensor:
    """Which tokens (b, t) of a decoder predict a target token."""
    chosen = torch.zeros_like(like)
    for row, (prompt, target) in enumerate(pairs):
        chosen[row, len(prompt) - 1 : len(prompt) - 1 + len(target)] = True
    return chosen


def _ordered(parts: Sequence[TokenGradients]) -> TokenGradients:
    """Parts in one, by pair, so that the batches do not matter."""
    of = torch.cat([part.of for part in parts])
    order = of.argsort(stable=True)
    return TokenGradients(
        torch.cat([part.u for part in parts])[order], torch.cat([part.delta for part in parts])[order], of[order]
    )
