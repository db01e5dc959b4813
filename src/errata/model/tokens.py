"""Texts to token ids and back. The only module that reasons about spaces, padding and offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.printable import shown
from errata.subjects import last_word, placed
from errata.types import as_text


@dataclass(frozen=True)
class Padded:
    """Rows of token ids, padded to one length."""

    ids: Tensor
    """(b, t)."""
    mask: Tensor
    """1 where there is a token, 0 where there is padding. (b, t)."""
    lengths: tuple[int, ...]
    """Tokens of each row."""


def positions_of(mask: Tensor) -> Tensor:
    """The position of each token in its row, counted without padding. (b, t)."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def pad(
    rows: Sequence[Sequence[int]], side: Literal["left", "right"], fill: int, device: Any = None, least: int = 0
) -> Padded:
    """The rows, padded on one side with the id ``fill`` to the length of the longest, and to ``least`` tokens."""
    width = max([least, *map(len, rows)])
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return Padded(ids.to(device), mask.to(device), tuple(map(len, rows)))


def fed_unchanged(prompt: str, target: str) -> bool:
    """Whether ``score`` feeds the target unchanged: it begins with one space, or with none where none is put there."""
    bare = target.lstrip()
    return bool(bare) and target == (bare if not prompt or prompt[-1:].isspace() else " " + bare)


def joined(prompt: str, answer: str) -> str:
    """Prompt and answer, with a space between the two where there is none."""
    return prompt + ("" if not prompt or prompt[-1:].isspace() else " ") + answer.strip()


def sentence(prompt: str, answer: str) -> str:
    """Prompt and answer as one statement, with a full stop at its end where it lacks one."""
    text = joined(prompt, answer)
    return text if text.endswith((".", "!", "?", "。")) else text + "."


