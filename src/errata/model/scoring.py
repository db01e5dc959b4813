"""What a model gives targets behind their prompts. A prompt that has several targets is run once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.model import passes
from errata.model.decoding import CausalDecoding
from errata.model.reading import Pair, TensorPasses
from errata.types import Score


def scored(lm: TensorPasses, pairs: Sequence[Pair]) -> list[Score]:
    """The :class:`Score` of each (prompt ids, target ids)."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, _) in enumerate(pairs):
        by_prompt.setdefault(tuple(prompt), []).append(i)
    several = [members for members in by_prompt.values() if len(members) > 1]
    if lm.seq2seq or lm.explainers or not passes.accepts(lm.model, "past_key_values"):
        several = []  # an adapter must see prompt and target in one pass
    shared = {i for members in several for i in members}
    alone = [i for i in range(len(pairs)) if i not in shared]
    scores = _one_by_one(lm, pairs, alone)
    sizes = [sum(len(pairs[i][0]) + len(pairs[i][1]) for i in members) for members in several]
    for batch in passes.budgeted(sizes, lm.budget, [len(pairs[members[0]][0]) for members in several]):
        scores |= _several_targets(lm, pairs, [several[j] for j in batch])
    return [scores[i] for i in range(len(pairs))]


def _one_by_one(lm: TensorPasses, pairs: Sequence[Pair], chosen: Sequence[int]) -> dict[int, Score]:
    """Index -> score, of the chosen pairs: prompt and target in one row."""
    scores: dict[int, Score] = {}
    lengths = [len(pairs[i][0]) + len(pairs[i][1]) for i in chosen]
    for batch in passes.budgeted(lengths, lm.budget, lengths):
        indices = [chosen[j] for j in batch]
        logits = lm.target_logits([pairs[i] for i in indices]).split([len(pairs[i][1]) for i in indices])
        scores |= {i: _score(pairs[i][1], of_target) for i, of_target in zip(indices, logits, strict=True)}
    return scores


def _several_targets(lm: TensorPasses, pairs: Sequence[Pair], several: Sequence[Sequence[int]]) -> dict[int, Score]:
    """Index -> score, of prompts with several targets each: the prompts run once, then what follows them."""
    decoding = CausalDecoding(lm, [list(pairs[members[0]][0]) for members in several])
    first = decoding.logits()  # (b, V), of each target's first token
    of_row = [(row, i) for row, members in enumerate(several) for i in members]
    longer = [(row, i) for row, i in of_row if len(pairs[i][1]) > 1]
    rest: dict[int, Tensor] = {}
    if longer:
        fed = [list(pairs[i][1][:-1]) for _, i in longer]
        logits = decoding.branched([row for row, _ in longer], fed).split([len(ids) for ids in fed])
        rest = {i: of_target for (_, i), of_target in zip(longer, logits, strict=True)}
    return {i: _score(pairs[i][1], torch.cat([first[row][None], rest.get(i, first[:0])])) for row, i in of_row}


def _score(target: Sequence[int], logits: Tensor) -> Score:
    """From a target's ids and the logits (t, V) that predict them."""
    logprobs = logits.float().log_softmax(-1)
    given = logprobs[torch.arange(len(target)), torch.tensor(target)]
    return Score(tuple(target), tuple(given.tolist()), tuple(logprobs.argmax(-1).tolist()))
