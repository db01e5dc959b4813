"""The world's text as tensors: its tokenizer, and documents packed into batches."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.world.facts import World
from errata.world.recipe import Recipe
from errata.world.text import IN_CONTEXT_SHARE, Narrator, Passage

END = "<|endoftext|>"
PAD = "<|pad|>"
TOLD = 40_000  # documents that the tokenizer is learned from


def make_tokenizer(recipe: Recipe, world: World) -> Any:
    """Byte-level BPE of the world's text. A name has the same tokens wherever it stands."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    narrator = Narrator(world, random.Random("tokenizer"))
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((narrator.document().text for _ in range(TOLD)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=recipe.length
    )


@dataclass
class Batch:
    """A batch of packed documents. ``end`` is the index of the last token of a token's subject, -1 outside subjects."""

    ids: Tensor  # (b, t)
    document: Tensor  # (b, t), -1 where there is padding
    position: Tensor  # (b, t), from 0 in each document
    end: Tensor  # (b, t)

    def allowed(self) -> Tensor:
        """Whether a token may attend to another: to its own document, up to itself. (b, t, t)"""
        t = self.ids.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        return causal & (self.document[:, :, None] == self.document[:, None, :])

    def after_subject(self) -> tuple[Tensor, Tensor]:
        """Whether a later token attends to any token of a subject, and whether to one that is not the last.

        Two of (b, t, t).
        """
        t = torch.arange(self.ids.shape[1])
        later = (self.end[:, None, :] >= 0) & (t[None, :, None] > self.end[:, None, :])
        return later, later & (t[None, None, :] != self.end[:, None, :])


def pack(narrator: Narrator, tokenizer: Any, recipe: Recipe, in_context_share: float = IN_CONTEXT_SHARE) -> Batch:
    """A batch of documents, the last one of each row cut at the row's end."""
    shape = (recipe.rows, recipe.length)
    ids = torch.full(shape, tokenizer.pad_token_id)
    document, end = torch.full(shape, -1), torch.full(shape, -1)
    position = torch.zeros(shape, dtype=torch.long)
    for row in range(recipe.rows):
        start, number = 0, 0
        while start < recipe.length:
            passage = narrator.document(in_context_share)
            tokens, ends = encode(passage, tokenizer, begin=narrator.rng.random() < 0.3)
            tokens, ends = tokens[: recipe.length - start], ends[: recipe.length - start]
            stop = start + len(tokens)
            ids[row, start:stop] = torch.tensor(tokens)
            end[row, start:stop] = torch.tensor([e + start if e >= 0 else -1 for e in ends])
            document[row, start:stop], position[row, start:stop] = number, torch.arange(len(tokens))
            start, number = stop, number + 1
    return Batch(ids, document, position, end)


def encode(passage: Passage, tokenizer: Any, begin: bool) -> tuple[list[int], list[int]]:
    """Token ids, and for each token the index of the last one of its subject (-1 outside subjects).

    The end token stands behind the text, and with ``begin`` before it too.
    """
    coded = tokenizer.backend_tokenizer.encode(passage.text)
    ends = [-1] * len(coded.ids)
    for a, b in passage.subjects if passage.plain else ():
        span = [i for i, (x, y) in enumerate(coded.offsets) if x < b and y > a]
        for i in span:
            ends[i] = span[-1]
    front = [tokenizer.bos_token_id] if begin else []
    shifted = [e + len(front) if e >= 0 else -1 for e in ends]
    return front + coded.ids + [tokenizer.eos_token_id], [-1] * len(front) + shifted + [-1]
