"""Prompts, answers and subjects as ids. With ``spelling`` and ``chat`` the only module that reasons about spaces,
offsets and templates."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from errata.errors import BadInput
from errata.model.chat import Template
from errata.model.spelling import Spelling
from errata.printable import shown
from errata.subjects import last_word, placed
from errata.types import as_text


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


def common_start(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The ids that two rows begin with alike."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


class Tokens(Spelling):
    """Token ids of prompts, subjects and targets.

    A prompt has the same ids with and without a target behind it. Under a chat template it is a user's turn, and the
    target the beginning of the assistant's; the empty one begins a plain text all the same. Raises :class:`BadInput`
    for prompts and targets of more than ``limit`` tokens, where there is a limit, and for a text with a token that the
    model has no row for.
    """

    limit: int | None
    """Tokens that the model can read; None where that is not known."""
    template: Template | None
    """The chat template that prompts are asked under; None for plain text."""
    ends: frozenset[int]
    """The ids that end an answer: the tokenizer's end token, and in a chat every other at which the model stops."""

    def __init__(
        self,
        tokenizer: Any,
        limit: int | None = None,
        seq2seq: bool = False,
        rows: int | None = None,
        *,
        template: Template | None = None,
        stops: Iterable[int] = (),
    ) -> None:
        """``tokenizer`` is one of transformers; ``stops`` are the ids at which the model stops in a chat."""
        super().__init__(tokenizer, seq2seq, rows)
        self.limit, self.template = limit, template
        of_turn = set[int]() if template is None else {*stops, template.end}
        self.ends = frozenset(i for i in (tokenizer.eos_token_id, *of_turn) if i is not None)

    @property
    def end(self) -> int | None:
        """The id that ends a text, in a chat the assistant's turn; None where there is none."""
        of_turn = self.template and self.template.end
        return self.tokenizer.eos_token_id if of_turn is None else of_turn

    @property
    def turn(self) -> list[str]:
        """What the chat template puts before and behind a prompt: two texts, or none. It tells settings apart."""
        return [self.template.before, self.template.after] if self.template else []

    @property
    def frame(self) -> int:
        """Tokens that the chat template puts around a prompt; 0 without one."""
        return sum(map(len, self._frame))

    def prompt(self, text: str) -> list[int]:
        """Ids of a prompt, with what the tokenizer puts before it. An empty one is the beginning of a text."""
        return self._within(self._prompt(text), text)

    def _prompt(self, text: str) -> list[int]:
        whole, _, how = self._asked(text)
        return self.ids(whole, **how) if how else self._text(text)

    def _asked(self, prompt: str) -> tuple[str, int, dict[str, Any]]:
        """The text that is tokenised for a prompt, where the prompt begins in it, and how it is tokenised.

        A template writes the tokens itself that the tokenizer puts before a text.
        """
        if self.template is None or not as_text(prompt, "a prompt"):
            return prompt, 0, {}
        return *self.template.around(prompt), {"add_special_tokens": False}

    def count(self, text: str) -> int:
        """Number of tokens of a prompt, even one that is too long for the model."""
        whole, _, how = self._asked(text)
        return len(self.ids(whole, verbose=False, **how))  # no warning that it is long

    def length(self, text: str) -> int:
        """Number of tokens that a piece of text adds to a prompt, about."""
        return self.count(text) - self.frame

    def target(self, prompt: str, target: str) -> list[int]:
        """Ids of ``target`` behind ``prompt``, with a space between the two unless the prompt ends with one.

        In a chat the template says whether there is one. They are those of the joined text where the prompt keeps its
        own ids in it. Raises :class:`BadInput` for a target of which the tokenizer makes nothing, and for one that is
        too long behind this prompt.
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
        whole, _, how = self._asked(prompt)
        space = "" if not whole or whole[-1:].isspace() else " "
        bare = (self.template.gap if self.template and prompt else space) + target.lstrip()
        joined = self.ids(whole + bare, **how)
        if joined[: len(before)] == before and len(joined) > len(before) and prompt:
            rest = joined[len(before) :]
            return rest[:-1] if len(rest) > 1 and rest[-1] == self.tokenizer.eos_token_id else rest
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

    def exchange(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of a prompt and an answer, of any length: in a chat two turns, otherwise :meth:`pair`."""
        if self.template is None or not prompt:
            return self.pair(prompt, answer)
        before = self._prompt(prompt)
        return before, self._target(before, prompt, answer)

    def exchange_within(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """:meth:`exchange`, of a prompt that is too long only its end.

        In a chat the template stays whole, its system message too, and the beginning of what the user says is left out.
        Raises :class:`BadInput` for an answer that is too long, by itself or with the template.
        """
        before, ids = self.exchange(prompt, answer)
        if self.limit is None:
            return before, ids
        if len(ids) > self.limit:
            raise BadInput(f"a task's answer has {len(ids)} tokens; the model reads at most {self.limit}")
        if self.template is None or not prompt:
            return before[-(self.limit if self.seq2seq else self.limit + 1 - len(ids)) :], ids
        if self.fits(before, ids):
            return before, ids
        return self.exchange(self.shortened(prompt, self.limit + 1 - len(ids)), answer)

    def shortened(self, prompt: str, most: int) -> str:
        """The prompt, or the end of it, so that with the template around it there are ``most`` tokens at most.

        Raises :class:`BadInput` where the template leaves no room.
        """
        said, room = prompt, len(self._plain(prompt))
        while (over := self.count(said) - most) > 0:
            room -= over
            said = self.tail(prompt, room) if room > 0 else ""
            if not said:
                raise BadInput(
                    f"the chat template has {self.frame} tokens, and there is room for {most}; shorten system "
                    "(--system), or load with chat=False (--no-chat)"
                )
        return said

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
        whole, start, how = self._asked(prompt)
        offsets: Sequence[tuple[int, int]] = ()
        if getattr(self.tokenizer, "is_fast", False):
            offsets = self.tokenizer(whole, return_offsets_mapping=True, **how)["offset_mapping"]
        ends = [start + end for end in ends]
        touching = [[i for i, (a, b) in enumerate(offsets) if a < end <= b] for end in ends]
        return [some[-1] if some else self._last_before(whole, end) for some, end in zip(touching, ends, strict=True)]

    def _last_before(self, text: str, end: int) -> int:
        of = self.prompt if self.template is None else self._plain
        ids, before = of(text), of(text[:end])
        if ids[: len(before)] != before:  # a token goes on behind the part
            lengths = (len(self._decoded(ids[: i + 1], self.template is None)) for i in range(len(ids)))
            return next((i for i, length in enumerate(lengths) if length >= end), len(ids) - 1)
        return len(before) - 1

    def mentions(self, ids: Sequence[int], subjects: Sequence[str]) -> dict[int, tuple[int, int]]:
        """Number of each subject that a prompt names -> indices in its ids of the first and last token of the last
        mention, as a word.

        From ids alone, for code that sees no text; subjects are spelt as the tokenizer gives them back. What a chat
        template writes itself names nobody.
        """
        front, ids = self._of_user(ids)
        text, read = self.decode(ids), list[str]()
        found: dict[int, tuple[int, int]] = {}
        for number, subject in enumerate(subjects):
            name = self._spelt(subject)
            start = last_word(text, name) if name and name in text else -1
            if start >= 0:
                read = read or [self.decode(ids[: i + 1]) for i in range(len(ids))]
                ends = (start + 1, start + len(name))
                first, last = (next(i for i, so in enumerate(read) if so.startswith(text[:to])) for to in ends)
                found[number] = (front + first, front + last)
        return found

    def _of_user(self, ids: Sequence[int]) -> tuple[int, Sequence[int]]:
        """How many ids the template put before a prompt, and those of what the user says."""
        before, after = self._frame
        front, end = len(before), len(ids) - len(after)
        framed = front <= end and [*ids[:front], *ids[end:]] == [*before, *after]
        return (front, ids[front:end]) if framed else (0, ids)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that prompts under the template begin and end with; none without one."""
        if self.template is None:
            return [], []
        a, b = (self._plain(self.template.around(text)[0]) for text in "aB")
        return common_start(a, b), common_start(a[::-1], b[::-1])[::-1]

    def _within(self, ids: list[int], text: str) -> list[int]:
        if self.limit is not None and len(ids) > self.limit:
            raise BadInput(f"{shown(text)} has {len(ids)} tokens; the model reads at most {self.limit}")
        return ids
