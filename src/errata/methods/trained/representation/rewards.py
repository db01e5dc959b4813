"""Rewards of responses: stated functions of texts, by names that fit in a setting."""

from collections.abc import Callable
from dataclasses import dataclass

from errata.errors import BadInput
from errata.printable import shown
from errata.subjects import mentions

Reward = Callable[[str, str], float]  # (prompt, response) -> how good it is

GIVEN = "given"
CONTAINS = "contains:"
NAMES = f'"target", "shorter", "{CONTAINS}WORD" and "{GIVEN}" (a function: prepare(lm, data, reward=f))'


@dataclass(frozen=True)
class Prompted:
    """A prompt to respond to, and what is needed to reward that."""

    subject: str
    prompt: str
    target: str | None = None
    """What an edit asks for there, where one does."""
    given: Reward | None = None
    """The caller's function, where that is the reward."""


def check_name(name: str) -> None:
    """Raises :class:`BadInput` for what names no reward."""
    if name not in ("target", "shorter", GIVEN) and not (name.startswith(CONTAINS) and name != CONTAINS):
        raise BadInput(f"re-control's reward is one of {NAMES}; found {shown(name)}")


def rewarded(name: str, asked: Prompted, response: str) -> float:
    """The reward of a response.

    ``target``: 1 where it has the edit's new target as a word, else 0. ``contains:WORD``: 1 where it has that word or
    those words, else 0. ``shorter``: minus its number of words. ``given``: what the function says.
    """
    if asked.given is not None:
        return float(asked.given(asked.prompt, response))
    if name == "shorter":
        return -float(len(response.split()))
    word = asked.target if name == "target" else name.removeprefix(CONTAINS)
    assert word is not None
    return float(mentions(response, word))
