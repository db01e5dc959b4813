"""Decoding a token at a time: how the next token is chosen, when a row ends, and one step of either architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from errata.model import passes
from errata.model.tokens import Tokens, pad

if TYPE_CHECKING:
    pass
from errata.model.lm import Call

if TYPE_CHECKING:
    from errata.model.hf import HFLM

Choose = Callable[[Tensor, Sequence[int], int], Tensor]  # (logits (b, V), rows, step) -> ids (b,)


def greedy(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
    return logits.argmax(-1)


class TopK:
    """Draws among the k likeliest tokens by each row's own random numbers."""

    def __init__(self, k: int, seeds: Sequence[int], steps: int) -> None:
        numbers = [torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.k, self.numbers = k, torch.stack(numbers) if numbers else torch.empty(0, steps)

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        top = logits.float().topk(min(self.k, logits.shape[-1]), -1)
        reached = top.values.softmax(-1).cumsum(-1)  # (b, k)
        drawn = self.numbers[list(rows), step].to(logits.device)[:, None]
        place = (reached < drawn).sum(-1, keepdim=True).clamp(max=reached.shape[-1] - 1)
        return top.indices.gather(-1, place)[:, 0]


@dataclass(frozen=True)
class Stop:
    """When a row has said enough."""

    tokens: Tokens
    limits: Sequence[int]
    ended: Callable[[str], bool] | None
    past_end: bool

    def goes_on(self, row: int, said: list[int], token: int) -> bool:
        """Takes in the row's next token, unless it is the end; whether the row goes on."""
        if token == self.tokens.end and not self.past_end:
            return False
        said.append(token)
        if len(said) >= self.limits[row]:
            return False
        return self.ended is None or not self.ended(self.tokens.decode(said))


class CausalStep:
    """Greedy decoding, a token at a time: prompts padded on the left, the cache kept, finished rows leaving."""

    def __init__(self, lm: "HFLM", rows: list[list[int]]) -> None:
        prompt = pad(rows, "left", lm.tokens.fill, lm.device)
        self.lm, self.ids = lm, prompt.ids
        end = torch.full((len(prompt.ids),), prompt.ids.shape[1] - 1, device=prompt.ids.device)
        self.call = Call(prompt.mask, end)
        self.cache = passes.new_cache(lm.model)

    def logits(self) -> Tensor:
        """(b, V): for the next token of each row."""
        last = torch.full((len(self.ids),), self.ids.shape[1] - 1)
        with (
            self.lm.calling(self.call),
            passes.gathered(self.lm.model, self.lm.sites, torch.arange(len(self.ids)), last),
        ):
            return self.lm.run(passes.inputs_of(self.lm.model, self.ids, self.call.mask, self.cache)).logits[0]

    def branched(self, rows: list[int], ids: list[list[int]]) -> Tensor:
        """(k, V): the logits behind each of the ids that follow prompts, one after the other; the last thing asked.

        ``rows`` are the prompts' places, as often as each is followed.
        """
        index = torch.tensor(rows, device=self.ids.device)
        for layer in self.cache.layers:
            layer.batch_select_indices(index)
        self.call.select(index)
        fed = pad(ids, "right", self.lm.tokens.fill, self.ids.device)
        self.call.mask = torch.cat([self.call.mask, fed.mask], 1)
        self.call.prompt_end, self.call.step = None, self.call.step + 1
        where = fed.mask.nonzero()
        with (
            self.lm.calling(self.call),
            passes.gathered(self.lm.model, self.lm.sites, where[:, 0], where[:, 1]),
        ):
            return self.lm.run(passes.inputs_of(self.lm.model, fed.ids, self.call.mask, self.cache)).logits[0]

    def advance(self, tokens: list[int], rows: list[int]) -> None:
        """The rows that go on, and the token that each said."""
        device = self.ids.device
        if len(rows) < len(self.ids):
            index = torch.tensor(rows, device=device)
            self.call.select(index)
            self.ids = self.ids[index]
            for layer in self.cache.layers if self.cache is not None else ():
                layer.batch_select_indices(index)
        said = torch.tensor(tokens, device=device)[:, None]
        self.ids = said if self.cache is not None else torch.cat([self.ids, said], 1)
        self.call.mask = torch.cat([self.call.mask, torch.ones_like(said)], 1)
        self.call.prompt_end, self.call.step = None, self.call.step + 1


class Seq2SeqStep:
    """The same for an encoder-decoder: the source is encoded once, the answer so far is decoded at each step."""

    def __init__(self, lm: "HFLM", rows: list[list[int]]) -> None:
        prompt = pad(rows, "right", lm.tokens.fill, lm.device)
        self.lm = lm
        start = decoder_start(lm.config, lm.tokens.fill)
        self.ids = torch.full((len(prompt.ids), 1), start, device=prompt.ids.device)
        self.call = Call(prompt.mask, torch.tensor(prompt.lengths, device=prompt.ids.device) - 1)
        with lm.calling(self.call):
            encoder: Any = lm.model.get_encoder()  # pyright: ignore[reportCallIssue]
            self.encoded = encoder(input_ids=prompt.ids, attention_mask=prompt.mask)
        self.call.prompt_end = None

    def logits(self) -> Tensor:
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
        index = torch.tensor(rows, device=self.ids.device)
        self.call.select(index)
        self.encoded.last_hidden_state = self.encoded.last_hidden_state[index]
        said = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.ids = torch.cat([self.ids[index], said], 1)
        self.call.step += 1


def decoder_start(config: Any, fill: int) -> int:
    start = getattr(config, "decoder_start_token_id", None)
    return fill if start is None else start
