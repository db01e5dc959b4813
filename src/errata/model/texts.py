"""Texts that a model is read by: those given, those that go with it, or sampled from it."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from errata.errors import BadInput
from errata.model.hf import HFLM

log = logging.getLogger(__name__)

END = ". "  # of a sentence
TRIES = 20  # texts read for each opening
WINDOW = 512  # longer texts are cut into pieces of so many tokens
TEXT_TOKENS = 128  # of a sampled text at most
SENTENCE_TOKENS = 32  # of a sampled sentence at most
CONTEXT_TOKENS = 24  # of a context at most, cut after its first sentence where that ends before


def openings(lm: HFLM, data: Iterable[Any] | None, n: int, seed: int) -> list[str]:
    """At most ``n`` different beginnings of first sentences, cut somewhere in their second half.

    Of the texts given, else of those that go with the model, else of sentences sampled from it.
    """
    generator = torch.Generator().manual_seed(seed)
    beginnings: dict[str, None] = {}
    for text in islice(texts_of(lm, data, seed, sentences=True), TRIES * n):
        if not isinstance(text, str):
            raise BadInput(f"{type(text).__name__} is no text; queries are told apart by means of texts")
        ids = lm.tokens.ids(text.split(END)[0].strip(), add_special_tokens=False)
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
        ids = lm.tokens.ids(text)
        for start in range(0, len(ids), window):
            yield ids[start : start + window]
        count += len(ids)
        if tokens is not None and count >= tokens:
            return
    if not count:
        raise BadInput("no texts for key statistics: the data is empty")


def texts_of(lm: HFLM, data: Iterable[str] | None, seed: int, *, sentences: bool = False) -> Iterable[str]:
    """The texts given, else those that go with the model, else text sampled from it without end."""
    if data is not None:
        return data
    if lm.resources.texts is not None:
        return lm.resources.texts()
    log.warning("no texts given: they are sampled from the model itself")
    return sampled_texts(lm, seed, sentences=sentences)


def sampled_texts(lm: HFLM, seed: int, *, sentences: bool = False) -> Iterator[str]:
    """Texts sampled from the model, without end; with ``sentences`` little more than the first sentence of each."""
    most = SENTENCE_TOKENS if sentences else TEXT_TOKENS
    length = min(most, (lm.tokens.limit or most + 1) - 1)
    rows = max(1, lm.budget // (length + 1))  # one batch
    count = 0
    while True:
        yield from map(lm.tokens.decode, lm.sample([""] * rows, length, seed=seed, until=(END,) if sentences else ()))
        seed, count = seed + 1, count + rows
        log.info("%d texts sampled from the model", count)


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


def kept_contexts(lm: HFLM, once: Callable[[str, Any], list[str]], n: int, seed: int) -> list[str]:
    """:func:`contexts_of`, drawn the first time that they are asked for by ``once``: a state's own.

    ``lm`` is then the model with no patch in force.
    """
    drawn = (n, seed, sorted(lm.tokens.ends), str(lm.dtype), lm.budget)  # what contexts depend on
    return once(f"contexts/{drawn}", lambda: contexts_of(lm, n, seed))


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    end = text.find(". ")
    text = text[: end + 1] if end > 0 else text
    return f"{text} " if text.endswith((".", "!", "?")) or not text else f"{text}. "
