"""Decoding one token at a time: how the next token is chosen, when a row ends, and the steps of each architecture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.model import passes
from errata.model.caches import new_cache, select_rows
from errata.model.lm import Call
from errata.model.padding import pad
from errata.model.reading import TensorPasses
from errata.model.tokens import Tokens

Choose = Callable[[Tensor, Sequence[int], int], Tensor]  # (logits (b, V), row numbers, step) -> ids (b,)


def greedy(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """The most likely token of each row. (b,)."""
    return logits.argmax(-1)


class TopK:
    """Draws among the k most likely tokens, each row with random numbers of its own."""

    def __init__(self, k: int, seeds: Sequence[int], steps: int) -> None:
        """``seeds``: one for each row; ``steps``: tokens drawn at most."""
        numbers = [torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.k, self.numbers = k, torch.stack(numbers) if numbers else torch.empty(0, steps)

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """A drawn token for each row. (b,)."""
        top = logits.float().topk(min(self.k, logits.shape[-1]), -1)
        cumulated = top.values.softmax(-1).cumsum(-1)  # (b, k)
        drawn = self.numbers[list(rows), step].to(logits.device)[:, None]
        rank = (cumulated < drawn).sum(-1, keepdim=True).clamp(max=cumulated.shape[-1] - 1)
        return top.indices.gather(-1, rank)[:, 0]


@dataclass(frozen=True)
class StopRule:
    """When the continuation of a row ends: at its limit, at an end token, or when ``ended(text)`` holds."""

    tokens: Tokens
    prompts: Sequence[Sequence[int]]  # ids of each row's prompt
    limits: Sequence[int]  # new tokens of each row
    ended: Callable[[str], bool] | None = None
    past_end: bool = False  # whether an end token is a token like any other

    def append(self, row: int, ids: list[int], token: int) -> bool:
        """Appends a row's next token to its ids, unless it ends the row; whether the row goes on."""
        if token in self.tokens.ends and not self.past_end:
            return False
        ids.append(token)
        if len(ids) >= self.limits[row]:
            return False
        return self.ended is None or not self.ended(self.tokens.continuation(self.prompts[row], ids))


def continued(
    lm: TensorPasses,
    rows: Sequence[list[int]],
    limits: Sequence[int],
    choose: Choose = greedy,
    ended: Callable[[str], bool] | None = None,
    past_end: bool = False,
) -> list[list[int]]:
    """The new token ids of each row of prompt ids, at most ``limits`` of them; batched."""
    out: list[list[int]] = [[] for _ in rows]
    lengths = [len(row) + n for row, n in zip(rows, limits, strict=True)]
    for batch in passes.budgeted(lengths, lm.budget, [len(row) for row in rows], equal=not lm.caching.padded):
        prompts = [rows[i] for i in batch]
        stop = StopRule(lm.tokens, prompts, [limits[i] for i in batch], ended, past_end)
        *_, new = steps(lm, prompts, batch, stop, choose)
        for i, ids in zip(batch, new, strict=True):
            out[i] = ids
    return out


