"""What trained weight editors are trained for: prompts that follow the edit are answered anew, others stay.

c_edit · mean −log p(new answer | W + Δ) + c_keep · mean KL(p₀ ‖ p_{W+Δ}), the first over prompts in other words, the
second over the answers' tokens of prompts to keep (MEND, equation 4; MALMEN, section 3.2). Where earlier edits of a
sequence stand in W already (``on``), p₀ is all the same the model's own, which none of them has changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.methods.losses import token_losses
from errata.methods.trained.examples import Asked, Example
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32, budgeted
from errata.model.reading import Pair
from errata.model.weights import oriented, plain

SCALE = 2.0**10  # of losses where gradients pass a model in half precision

Weights = Mapping[str, Tensor]


def changed(lm: HFLM, changes: Weights, on: Weights | None = None) -> dict[str, Tensor]:
    """W + Δ for ``HFLM.run(weights=…)``, inside the graph of ``changes`` (out, in); ``on`` stand in the place of W."""
    params = {name: (on or {}).get(name, plain(lm.model, name, "cannot be changed")).detach() for name in changes}
    return dict(on or {}) | {
        name: at_least_float32(w) + oriented(lm.model, name, changes[name]).to(w.device) for name, w in params.items()
    }


def outer_gradient(
    lm: HFLM,
    changes: Weights,
    follow: Sequence[Asked],
    keep: Sequence[Asked],
    *,
    c_edit: float,
    c_keep: float,
    on: Weights | None = None,
    before: Weights | None = None,
) -> tuple[Losses, dict[str, Tensor]]:
    """The objective at W + Δ, with its parts, and its gradient by Δ. (out, in) each.

    ``before`` are the weights whose answers prompts to keep must have, by default the model's own, without ``on``. In
    batches of the model's token budget: the memory does not depend on how many prompts there are.
    """
    leaves = {name: change.detach().clone().requires_grad_() for name, change in changes.items()}
    losses = {"edit": 0.0, "keep": 0.0}
    gradients: dict[str, Any] = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for part, asked, weight in (("edit", follow, c_edit), ("keep", keep, c_keep)):
        pairs = [one.ids(lm) for one in asked]
        for some in batches(lm, pairs):
            stay = None if part == "edit" else _log_probs(lm, some, before)
            with torch.enable_grad():
                logits = lm.target_logits(some, changed(lm, leaves, on))
                loss = (nll(logits, some) if stay is None else kl(stay, logits, some)).sum() / len(pairs)
            losses[part] += float(loss.detach())
            if weight:
                found = torch.autograd.grad(weight * SCALE * loss, list(leaves.values()))
                for name, gradient in zip(leaves, found, strict=True):
                    gradients[name] += gradient / SCALE
    losses["loss"] = c_edit * losses["edit"] + c_keep * losses["keep"]
    return losses, gradients


def batches(lm: HFLM, pairs: Sequence[Pair]) -> Iterable[list[Pair]]:
    """The pairs in batches of the model's token budget."""
    for batch in budgeted([len(p) + len(t) for p, t in pairs], lm.budget):
        yield [pairs[i] for i in batch]


def nll(logits: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """(n,): for each pair the mean −log p of its target tokens under ``logits`` (k, V)."""
    targets = torch.tensor([token for _, target in pairs for token in target], device=logits.device)
    return _means(token_losses(logits, targets), pairs)


def kl(before: Tensor, logits: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """(n,): for each pair the mean over its target tokens of KL(before ‖ now); ``before`` are log p (k, V)."""
    now = at_least_float32(logits).log_softmax(-1)
    return _means((before.exp() * (before - now)).sum(-1), pairs)


def _means(by_token: Tensor, pairs: Sequence[Pair]) -> Tensor:
    return torch.stack([some.mean() for some in by_token.split([len(target) for _, target in pairs])])


def drift(lm: HFLM, pairs: Sequence[Pair], weights: Weights) -> Tensor:
    """(n,): for each pair the mean over its target tokens of KL(p_model ‖ p_weights), inside the weights' graph."""
    return kl(_log_probs(lm, pairs), lm.target_logits(pairs, weights), pairs)


@torch.no_grad()
def _log_probs(lm: HFLM, pairs: Sequence[Pair], weights: Weights | None = None) -> Tensor:
    return at_least_float32(lm.target_logits(pairs, weights)).log_softmax(-1)


@torch.no_grad()
def right(lm: HFLM, pairs: Sequence[Pair], weights: Weights | None = None) -> list[bool]:
    """Whether all target tokens of each pair are the likeliest, each behind those before it; in the pairs' order."""
    found = [False] * len(pairs)
    for batch in budgeted([len(p) + len(t) for p, t in pairs], lm.budget):
        some = [pairs[i] for i in batch]
        chosen = lm.target_logits(some, weights).argmax(-1).cpu()
        for i, ids in zip(batch, chosen.split([len(target) for _, target in some]), strict=True):
            found[i] = ids.tolist() == list(pairs[i][1])
    return found


def outcome(lm: HFLM, changes: Weights, examples: Sequence[Example], on: Weights | None = None) -> Losses:
    """Shares that hold with W + Δ in force: ``edit`` and ``follow`` answered anew, ``keep`` as right as before.

    ``score`` is the mean of follow and keep.
    """
    weights = changed(lm, changes, on)

    def share(asked: Sequence[Asked], held: bool = False) -> float:
        pairs = [one.ids(lm) for one in asked]
        if held:  # what the model did not know cannot be kept
            pairs = [pair for pair, known in zip(pairs, right(lm, pairs), strict=True) if known]
        return sum(right(lm, pairs, weights)) / max(1, len(pairs))

    edit = share([example.asked for example in examples])
    follow = share([asked for example in examples for asked in example.follow])
    keep = share([asked for example in examples for asked in example.keep], held=True)
    return {"score": (follow + keep) / 2, "edit": edit, "follow": follow, "keep": keep}


def mean_of(outcomes: Sequence[Losses]) -> Losses:
    """The mean of several outcomes or losses, by name."""
    return {name: sum(some[name] for some in outcomes) / len(outcomes) for name in outcomes[0]}
