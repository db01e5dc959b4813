"""The gate of language patches: g(x, c), from the hidden states and the probabilities of the model itself.

Three questions, whose answers are multiplied where all are asked. *Whom* is x about: a pointer over the words of x.
*What* is asked: whether the model, at the end of x, is where it is at the end of the patch's own prompt about the same
subject. *Does c hold*: the model's own probability that the clause about the subject ends as c says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, layer_norm

from errata.model.hf import HFLM
from errata.subjects import words_of

WIDEST = 10  # words of a subject at most
SURE = 15.0  # log-odds at most


@dataclass(frozen=True)
class Read:
    """A text as the gate reads it: hidden states of some layers, side by side, at its words and at its end."""

    text: str
    words: tuple[tuple[int, int], ...]
    """Where each word begins and ends, in characters."""
    hidden: Tensor
    """Of the words' last tokens, then of the last token of all. (n + 1, w)"""

    @property
    def end(self) -> Tensor:
        """Of the last token. (w,)"""
        return self.hidden[-1]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First and last word of each part of the text that may be a subject."""
        n = len(self.words)
        return [(i, j) for i in range(n) for j in range(i, min(n, i + WIDEST))]

    def subject(self, span: int) -> str:
        """The text of a span."""
        i, j = self.spans[span]
        return self.text[self.words[i][0] : self.words[j][1]]

    def span_of(self, at: int, subject: str) -> int | None:
        """The number of the span that is this subject at this place; None where it is none."""
        ends = {(self.words[i][0], self.words[j][1]): k for k, (i, j) in enumerate(self.spans)}
        return ends.get((at, at + len(subject)))


def read(lm: HFLM, texts: Sequence[str], layers: Sequence[int], *, words: bool = True) -> list[Read]:
    """The texts as the gate reads them; with ``words`` off at their ends alone."""
    stack = lm.sites.prompt_stack
    places = [tuple(words_of(text)) if words else () for text in texts]
    rows = [lm.tokens.prompt(text) for text in texts]
    columns = [
        [*(lm.tokens.last_of_parts(text, [end for _, end in some]) if some else ()), len(row) - 1]
        for text, row, some in zip(texts, rows, places, strict=True)
    ]
    sites = [(stack.layer[layer], "out") for layer in layers]
    found = lm.read(rows, columns, sites)
    hidden = [layer_norm(found[site].float(), found[site].shape[-1:]) for site in sites]
    by_text = torch.cat(hidden, -1).split([len(some) for some in columns])
    return [Read(*one) for one in zip(texts, places, by_text, strict=True)]


class Gate(nn.Module):
    """The gate's parameters. ``width`` is that of a hidden state (of all layers side by side), ``rank`` inside."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.look = nn.Parameter(torch.zeros(rank, 3 * width))
        self.ends = nn.Parameter(torch.zeros(2, rank))
        self.relation = nn.Parameter(torch.zeros(rank, width))
        self.alike = nn.Parameter(torch.tensor([16.0, 4.0]))
        self.belief = nn.Parameter(torch.tensor([1.0, 0.0]))

    @classmethod
    def drawn(cls, width: int, rank: int) -> "Gate":
        """A gate as it is before training."""
        gate = cls(width, rank)
        for matrix in (gate.look, gate.ends, gate.relation):
            nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
        return gate

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> "Gate":
        """The gate with these parameters."""
        gate = cls(tensors["relation"].shape[1], tensors["relation"].shape[0])
        gate.load_state_dict(dict(tensors))
        return gate.requires_grad_(False).eval()

    def spans(self, one: Read) -> Tensor:
        """Logits of the text's spans: which is the subject. (spans,)"""
        hidden = one.hidden.to(self.look)
        here, after, end = hidden[:-1], hidden[1:], hidden[-1:].expand(len(hidden) - 1, -1)
        start, stop = (gelu(torch.cat([here, after, end], -1) @ self.look.T) @ self.ends.T).unbind(-1)
        i, j = torch.tensor(one.spans, device=start.device).T
        return start[i] + stop[j]

    def asks(self, a: Tensor, b: Tensor) -> Tensor:
        """Log-odds that two prompts about one subject, read at their ends (b, w), ask for the same. (b,)"""
        apart = ((a - b).to(self.relation) @ self.relation.T).square().mean(-1)
        return self.alike[1] - self.alike[0] * apart

    def holds(self, logprobs: Tensor) -> Tensor:
        """Log-odds that statements hold to whose ends the model gives these log-probabilities. (b,)"""
        p = logprobs.to(self.belief)
        odds = (p - torch.log1p(-p.exp())).clamp(-SURE, SURE)
        return self.belief[0] * odds + self.belief[1]

    def pointed(self, one: Read, span: int) -> Tensor:
        """The loss of a text whose subject is known."""
        return cross_entropy(self.spans(one)[None], torch.tensor([span], device=self.look.device))