def steps(
    lm: TensorPasses, rows: list[list[int]], numbers: Sequence[int], stop: StopRule, choose: Choose
) -> Iterator[list[list[int]]]:
    """The new ids of one batch so far, after each step; the last are all of them. One list, which grows.

    ``numbers`` are the rows' numbers among all prompts. A prompt of several rows is read once. Between steps nothing of
    the model is held or changed.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, rows)))}
    decoding = decoding_of(lm, [list(prompt) for prompt in number])
    out: list[list[int]] = [[] for _ in rows]
    alive, of = list(range(len(rows))), [number[tuple(row)] for row in rows]  # and the row of the batch of each
    while alive:
        logits = decoding.logits()
        logits = logits if len(logits) == len(of) else logits[of]
        chosen = choose(logits, [numbers[i] for i in alive], decoding.call.step).tolist()
        going = [i for i, token in enumerate(chosen) if stop.append(alive[i], out[alive[i]], token)]
        alive = [alive[i] for i in going]
        yield out
        if alive:
            decoding.advance([chosen[i] for i in going], [of[i] for i in going])
            of = list(range(len(going)))


# One batch, step by step ---------------------------------------------------------------------------


def decoding_of(lm: TensorPasses, rows: list[list[int]]) -> "CausalDecoding | Seq2SeqDecoding":
    """One batch of prompt ids, to be decoded step by step."""
    return Seq2SeqDecoding(lm, rows) if lm.seq2seq else CausalDecoding(lm, rows)


class CausalDecoding:
    """A batch of prompts in a decoder-only model: padded on the left, with a cache; rows that have ended leave."""

    def __init__(self, lm: TensorPasses, rows: list[list[int]]) -> None:
        """``rows`` are the prompts' ids; nothing runs yet."""
        prompt = pad(rows, "left", lm.tokens.fill, lm.device)
        self.lm, self.ids = lm, prompt.ids
        end = torch.full((len(prompt.ids),), prompt.ids.shape[1] - 1, device=prompt.ids.device)
        self.call = Call(prompt.mask, end, ids=prompt.ids)
        self.cache = new_cache(lm.model) if lm.caching.steps else None

    def logits(self) -> Tensor:
        """Logits of the next token of each row. (b, V)."""
        last = torch.full((len(self.ids),), self.ids.shape[1] - 1)
        return self._logits(self.ids, torch.arange(len(self.ids)), last)

    def branched(self, rows: list[int], ids: list[list[int]]) -> Tensor:
        """Logits behind each of the ids of several continuations, one continuation after the other. (k, V).

        ``rows`` says which prompt each continuation follows. Call it last: the cache is then that of the branches.
        """
        self._keep(rows)
        fed = pad(ids, "right", self.lm.tokens.fill, self.ids.device)
        self._fed(fed.mask)
        where = fed.mask.nonzero()
        return self._logits(fed.ids, where[:, 0], where[:, 1])

    def advance(self, tokens: list[int], rows: list[int]) -> None:
        """Goes on with ``rows`` (indices, a row as often as it goes on) and a next token for each; others leave."""
        if rows != list(range(len(self.ids))):
            self._keep(rows)
        new = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.ids = new if self.cache is not None else torch.cat([self.ids, new], 1)
        self._fed(torch.ones_like(new))

    def _logits(self, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        with self.lm.calling(self.call), passes.gathered(self.lm.model, self.lm.sites, rows, columns):
            return self.lm.run(passes.inputs_of(self.lm.model, ids, self.call.mask, self.cache)).logits[0]

    def _keep(self, rows: list[int]) -> None:
        index = torch.tensor(rows)
        self.call.select(index)
        self.ids = self.ids[index]
        if self.cache is not None:
            select_rows(self.cache, index)

    def _fed(self, mask: Tensor) -> None:
        """What the call shows once tokens behind the prompt are fed."""
        self.call.mask = torch.cat([self.call.mask, mask], 1)
        self.call.prompt_end, self.call.step = None, self.call.step + 1


class Seq2SeqDecoding:
    """A batch of prompts in an encoder-decoder: encoded once; each step decodes the answer so far."""

    def __init__(self, lm: TensorPasses, rows: list[list[int]]) -> None:
        """``rows`` are the prompts' ids; the encoder runs here."""
        prompt = pad(rows, "right", lm.tokens.fill, lm.device)
        self.lm = lm
        start = passes.decoder_start(lm.config, lm.tokens.fill)
        self.ids = torch.full((len(prompt.ids), 1), start, device=prompt.ids.device)
        ends = torch.tensor(prompt.lengths, device=prompt.ids.device) - 1
        self.call = Call(prompt.mask, ends, ids=prompt.ids)
        with lm.calling(self.call):
            encoder: Any = lm.model.get_encoder()  # pyright: ignore[reportCallIssue]
            self.encoded = encoder(input_ids=prompt.ids, attention_mask=prompt.mask)
        self.call.prompt_end = None

    def logits(self) -> Tensor:
        """Logits of the next token of each row. (b, V)."""
        last = torch.full((len(self.ids),), self.ids.shape[1] - 1)
        with (
            self.lm.calling(self.call),
            passes.gathered(self.lm.model, self.lm.sites, torch.arange(len(self.ids)), last),
        ):
            inputs = {
                "encoder_outputs": self.encoded,
                "attention_mask": self.call.mask,
                "decoder_input_ids": self.ids,
                "use_cache": False,
            }
            return self.lm.run(inputs).logits[0]

    def advance(self, tokens: list[int], rows: list[int]) -> None:
        """Goes on with ``rows`` (indices, a row as often as it goes on) and a next token for each; others leave."""
        index = torch.tensor(rows)
        self.call.select(index)
        self.encoded.last_hidden_state = self.encoded.last_hidden_state[index]
        new = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.ids = torch.cat([self.ids[index], new], 1)
        self.call.step += 1
