"""The chat template of a tokenizer: what it puts around a user's text, found by rendering it. For ``tokens``."""

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

from errata.errors import BadInput, first_line
from errata.types import as_text

log = logging.getLogger(__name__)

USER, ANSWER = "qqUSERqq", "qqANSWERqq"  # stand for texts where a template is looked at
# What templates ask for: no thinking (Qwen 3, GLM, Granite, DeepSeek), and a date (Llama 3).
ASKED = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}
# The same date where a template would write that of today, so that a prompt has the same ids tomorrow.
TODAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
THINKING = re.compile(r"<(think\w*|reason\w*|thought\w*)>\s*\Z")  # a block that is left open


@dataclass(frozen=True)
class Template:
    """A user's turn as text: ``before``, what the user says, and ``after``, where the assistant's text begins."""

    before: str
    after: str
    gap: str = ""
    """A space where the template puts one before the assistant's text; the answer brings it."""
    left: bool = False
    """Whether spaces in front of what the user says are dropped."""
    right: bool = False
    """Whether those behind it are."""
    end: int | None = None
    """The id that ends the assistant's turn; None where the template has no such token."""
    system: str | None = None
    """The system message that was put in front; None where that is left to the template."""
    digest: str = ""
    """Twelve hexadecimal digits of the template's source, which tell it from others."""

    @classmethod
    def of(cls, tokenizer: Any, system: str | None = None, earlier: Sequence[tuple[str, str]] = ()) -> Self:
        """The template of a tokenizer, with a ``system`` message in front (else the template's own, where it has one).

        Behind ``earlier`` turns of a user and the assistant, which belong to what stands before the user's text.

        Raises :class:`BadInput` where there is none, and for one that cannot be rendered or alters what users say.
        """
        source = _source(tokenizer)
        render = _renderer(tokenizer, source)
        first = [] if system is None else [_turn("system", system)]
        first += [turn for said in earlier for turn in map(_turn, ("user", "assistant"), said)]
        asked = render([*first, _turn("user", USER)], True)
        before, found, after = asked.partition(USER)
        if not found or USER in after:
            raise BadInput(
                "the chat template does not write the user's text once, as it is; load with chat=False (--no-chat)"
            )
        padded = render([*first, _turn("user", f" {USER} ")], True)
        said = padded[len(before) : len(padded) - len(after)]
        after, gap, end = _answered(tokenizer, render, [*first, _turn("user", USER)], asked, after)
        return cls(before, after, gap, not said.startswith(" "), not said.endswith(" "), end, system, digest_of(source))

    def around(self, text: str) -> tuple[str, int]:
        """The prompt in which a user says ``text``, and where that begins in it."""
        bare = text.lstrip() if self.left else text
        start = len(self.before) - (len(text) - len(bare))
        return self.before + (bare.rstrip() if self.right else bare) + self.after, start


def chosen(
    tokenizer: Any, chat: bool | None, system: str | None, stops: Collection[int], name: str, seq2seq: bool
) -> Template | None:
    """The template that a model is asked under; None for plain text.

    Where ``chat`` is None, that of a model that was trained to take turns: the token that ends the assistant's turn is
    one of those at which the model ``stops``. The templates that come with base models end turns by another one.
    Raises :class:`BadInput`.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if system is not None:
        as_text(system, "a system message")
    if system is not None and chat is False:
        raise BadInput(
            "a system message (system, --system) stands in a chat, and chat=False (--no-chat) asks without one; leave "
            "one of the two out"
        )
    if chat or system is not None:
        if seq2seq:
            raise BadInput(f"{name} is an encoder-decoder, which is asked in plain text; leave chat and system out")
        if not has_one:
            wanted = "" if system is None else ", and a system message stands in a chat"
            plain = "load with chat=False (--no-chat)" if system is None else "leave system (--system) out"
            raise BadInput(
                f"the tokenizer of {name} has no chat template{wanted}; set tokenizer.chat_template, save "
                f"chat_template.jinja beside the model, or {plain}"
            )
        return Template.of(tokenizer, system)
    if chat is False or seq2seq or not has_one:
        return None
    try:
        template = Template.of(tokenizer)
    except BadInput as error:
        log.warning("%s is asked in plain text: %s", name, error)
        return None
    if template.end is None or template.end not in stops:
        log.info("%s has a chat template at whose end of turn it does not stop: it is asked in plain text", name)
        return None
    log.warning(
        "%s is asked under its chat template, as it stops at the end of its turns (%s); chat=False (--no-chat) asks in "
        "plain text",
        name,
        tokenizer.convert_ids_to_tokens(template.end),
    )
    return template


def digest_of(text: str) -> str:
    """Twelve hexadecimal digits of a text."""
    return sha256(text.encode()).hexdigest()[:12]


Render = Callable[[list[dict[str, str]], bool], str]  # (messages, whether an answer is to begin) -> text


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _source(tokenizer: Any) -> str:
    """The template as it is written. Raises :class:`BadInput` where it cannot be had."""
    try:
        return str(tokenizer.get_chat_template())
    except Exception as error:  # no template of that name, or none at all
        raise BadInput(
            f"the chat template cannot be read: {first_line(error)}; load with chat=False (--no-chat)"
        ) from error


def _renderer(tokenizer: Any, template: str) -> Render:
    """Renders messages. What it returns raises :class:`BadInput` where that fails."""
    if "strftime_now" in template:
        replaced = "".join(f" | replace('{sign}', '{text}')" for sign, text in TODAY.items())
        template = "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}" + template

    def render(messages: list[dict[str, str]], answer: bool) -> str:
        how: Any = {"chat_template": template, "tokenize": False, "add_generation_prompt": answer, **ASKED}
        try:
            return str(tokenizer.apply_chat_template(messages, **how))
        except Exception as error:  # a template is a program: it may raise anything
            roles = [message["role"] for message in messages]
            raise BadInput(
                f"the chat template cannot be rendered with the turns of {', '.join(roles)} ({first_line(error)}); "
                f"{'leave system out, or ' * ('system' in roles)}load with chat=False (--no-chat)"
            ) from error

    return render


def _answered(
    tokenizer: Any, render: Render, messages: list[dict[str, str]], asked: str, after: str
) -> tuple[str, str, int | None]:
    """What stands between the user's text and an answer, the space that the answer brings, and the end of its turn.

    Found in a chat with an answer in it, which may open or close more than the prompt for one: a thinking block that
    is left open is closed.
    """
    try:
        whole = render([*messages, _turn("assistant", ANSWER)], False)
    except BadInput:
        whole = ""
    head, found, rest = whole.partition(ANSWER)
    end = _first_special(tokenizer, rest) if found else None
    if found and head.startswith(asked):
        opened = head[len(asked) :]
        gap = " " if opened.endswith(" ") else ""
        return after + opened.removesuffix(gap), gap, end
    if thinking := THINKING.search(after):
        return f"{after.rstrip()}\n\n</{thinking[1]}>\n\n", "", end
    apart = after[-1:].isspace() or after.endswith(tuple(_added(tokenizer).values()))
    return after, "" if apart else " ", end


def _first_special(tokenizer: Any, text: str) -> int | None:
    """The id of the special token that a text begins with."""
    begins = [id for id, token in _added(tokenizer).items() if text.lstrip().startswith(token)]
    return max(begins, key=lambda id: len(_added(tokenizer)[id]), default=None)


def _added(tokenizer: Any) -> dict[int, str]:
    """Id -> text of the tokens that stand beside the tokenizer's vocabulary of pieces."""
    added = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}
    return added | dict(zip(tokenizer.all_special_ids, map(str, tokenizer.all_special_tokens), strict=True))
