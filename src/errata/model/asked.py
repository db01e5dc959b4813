"""How a model is asked: in plain text, or under a chat template with a system message. For patches and rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from errata.model.chat import Template, digest_of
from errata.printable import shown

LONGEST = 40  # characters of a system message in a row


@dataclass(frozen=True)
class Asked:
    """How a model is asked, or was when an edit was made."""

    chat: bool | None
    """Whether under a chat template; None where an old file does not say."""
    template: str | None = None
    """The template's digest (:attr:`Template.digest`); None in plain text, and where an old file does not say."""
    system: str | None = None
    """The system message that was given; None where that is the template's own, if it has one."""

    @classmethod
    def under(cls, template: Template | None) -> Self:
        """Under this template; in plain text where it is None."""
        return cls(False) if template is None else cls(True, template.digest, template.system)

    @classmethod
    def said_by(cls, made: Mapping[str, Any]) -> Self:
        """As a record of a call of ``edit`` says (:attr:`record`)."""
        return cls(made.get("chat"), made.get("template"), made.get("system"))

    @property
    def record(self) -> dict[str, Any]:
        """For the record of a call of ``edit``: ``chat``, and in a chat ``template`` and the ``system`` message."""
        return {"chat": self.chat} | ({"template": self.template, "system": self.system} if self.chat else {})

    @property
    def words(self) -> str:
        """As it stands in a message, behind "asked" or "made"."""
        if not self.chat:
            return "in plain text"
        name = "its chat template" if self.template is None else f"the chat template {self.template}"
        return f"under {name}" + ("" if self.system is None else f" with the system message {shown(self.system)}")

    def differs(self, now: Self) -> bool:
        """Whether an edit that was made so is surely asked otherwise ``now``."""
        if self.chat is None or self.chat != now.chat:
            return self.chat is not None
        return self.template is not None and self != now

    def way_from(self, now: Self) -> str:
        """What to do so that a model that is asked as ``now`` is asked like this."""
        if not self.chat:
            return "load with chat=False (--no-chat)"
        if now.chat and self.template != now.template:
            return "load with that template (tokenizer.chat_template, or chat_template.jinja beside the model)"
        if self.system is not None:
            return f"load with system={shown(self.system)} (--system)"
        return "load without system (--system)" if now.chat else "load with chat=True (--chat)"


def label_of(tokenizer: Any, template: Template | None, seq2seq: bool) -> str:
    """How a model is asked, as rows say it: by the template's digest and the system message.

    In plain text that is ``plain`` where the tokenizer has a template, and empty where there is no choice.
    """
    if template is None:
        return "plain" if getattr(tokenizer, "chat_template", None) and not seq2seq else ""
    return f"template {template.digest}" + ("" if template.system is None else f", system {_short(template.system)}")


def _short(text: str) -> str:
    return repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}… ({digest_of(text)})"
