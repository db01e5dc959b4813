"""Texts that methods read: those given, those that go with the model, or sampled from it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from errata.errors import BadInput
from errata.model.hf import HFLM

TRIES = 20  # texts read for each opening
WINDOW = 512  # longer texts are cut into pieces of so many tokens
CONTEXT_TOKENS = 24  # of a context at most, cut after its first sentence where that ends before


def openings(lm: HFLM, texts: Iterable[Any], n: int, seed: int) -> list[str]:
    """At most ``n`` different beginnings of the texts' first sentences, cut somewhere in their second half."""
    generator = torch.Generator().manual_seed(seed)
    beginnings: dict[str, None] = {}
    for text in islice(texts, TRIES * n):
        if not isinstance(text, str):
            raise BadInput(f"{type(text).__name__} is no text; queries are told apart by means of texts")
        ids = list(lm.tokenizer(text.split(". ")[0].strip(), add_special_tokens=False)["input_ids"])
        ids = ids[: (lm.tokens.limit or len(ids) + 2) - 2]
        if len(ids) >= 4:
            cut = int(torch.randint((len(ids) + 1) // 2, len(ids), (), generator=generator))
            beginnings[lm.tokens.decode(ids[:cut])] = None
        if len(beginnings) == n:
            break
    return [text for text in beginnings if text.strip()]


def pieces_of(lm: HFLM, texts: Iterable[str], tokens: int | None) -> Iterator[list[int]]:
    """Token rows of texts, cut to what the model reads, until they have ``tokens`` in all (None: all texts)."""
    window = min(WINDOW, lm.tokens.limit or WINDOW)
    count = 0
    for text in texts:
        if not isinstance(text, str):
            raise BadInput(f"key statistics are made from texts; found {type(text).__name__}")
        ids = list(lm.tokenizer(text)["input_ids"])
        for start in range(0, len(ids), window):
            yield ids[start : start + window]
        count += len(ids)
        if tokens is not None and count >= tokens:
            return
    if not count:
        raise BadInput("no texts for key statistics: the data is empty")


def texts_of(lm: HFLM, data: Iterable[str] | None, seed: int) -> Iterable[str]:
    """The texts given, else those that go with the model, else text sampled from it without end."""
    if data is not None:
        return data
    return sampled_texts(lm, seed) if lm.resources.texts is None else lm.resources.texts()


def sampled_texts(lm: HFLM, seed: int) -> Iterator[str]:
    """Texts of up to 128 tokens sampled from the model, without end."""
    length = min(128, (lm.tokens.limit or 129) - 1)
    while True:
        yield from map(lm.tokens.decode, lm.sample([""] * 64, length, seed=seed))
        seed += 1


def contexts_of(lm: HFLM, n: int, seed: int) -> list[str]:
    """The empty context and ``n`` short texts to put before a prompt, sampled from the model itself.

    ROME's released code samples from nothing, as here, and MEMIT's goes on with "The", "Therefore", "Because", "I" and
    "You". On the bundled model's validation cases (40 edits by MEMIT) those answer 0.82 of the questions and contexts
    from nothing 0.98, as they look like what the model reads. Both samples are 5 to 10 tokens with a full stop behind;
    here one ends where its own first sentence ends, if it does within CONTEXT_TOKENS.
    """
    length = min(CONTEXT_TOKENS, max(2, (lm.tokens.limit or 4 * CONTEXT_TOKENS) // 4))
    sampled = lm.sample([""] * n, length, seed=seed) if n else []
    return ["", *(_sentence(lm.tokens.decode(ids)) for ids in sampled)]


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    end = text.find(". ")
    text = text[: end + 1] if end > 0 else text
    return f"{text} " if text.endswith((".", "!", "?")) or not text else f"{text}. "
