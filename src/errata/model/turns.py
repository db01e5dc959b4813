"""A talk of several turns: what was said so far, and how a model is asked behind it."""

from dataclasses import dataclass, replace

from errata.model.hf import HFLM
from errata.model.tokens import joined

SHARE = 4  # of what the model can read, one part in so many is kept for an answer, however long it may be


@dataclass(frozen=True)
class Turns:
    """What a user and the model said, in order; a value."""

    said: tuple[tuple[str, str], ...] = ()
    """The user's text and the model's answer of each turn."""

    def __len__(self) -> int:
        return len(self.said)

    def then(self, text: str, answer: str) -> "Turns":
        """The same with one more turn."""
        return replace(self, said=(*self.said, (text, answer.strip())))

    def without_last(self) -> "Turns":
        """The same without its last turn, where there is one."""
        return replace(self, said=self.said[:-1])

    def asked(self, lm: HFLM, text: str, room: int) -> tuple[HFLM, str, int]:
        """The model to ask, the prompt, and how many of the oldest turns were left out for ``room`` more tokens.

        In a chat earlier turns stand in the template, and the prompt is the text itself. In plain text the prompt goes
        on from all that was said, a line for each turn.
        """
        limit = lm.tokens.limit
        room = room if limit is None else min(room, limit // SHARE)
        for left_out in range(len(self)):
            view, prompt = _behind(lm, self.said[left_out:], text)
            if limit is None or view.tokens.count(prompt) + room <= limit:
                return view, prompt, left_out
        return lm, text, len(self)


def _behind(lm: HFLM, said: tuple[tuple[str, str], ...], text: str) -> tuple[HFLM, str]:
    if lm.chat:
        return lm.behind(said), text
    return lm, "\n".join([*(joined(prompt, answer) for prompt, answer in said), text])
