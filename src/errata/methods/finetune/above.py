"""Logits of targets with other weights in one down projection, asked for again and again: what is below runs once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.passes import budgeted
from errata.model.reading import Pair
from errata.model.resumed import SuffixPass

Key = tuple[tuple[int, ...], tuple[int, ...]]


class LogitsAbove:
    """:meth:`HFLM.target_logits` with ``weights`` of a layer's down projection, for pairs that are held or not.

    logits = LogitsAbove(lm, 6, weights)
    logits.hold(pairs)                        # runs the layers below
    logits(some_of_the_pairs)                 # (k, V), by the layers from there on

    What is not held is run whole, and so is everything where suffixes do not hold or an adapter is in force.
    """

    def __init__(self, lm: HFLM, layer: int, weights: Mapping[str, Tensor]) -> None:
        self.lm, self.weights = lm, weights
        self.site = InterventionSite(layer, mlp_output=True)
        self.held: dict[Key, tuple[SuffixPass, int]] = {}  # the pass that a pair is in, and its row there

    def hold(self, pairs: Sequence[Pair]) -> None:
        """Runs the layers below for these pairs, and lets go of others.

        Of a batch's worth of tokens all is kept that weights cannot change; of more, the block's input alone.
        """
        self.held = {}
        if self.lm.seq2seq or self.lm.explainers:
            return
        tokens, lengths = 0, [len(p) + len(t) for p, t in pairs]
        for batch in budgeted(lengths, self.lm.budget):
            some = [pairs[i] for i in batch]
            rows = [[*p, *t[:-1]] for p, t in some]
            run = self.lm.intervention(rows, [0] * len(rows), self.site, _columns(some))
            if not isinstance(run, SuffixPass):
                return
            tokens += len(batch) * max(lengths[i] for i in batch)
            if tokens > self.lm.budget:
                run.within, run.keys = {}, None
            self.held |= {_key(pair): (run, row) for row, pair in enumerate(some)}

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        """The logits that predict each target token of each pair, in order. (k, V)"""
        found = [self.held.get(_key(pair)) for pair in pairs]
        runs = list(dict.fromkeys(None if one is None else one[0] for one in found))
        order: list[int] = []  # of the pairs, as their logits come
        logits: list[Tensor] = []
        for run in runs:
            places = [i for i, one in enumerate(found) if (None if one is None else one[0]) is run]
            some = [pairs[i] for i in places]
            order += places
            if run is None:
                logits.append(self.lm.target_logits(some, self.weights))
            else:
                rows = [one[1] for one in (found[i] for i in places) if one is not None]
                logits.append(run.select(rows).logits(None, _columns(some), self.weights))
        if len(runs) == 1:
            return logits[0]
        by_pair = dict(zip(order, torch.cat(logits).split([len(pairs[i][1]) for i in order]), strict=True))
        return torch.cat([by_pair[i] for i in range(len(pairs))])


def _columns(pairs: Sequence[Pair]) -> list[list[int]]:
    return [[len(p) - 1 + j for j in range(len(t))] for p, t in pairs]


def _key(pair: Pair) -> Key:
    return tuple(pair[0]), tuple(pair[1])
