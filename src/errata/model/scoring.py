"""What a model gives targets behind their prompts. A prompt that has several targets is run once."""

from collections.abc import Iterator, Sequence

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
    if lm.seq2seq or lm.explainers or not (lm.caching.steps and lm.caching.spans):
        several = []  # an adapter must see prompt and target in one pass
    shared = {i for members in several for i in members}
    alone = [i for i in range(len(pairs)) if i not in shared]
    scores = _one_by_one(lm, pairs, alone)
    for batch in _batches(lm, pairs, several):
        scores |= _several_targets(lm, pairs, batch)
    return [scores[i] for i in range(len(pairs))]


def _batches(lm: TensorPasses, pairs: Sequence[Pair], several: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Prompts with several targets each (indices of their pairs), in batches that keep the budget.

    Where the targets of one prompt are too many, it is run again for each part of them.
    """
    parts = [part for members in several for part in _parts(pairs, members, lm.budget)]
    sizes = [sum(len(pairs[i][0]) + len(pairs[i][1]) for i in part) for part in parts]
    for batch in passes.budgeted(sizes, lm.budget, [len(pairs[part[0]][0]) for part in parts]):
        yield from _halved(pairs, [parts[j] for j in batch], lm.budget)


def _parts(pairs: Sequence[Pair], members: list[int], budget: int) -> Iterator[list[int]]:
    """The targets of one prompt, in parts of at most ``budget`` tokens (rows × longest) or of a single target."""
    if _tokens(pairs, [members]) <= budget:
        return iter([members])
    lengths = [len(pairs[i][0]) + len(pairs[i][1]) - 1 for i in members]
    return ([members[j] for j in part] for part in passes.budgeted(lengths, budget))


def _halved(pairs: Sequence[Pair], parts: list[list[int]], budget: int) -> Iterator[list[list[int]]]:
    """The parts in as few halves as keep the budget: prompts and targets of different lengths are padded."""
    if len(parts) == 1 or _tokens(pairs, parts) <= budget:
        yield parts
        return
    yield from _halved(pairs, parts[: len(parts) // 2], budget)
    yield from _halved(pairs, parts[len(parts) // 2 :], budget)


def _tokens(pairs: Sequence[Pair], parts: Sequence[Sequence[int]]) -> int:
    """Tokens of the larger pass: the padded prompts, or those with the rest of each target of several tokens."""
    indices = [i for part in parts for i in part]
    rows = max(len(parts), sum(len(pairs[i][1]) > 1 for i in indices))
    return rows * (max(len(pairs[i][0]) for i in indices) + max(len(pairs[i][1]) for i in indices) - 1)


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
