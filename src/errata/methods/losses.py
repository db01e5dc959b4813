"""The loss of a token of the answer: its −log P, or OVERTONE's smoothed and clipped form of it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from errata.model.passes import at_least_float32


def means(values: Tensor, counts: Sequence[int]) -> Tensor:
    """(n,): of the values (k,) of n facts, so many for each in turn, each fact's mean."""
    sizes = torch.tensor(counts, device=values.device)
    of = torch.arange(len(counts), device=values.device).repeat_interleave(sizes)
    return values.new_zeros(len(counts)).index_add(0, of, values) / sizes


def token_losses(
    logits: Tensor, targets: Tensor, smooth: float = 1.0, floor: float = 0.0, top_n: float = 1.0
) -> Tensor:
    """(k,): the loss of each token ``targets`` (k,) under ``logits`` (k, V), float32 or better.

    OVERTONE (arXiv:2502.00602): max(KL(π_tar ‖ π_θ), ε), with λ = ``smooth``, ε = ``floor``, n = ``top_n`` and π_tar
    as in :func:`smoothed_targets`. A token within ε has no gradient. With λ = 1 and ε = 0 this is the cross-entropy.
    """
    logits = at_least_float32(logits)
    logp = logits.log_softmax(-1)
    if smooth == 1:
        loss = -logp.gather(-1, targets[:, None])[:, 0]
    else:
        tar = smoothed_targets(logits.detach(), targets, smooth, top_n)
        loss = (torch.xlogy(tar, tar) - tar * logp).sum(-1)  # the KL and not the cross-entropy: that never reaches ε
    return loss.clamp(min=floor) if floor else loss


def smoothed_targets(logits: Tensor, targets: Tensor, smooth: float, top_n: float) -> Tensor:
    """(k, V): π_tar = λ · onehot(y) + (1 − λ) · π_flt, or the one-hot where the likeliest token of that is not y.

    π_flt is the model's prediction now, without logits that lie more than n standard deviations below the highest
    (top-nσ, arXiv:2411.07641).
    """
    kept = logits >= logits.amax(-1, keepdim=True) - top_n * logits.std(-1, keepdim=True)
    flt = logits.masked_fill(~kept, -torch.inf).softmax(-1)
    hard = one_hot(targets, logits.shape[-1]).to(flt)
    mixed = smooth * hard + (1 - smooth) * flt
    agrees = mixed.argmax(-1, keepdim=True) == targets[:, None]
    return torch.where(agrees, mixed, hard)