class Tokens:
    """Token ids of prompts, subjects and targets.

    A prompt has the same ids with and without a target behind it. Raises :class:`BadInput` for prompts and targets of
    more than ``limit`` tokens, where there is a limit, and for a text with a token that the model has no row for.
    """

    tokenizer: Any
    """The transformers tokenizer."""
    limit: int | None
    """Tokens that the model can read; None where that is not known."""
    seq2seq: bool
    """Whether the model is an encoder-decoder: prompts keep their end token, targets are texts of their own."""
    rows: int | None
    """Tokens that the model's embedding has a row for; None where that is not known."""
    fill: int
    """The id that pads: the tokenizer's padding token, or another of its special tokens."""

    def __init__(
        self, tokenizer: Any, limit: int | None = None, seq2seq: bool = False, rows: int | None = None
    ) -> None:
        """``tokenizer`` is one of transformers."""
        self.tokenizer, self.limit, self.seq2seq, self.rows = tokenizer, limit, seq2seq, rows
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
        self.fill = next(i for i in candidates if i is not None and (rows is None or i < rows))
        self._spellings: dict[str, str] = {}

    @property
    def end(self) -> int | None:
        """The id that ends a text; None where there is none."""
        return self.tokenizer.eos_token_id

    def prompt(self, text: str) -> list[int]:
        """Ids of a prompt, with what the tokenizer puts before it. An empty one is the beginning of a text."""
        return self._within(self._prompt(text), text)

    def ids(self, text: str, **how: Any) -> list[int]:
        """Ids of a text of any length; ``how`` goes to the tokenizer.

        Raises :class:`BadInput` for what is no whole text, and for a token that the model does not know.
        """
        as_text(text, "a text")
        ids = list(self.tokenizer(text, **how)["input_ids"])
        if self.rows is not None and ids and (most := max(ids)) >= self.rows:
            raise BadInput(
                f"{shown(text)} has the token {self.tokenizer.convert_ids_to_tokens(most)!r} of id {most}; the model's "
                f"embedding has {self.rows} rows: the tokenizer belongs to another model"
            )
        return ids

    def _prompt(self, text: str) -> list[int]:
        ids = self.ids(text)
        if not self.seq2seq:
            while len(ids) > 1 and ids[-1] == self.end and not text.endswith(str(self.tokenizer.eos_token)):
                ids.pop()
        if not ids:
            start = self.tokenizer.bos_token_id
            ids = [self.fill if start is None else start]
        return ids

    def count(self, text: str) -> int:
        """Number of tokens of a prompt, even one that is too long for the model."""
        return len(self.ids(text, verbose=False))  # no warning that it is long

    def target(self, prompt: str, target: str) -> list[int]:
        """Ids of ``target`` behind ``prompt``, with a space between the two unless the prompt ends with one.

        They are those of the joined text where the prompt keeps its own ids in it. Raises :class:`BadInput` for a
        target of which the tokenizer makes nothing, and for one that is too long behind this prompt.
        """
        if self.seq2seq:
            return self._within(self._plain(target.strip()), target)
        before = self.prompt(prompt)
        ids = self._target(before, prompt, target)
        if not self.fits(before, ids):
            both = f"{len(before) + len(ids)} tokens together"
            raise BadInput(
                f"the prompt {shown(prompt)} and the answer {shown(target.strip())} have {both}; "
                f"the model reads at most {self.limit}: give a shorter one, or another model"
            )
        return ids

    def beginning(self, prompt: str, target: str) -> list[int]:
        """The first ids of :meth:`target`, as many as the model can read behind ``prompt``, which it can read."""
        before = self.prompt(prompt)
        ids = self._plain(target.strip()) if self.seq2seq else self._target(before, prompt, target)
        while not self.fits(before, ids):
            ids = ids[:-1]
        return ids

    def fits(self, prompt: Sequence[int], target: Sequence[int]) -> bool:
        """Whether the model can read the ids of a prompt and of a target, whose last one it is not fed."""
        if self.limit is None:
            return True
        if self.seq2seq:
            return max(len(prompt), len(target)) <= self.limit  # a target is fed behind one token of the decoder's
        return len(prompt) + len(target) - 1 <= self.limit

    def ended(self, prompt: Sequence[int], target: list[int]) -> list[int]:
        """The target's ids with the end token, where there is one and room for it."""
        ids = target if self.end is None else [*target, self.end]
        return ids if self.fits(prompt, ids) else target

    def _target(self, before: list[int], prompt: str, target: str) -> list[int]:
        bare = target.lstrip() if not prompt or prompt[-1:].isspace() else " " + target.lstrip()
        text = prompt + bare
        joined = self.ids(text)
        if joined[: len(before)] == before and len(joined) > len(before) and prompt:
            rest = joined[len(before) :]
            return rest[:-1] if len(rest) > 1 and rest[-1] == self.end else rest
        options = [self._plain(bare), self._plain(target.lstrip()), self._unprefixed(bare)]
        for ids in options:
            if ids and self._spells(before, ids, prompt, bare):
                return ids
        if not options[0]:
            raise BadInput(f"the tokenizer makes nothing of the target {shown(target)}; give another text")
        return options[0]

    def _spells(self, before: list[int], ids: list[int], prompt: str, text: str) -> bool:
        """Whether ``ids`` add ``text``, and no space more, to the prompt's ids ``before``; any to an empty prompt."""
        joined = self.decode(before + ids)
        return joined == self.decode(before) + text if prompt else joined.endswith(text)

    def _unprefixed(self, text: str) -> list[int]:
        """Ids of a text without the space that the tokenizer may put before one; empty where they cannot be told."""
        line = self._plain("\n")  # the space then stands before the line break
        ids = self._plain("\n" + text)
        return ids[len(line) :] if ids[: len(line)] == line else []

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a text in two parts, of any length; nothing is put between them.

        Spaces at the context's end are moved to the continuation, as in lm-evaluation-harness. Where one token would
        belong to both, the two are tokenised apart.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before = self._prompt(bare)
        if self.seq2seq or not bare:
            return before, self._plain(continuation)
        whole = self._prompt(bare + continuation)
        joined = whole[: len(before)] == before and len(whole) > len(before)
        return before, whole[len(before) :] if joined else self._plain(continuation)

    def tail(self, text: str, room: int) -> str:
        """The end of a text, of at most ``room`` tokens."""
        ids, keep = self._plain(text), room
        while len(ids) > room:  # a decoded text may have a token more than the ids it was decoded from
            text = self.decode(ids[-keep:])
            ids, keep = self._plain(text), keep - 1
        return text

    def last_of_subject(self, prompt: str, subject: str, at: int | None = None) -> int:
        """Index in the prompt's ids of the last token of the subject, which begins at character ``at``.

        By default at its last occurrence as a word. Raises :class:`BadInput` where it is not there.
        """
        return self.last_of_parts(prompt, [placed(prompt, subject, at)[1] + len(subject)])[0]

    def last_of_parts(self, prompt: str, ends: Sequence[int]) -> list[int]:
        """Index in the prompt's ids of the last token of each part of it that ends at one of these characters."""
        offsets: Sequence[tuple[int, int]] = ()
        if getattr(self.tokenizer, "is_fast", False):
            offsets = self.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        touching = [[i for i, (a, b) in enumerate(offsets) if a < end <= b] for end in ends]
        return [some[-1] if some else self._last_before(prompt, end) for some, end in zip(touching, ends, strict=True)]

    def _last_before(self, prompt: str, end: int) -> int:
        ids, before = self.prompt(prompt), self.prompt(prompt[:end])
        if ids[: len(before)] != before:  # a token goes on behind the part
            lengths = (len(self.decode(ids[: i + 1])) for i in range(len(ids)))
            return next((i for i, length in enumerate(lengths) if length >= end), len(ids) - 1)
        return len(before) - 1

    def mentions(self, ids: Sequence[int], subjects: Sequence[str]) -> dict[int, tuple[int, int]]:
        """Number of each subject that a prompt names -> indices in its ids of the first and last token of the last
        mention, as a word.

        From ids alone, for code that sees no text; subjects are spelt as the tokenizer gives them back.
        """
        text, read = self.decode(ids), list[str]()
        found: dict[int, tuple[int, int]] = {}
        for number, subject in enumerate(subjects):
            name = self._spelt(subject)
            start = last_word(text, name) if name and name in text else -1
            if start >= 0:
                read = read or [self.decode(ids[: i + 1]) for i in range(len(ids))]
                ends = (start + 1, start + len(name))
                first, last = (next(i for i, so in enumerate(read) if so.startswith(text[:to])) for to in ends)
                found[number] = (first, last)
        return found

    def _spelt(self, subject: str) -> str:
        if subject not in self._spellings:
            self._spellings[subject] = self.decode(self._plain(subject)).strip()
        return self._spellings[subject]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ``ids`` add to the prompt's ids, its leading space included.

        Decoded behind a letter: SentencePiece's decoder drops the space before the first of its tokens.
        """
        if self.seq2seq or all(token in self._special for token in prompt):
            return self.decode(ids)  # the beginning of a text
        letter, before = self._letter
        return self.decode([*letter, *ids])[len(before) :]

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def _letter(self) -> tuple[list[int], str]:
        """Ids of a letter, and what is decoded from them."""
        ids = self._plain("a")
        return ids, self.decode(ids)

    def _plain(self, text: str) -> list[int]:
        return self.ids(text, add_special_tokens=False)

    def _within(self, ids: list[int], text: str) -> list[int]:
        if self.limit is not None and len(ids) > self.limit:
            raise BadInput(f"{shown(text)} has {len(ids)} tokens; the model reads at most {self.limit}")
        return ids
