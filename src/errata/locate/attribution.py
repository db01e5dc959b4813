"""Which neurons an answer depends on: integrated gradients of its probability over the down projections' inputs.

    questions = [(lm.tokens.prompt(phrasing), token) for phrasing in phrasings]
    attribution = attributions(lm, questions)  # (n, layers, f)
    neurons = shared(attribution)              # [(layer, neuron), ...], what the phrasings have in common

Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, arXiv:2104.08696.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.model import hooks, passes
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.weights import oriented
from errata.patch.delta import trainable

Question = tuple[Sequence[int], int]  # token ids, and the token whose probability after them is attributed
Neuron = tuple[int, int]  # layer, and coordinate of its down projection's input


def attributions(lm: HFLM, questions: Sequence[Question], points: int = 20, *, plain: bool = False) -> Tensor:
    """What each neuron contributes to the probability P of a token, for each question. (n, layers, f).

    ``Attr = w̄ · 1/m Σ ∂P(k/m · w̄)/∂w`` over k = 1 … m = ``points`` (section 3.2), where w is the input of one layer's
    down projection at the last token, scaled as a whole; other layers are not held fixed. Over a layer it sums to
    P(w̄) − P(0). Float32 or more precise, on the CPU; layers narrower than the widest end in zeros. An answer of several
    tokens is several questions, with the earlier tokens among the ids.

    A changed input changes the projection's output by W(αw̄ − w̄) and nothing else, so only the layers above run again,
    on the last token (``HFLM.intervention``); with ``plain`` everything runs. Raises :class:`BadInput` for fewer than
    one point or question, and :class:`Unsupported` for encoder-decoders and mixtures of experts.
    """
    check_attributes(lm)
    if points < 1:
        raise BadInput(f"attribution needs at least one point between 0 and the activation; found {points}")
    if not questions or not all(ids for ids, _ in questions):
        raise BadInput("attribution needs at least one question, each with at least one token before the answer")
    rows = [list(ids) for ids, _ in questions]
    tokens = torch.tensor([token for _, token in questions])
    values = lm.read(rows, [[len(row) - 1] for row in rows], [(site, "in") for site in lm.sites.mlp_out])
    keys = [values[site, "in"] for site in lm.sites.mlp_out]
    result = torch.zeros(len(rows), len(keys), max(k.shape[1] for k in keys), dtype=keys[0].dtype)
    with hooks.frozen(lm.model):
        for layer, w_bar in enumerate(keys):
            weight = down_projection(lm, layer)
            for batch in passes.budgeted([points * len(row) for row in rows], lm.budget):
                some = [rows[i] for i in batch]
                of_layer = _of_layer(lm, some, tokens[batch], layer, w_bar[batch], weight, points, plain)
                result[batch, layer, : of_layer.shape[1]] = of_layer.to(result)
    return result


def check_attributes(lm: HFLM) -> None:
    """Raises :class:`Unsupported` for encoder-decoders and mixtures of experts."""
    if lm.seq2seq:
        raise Unsupported("neurons are attributed in decoder-only models; this one is an encoder-decoder")
    if mixtures := [layer for layer in range(lm.sites.depth) if lm.sites.experts_of(layer)]:
        raise Unsupported(
            f"neurons are attributed where a block has one MLP; block {mixtures[0]} of {lm.name} is a mixture of "
            "experts"
        )


def down_projection(lm: HFLM, layer: int) -> Tensor:
    """A copy of a layer's weight (d, f), float32 or more precise. Raises :class:`Unsupported` if it is offloaded."""
    name = f"{lm.sites.mlp_out[layer]}.weight"
    return oriented(lm.model, name, trainable(lm, [name])[name].detach())


def _of_layer(
    lm: HFLM, rows: passes.Rows, tokens: Tensor, layer: int, w_bar: Tensor, weight: Tensor, m: int, plain: bool
) -> Tensor:
    """The attributions to one layer, all points of a few rows in one pass. (b, f)."""
    site, last = InterventionSite(layer, mlp_output=True), [[0]] * len(rows)
    run = lm.intervention(rows, [len(row) - 1 for row in rows], site, last, plain=plain)
    run = run.select([i for i in range(len(rows)) for _ in range(m)])
    w_bar = w_bar.to(weight).repeat_interleave(m, 0)  # (b·m, f)
    alpha = (torch.arange(1, m + 1).to(weight) / m).repeat(len(rows))[:, None]
    w = (alpha * w_bar).requires_grad_()
    logp = passes.at_least_float32(run.logits((w - w_bar) @ weight.T, last * m)).log_softmax(-1)  # (b·m, V)
    p = logp.gather(1, tokens.to(logp.device).repeat_interleave(m)[:, None]).exp()
    (gradient,) = torch.autograd.grad(p.sum(), w)
    return (w_bar * gradient).view(len(rows), m, -1).mean(1).cpu()


def shared(
    attribution: Tensor,
    *,
    threshold: float = 0.2,
    share: float = 0.7,
    least: int = 3,
    bounds: tuple[int, int] = (2, 5),
    step: float = 0.05,
    rounds: int = 6,
) -> list[Neuron]:
    """The neurons that the phrasings of a fact share, strongest first, from their attributions (n, layers, f).

    In a phrasing those neurons count that reach ``threshold`` of its largest attribution. Those are kept that count in
    the share ``share`` of the phrasings and in at least ``least`` of them (in all, where there are fewer). While fewer
    or more are kept than ``bounds`` (fewest, most), the share is changed by ``step`` and they are chosen again,
    ``rounds`` times in all (section 3.3 and released code, which changes one share for all facts of a relation). If
    there are too many in the last round, the strongest are taken: in a trained model dozens of neurons of the last
    block may contribute to one word in every phrasing.
    """
    n = len(attribution)
    top = attribution.flatten(1).amax(1)[:, None, None]
    phrasings = ((attribution >= threshold * top) & (attribution > 0)).sum(0)  # (layers, f): in how many it counts
    steps, kept = 0, torch.zeros_like(phrasings, dtype=torch.bool)
    for _ in range(rounds):
        kept = phrasings >= max((share + steps * step) * n, min(least, n)) - 1e-6
        if bounds[0] <= (count := int(kept.sum())) <= bounds[1]:
            break
        steps += 1 if count > bounds[1] else -1
    return strongest(attribution, min(int(kept.sum()), bounds[1]), kept)


def strongest(attribution: Tensor, count: int, among: Tensor | None = None) -> list[Neuron]:
    """The ``count`` neurons with the largest mean attribution, each phrasing's in units of its own largest.

    ``among`` (layers, f) is a mask of those that may be chosen.
    """
    top = attribution.flatten(1).amax(1).clamp(min=torch.finfo(attribution.dtype).tiny)[:, None, None]
    strength = (attribution / top).mean(0)
    if among is not None:
        strength = strength.masked_fill(~among, -torch.inf)
        count = min(count, int(among.sum()))
    flat = strength.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [divmod(i, attribution.shape[2]) for i in flat]
