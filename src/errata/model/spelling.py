"""Texts to ids and back, as the tokenizer spells them: nothing here knows of prompts, answers or templates."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from errata.errors import BadInput
from errata.printable import shown
from errata.types import as_text

UNFINISHED = "\ufffd"  # decoded from the bytes of a character that lacks some


class Spelling:
    """Token ids of plain texts, and the texts of ids."""

    tokenizer: Any
    """The transformers tokenizer."""
    seq2seq: bool
    """Whether the model is an encoder-decoder: prompts keep their end token, targets are texts of their own."""
    rows: int | None
    """Tokens that the model's embedding has a row for; None where that is not known."""
    fill: int
    """The id that pads: the tokenizer's padding token, or another of its special tokens."""

    def __init__(self, tokenizer: Any, seq2seq: bool = False, rows: int | None = None) -> None:
        """``tokenizer`` is one of transformers."""
        self.tokenizer, self.seq2seq, self.rows = tokenizer, seq2seq, rows
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
        self.fill = next(i for i in candidates if i is not None and (rows is None or i < rows))
        self._spellings: dict[str, str] = {}

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

    def _text(self, text: str) -> list[int]:
        """Ids of the beginning of a plain text."""
        ids = self.ids(text)
        if not self.seq2seq:
            end = self.tokenizer.eos_token_id
            while len(ids) > 1 and ids[-1] == end and not text.endswith(str(self.tokenizer.eos_token)):
                ids.pop()
        if not ids:
            start = self.tokenizer.bos_token_id
            ids = [self.fill if start is None else start]
        return ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a plain text in two parts, of any length, in a chat too; nothing is put between them.

        Spaces at the context's end are moved to the continuation, as in lm-evaluation-harness. Where one token would
        belong to both, the two are tokenised apart.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before = self._text(bare)
        if self.seq2seq or not bare:
            return before, self._plain(continuation)
        whole = self._text(bare + continuation)
        joined = whole[: len(before)] == before and len(whole) > len(before)
        return before, whole[len(before) :] if joined else self._plain(continuation)

    def _plain(self, text: str) -> list[int]:
        return self.ids(text, add_special_tokens=False)

    def _unprefixed(self, text: str) -> list[int]:
        """Ids of a text without the space that the tokenizer may put before one; empty where they cannot be told."""
        line = self._plain("\n")  # the space then stands before the line break
        ids = self._plain("\n" + text)
        return ids[len(line) :] if ids[: len(line)] == line else []

    def _spelt(self, subject: str) -> str:
        if subject not in self._spellings:
            self._spellings[subject] = self.decode(self._plain(subject)).strip()
        return self._spellings[subject]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._decoded(ids, True)

    def _decoded(self, ids: Sequence[int], bare: bool) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=bare, clean_up_tokenization_spaces=False)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ``ids`` add to the prompt's ids, its leading space included.

        Decoded behind a letter: SentencePiece's decoder drops the space before the first of its tokens.
        """
        if self.seq2seq or all(token in self._special for token in prompt):
            return self.decode(ids)  # the beginning of a text
        letter, before = self._letter
        return self.decode([*letter, *ids])[len(before) :]

    def settled(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids without those bytes at their end that may still become other characters, together with more.

        A decoder of SentencePiece's kind reads a run of single bytes as a whole.
        """
        end = len(ids)
        while end and ids[end - 1] in self._bytes:
            end -= 1
        return ids[:end]

    @cached_property
    def _bytes(self) -> frozenset[int]:
        """The ids of pieces that are single bytes, as they are written where a character is unknown."""
        found = self.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in range(256)])
        return frozenset(i for i in found if i is not None and i != self.tokenizer.unk_token_id)

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def _letter(self) -> tuple[list[int], str]:
        """Ids of a letter, and what is decoded from them."""
        ids = self._plain("a")
        return ids, self.decode(ids)
