"""Tokens that are drawn: what a caller asks for, and the draw, in which each prompt has random numbers of its own."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import TypedDict

from errata.errors import BadInput

MOST_SEED = 2**63 - 1


class Sampling(TypedDict, total=False):
    """How tokens are drawn: by p^(1/temperature), among the likeliest ones that together have ``top_p``."""

    temperature: float | None
    """Above 0. None and 0 take the likeliest token."""
    top_p: float | None
    """Above 0, at most 1."""
    seed: int | Sequence[int]
    """0 by default: a prompt's draws depend on it and on the prompt's index. Or a seed for each prompt."""


class TopP:
    """Draws among the likeliest tokens that together have the probability p, each row with its own random numbers."""

    def __init__(self, temperature: float, p: float, seeds: Sequence[int], steps: int) -> None:
        """``seeds``: one for each row; ``steps``: tokens drawn at most."""
        drawn = [torch.rand(steps, dtype=torch.float64, generator=_generator(seed)) for seed in seeds]
        self.temperature, self.p = temperature, p
        self.numbers = torch.stack(drawn) if drawn else torch.empty(0, steps, dtype=torch.float64)

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """A drawn token for each row, on the CPU. (b,)."""
        log_p = logits.detach().cpu().double()  # sums in one order, whatever the device
        p = ((log_p - log_p.amax(-1, keepdim=True)) / self.temperature).softmax(-1)  # (b, V)
        if self.p < 1:
            ranked = p.sort(-1, descending=True)
            before = ranked.values.cumsum(-1) - ranked.values
            kept = torch.zeros_like(p).scatter(-1, ranked.indices, (before < self.p).to(p))
            p = p * kept
        # in the order of the vocabulary, so that two tokens which rounding swaps in rank are drawn all the same
        cumulated = p.cumsum(-1)
        drawn = self.numbers[list(rows), step][:, None] * cumulated[:, -1:]
        return torch.searchsorted(cumulated, drawn, right=True)[:, 0].clamp(max=p.shape[-1] - 1)


def is_drawn(sampling: Sampling) -> bool:
    """Whether tokens are drawn at all. Raises :class:`BadInput` for what is no temperature or share."""
    if unknown := sampling.keys() - Sampling.__annotations__.keys():
        raise TypeError(f"generate() got an unexpected keyword argument {min(unknown)!r}")
    temperature, top_p = sampling.get("temperature"), sampling.get("top_p")
    if temperature is not None and (not _number(temperature) or not 0 <= temperature < math.inf):
        raise BadInput(f"temperature is a number above 0 (0 or None: greedy), found {temperature!r}")
    if top_p is not None and (not _number(top_p) or not 0 < top_p <= 1):
        raise BadInput(f"top_p is a share above 0 and at most 1, found {top_p!r}")
    if top_p is not None and temperature is None:
        raise BadInput("top_p says among what is drawn, and without a temperature nothing is; add temperature=1")
    return bool(temperature)


def seeds_of(sampling: Sampling, n: int) -> list[int]:
    """A seed for each of ``n`` prompts. Raises :class:`BadInput` for what is none."""
    seed = sampling.get("seed", 0)
    if _seed(seed):
        return [_mixed(cast(int, seed), i) for i in range(n)]
    if not isinstance(seed, Sequence) or isinstance(seed, str) or len(seed) != n or not all(map(_seed, seed)):
        raise BadInput(f"seed is a whole number from 0 to 2^63 - 1, or one for each of {n} prompts; found {seed!r}")
    return list(seed)


def top_p(sampling: Sampling, n: int, steps: int) -> TopP:
    """What draws for ``n`` prompts, at most ``steps`` tokens of each."""
    share = sampling.get("top_p")
    return TopP(sampling.get("temperature") or 1.0, 1.0 if share is None else share, seeds_of(sampling, n), steps)


def for_rows(sampling: Sampling, n: int, rows: Sequence[int]) -> Sampling:
    """The same for some of ``n`` prompts, whose draws stay their own; empty where nothing is drawn."""
    if not is_drawn(sampling):
        return {}
    seeds = seeds_of(sampling, n)
    return {**sampling, "seed": [seeds[i] for i in rows]}


def _mixed(seed: int, index: int) -> int:
    return int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=8).digest(), "big") & MOST_SEED


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SEED
