"""Which neurons hold an answer up: integrated gradients of its probability over the inputs of the down projections.

    asked = [(lm.tokens.prompt(phrasing), token) for phrasing in phrasings]
    its = attributions(lm, asked)              # (n, layers, f)
    neurons = shared(its)                      # [(layer, neuron), ...], what the phrasings have in common

After Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, arXiv:2104.08696.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.model import hooks, passes
from errata.model.hf import HFLM
from errata.patch.delta import oriented, trainable

Asked = tuple[Sequence[int], int]  # token ids, and the token whose probability behind them is attributed
Neuron = tuple[int, int]  # layer, and coordinate of its down projection's input


def attributions(lm: HFLM, asked: Sequence[Asked], points: int = 20, *, plain: bool = False) -> Tensor:
    """(n, layers, f): what each neuron adds to the probability P of a token, float32 or better on the CPU.

    ``Attr = w̄ · 1/m Σ ∂P(k/m · w̄)/∂w`` over k = 1 … m (section 3.2), where w is the input of one layer's down
    projection at the last token, scaled as a whole while other layers stay free. Over a layer it sums to P(w̄) − P(0).
    An answer of several tokens is several questions: the tokens before belong to the ids.

    A changed input moves the projection's output by W(αw̄ − w̄) and nothing else, so only the last token runs again
    and only the layers above (``HFLM.moving``); with ``plain`` everything runs. Layers that are narrower than the
    widest end in zeros.
    """
    if lm.seq2seq:
        raise Unsupported("neurons are attributed in decoder-only models; this one is an encoder-decoder")
    if points < 1:
        raise BadInput(f"attribution needs at least one point between 0 and the activation; found {points}")
    if not asked or not all(ids for ids, _ in asked):
        raise BadInput("attribution needs at least one question, each with at least one token before the answer")
    rows = [list(ids) for ids, _ in asked]
    tokens = torch.tensor([token for _, token in asked])
    read = lm.read(rows, [[len(row) - 1] for row in rows], [(site, "in") for site in lm.sites.mlp_out])
    keys = [read[site, "in"] for site in lm.sites.mlp_out]
    found = torch.zeros(len(rows), len(keys), max(k.shape[1] for k in keys), dtype=keys[0].dtype)
    with hooks.frozen(lm.model):
        for layer, w_bar in enumerate(keys):
            weight = down_projection(lm, layer)
            for batch in passes.budgeted([points * len(row) for row in rows], lm.budget):
                some = [rows[i] for i in batch]
                its = _of_layer(lm, some, tokens[batch], layer, w_bar[batch], weight, points, plain)
                found[batch, layer, : its.shape[1]] = its.to(found)
    return found


def down_projection(lm: HFLM, layer: int) -> Tensor:
    """A copy of the weight (d, f), float32 or better. Raises ``Unsupported`` where it is offloaded or quantised."""
    name = f"{lm.sites.mlp_out[layer]}.weight"
    return oriented(lm.model, name, trainable(lm, [name])[name].detach())


def _of_layer(
    lm: HFLM, rows: passes.Rows, tokens: Tensor, layer: int, w_bar: Tensor, weight: Tensor, m: int, plain: bool
) -> Tensor:
    """(b, f): the attributions to one layer, all points of a few rows in one pass."""
    place, last = passes.InterventionSite(layer, inside=True), [[0]] * len(rows)
    run = lm.intervention(rows, [len(row) - 1 for row in rows], place, last, plain=plain)
    run = run.select([i for i in range(len(rows)) for _ in range(m)])
    w_bar = w_bar.to(weight).repeat_interleave(m, 0)  # (b·m, f)
    alpha = (torch.arange(1, m + 1).to(weight) / m).repeat(len(rows))[:, None]
    w = (alpha * w_bar).requires_grad_()
    logp = passes.exact(run.logits((w - w_bar) @ weight.T, last * m)).log_softmax(-1)  # (b·m, V)
    p = logp.gather(1, tokens.to(logp.device).repeat_interleave(m)[:, None]).exp()
    (gradient,) = torch.autograd.grad(p.sum(), w)
    return (w_bar * gradient).view(len(rows), m, -1).mean(1).cpu()


def shared(
    its: Tensor,
    *,
    threshold: float = 0.2,
    share: float = 0.7,
    least: int = 3,
    wanted: tuple[int, int] = (2, 5),
    step: float = 0.05,
    rounds: int = 6,
) -> list[Neuron]:
    """The neurons that the phrasings of a fact share, strongest first; ``its`` are their attributions (n, layers, f).

    A phrasing holds a neuron that reaches ``threshold`` of its own largest attribution. Those stay that ``share`` of
    the phrasings hold, and at least ``least`` of them (all, where there are fewer). While too few or too many stay,
    the share moves by ``step`` and they are counted again, ``rounds`` times in all (section 3.3 and released code,
    which moves one share for all facts of a relation). If too many stay to the end, the strongest of them are taken:
    in a trained model dozens of neurons of the last block may hold up one word in every phrasing.
    """
    n = len(its)
    top = its.flatten(1).amax(1)[:, None, None]
    holding = ((its >= threshold * top) & (its > 0)).sum(0)  # (layers, f)
    moved, held = 0, torch.zeros_like(holding, dtype=torch.bool)
    for _ in range(rounds):
        held = holding >= max((share + moved * step) * n, min(least, n)) - 1e-6
        if wanted[0] <= (count := int(held.sum())) <= wanted[1]:
            break
        moved += 1 if count > wanted[1] else -1
    return strongest(its, min(int(held.sum()), wanted[1]), held)


def strongest(its: Tensor, count: int, among: Tensor | None = None) -> list[Neuron]:
    """The ``count`` neurons with the largest attribution, each phrasing's in units of its own largest.

    ``among`` (layers, f) says which may be chosen.
    """
    top = its.flatten(1).amax(1).clamp(min=torch.finfo(its.dtype).tiny)[:, None, None]
    strength = (its / top).mean(0)
    if among is not None:
        strength = strength.masked_fill(~among, -torch.inf)
        count = min(count, int(among.sum()))
    flat = strength.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [divmod(i, its.shape[2]) for i in flat]
