"""Where each edit ended, and why: for the record of the call that made it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from errata.answers import answer_of
from errata.methods.assured.asking import Asked, answers_to
from errata.methods.assured.questions import Question
from errata.methods.outcomes import NAMED, note
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.printable import shown

log = logging.getLogger(__name__)
WEIGHTS, MEMORY, NOWHERE = "weights", "memory", "nowhere"  # where an edit's answer comes from


@dataclass(frozen=True)
class Made:
    """A patch in the making: how it answers; and the ids of edits that failed at first, that were tried again, and
    that are in the memory."""

    asked: Asked
    failed: frozenset[str] = frozenset()
    again: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()


def held(prior: Patch) -> frozenset[str]:
    """The ids of edits whose answers come from the memory by now."""
    outcomes = [made.get("outcomes", {}) for made in prior.meta.get("made", ())]
    return frozenset(id for found in outcomes for id, outcome in found.items() if outcome.get("ended") == MEMORY)


def note_endings(lm: HFLM, patch: Patch, made: Made, batch: set[str]) -> None:
    """Asks every edit's prompt once more, with the whole patch on, and notes how each ended.

    Of edits of earlier calls, which are not in the ``batch``, what has changed is noted; those that are no longer
    answered are named in a warning.
    """
    own = list({question.of: question for question in reversed(made.asked.questions) if not question.stays}.values())
    lost: list[str] = []
    for question, text in zip(own, answers_to(lm, patch, own), strict=True):
        met, new = question.right(text), question.of in batch
        again, given = question.of in made.again, question.of in made.given
        if new or not met or question.of in made.failed:
            answers = made.asked.of_edit(question.of)
            note(question.of, met=met, **_ending(answers, text if not met else None, again, given, new))
        if not new and not met:
            lost.append(f"{question.prompt!r} -> {question.answer!r}")
    if lost:
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        log.warning("%d edits of earlier calls are no longer answered: %s", len(lost), ", ".join(lost[:NAMED]) + more)


def _ending(
    answers: Sequence[tuple[Question, str]], wrong: str | None, again: bool, given: bool, new: bool
) -> dict[str, Any]:
    """Where an edit ended, and why; ``wrong`` is what its prompt is answered with instead."""
    words = [question.right(text) for question, text in answers if not question.stays]
    kept = [question.right(text) for question, text in answers if question.stays]
    why = [
        f"its prompt is answered {shown(answer_of(wrong))}" if wrong is not None else "",
        f"answered in {sum(words)} of {len(words)} phrasings" if wrong is None else "",
        "an answer was lost to later edits" if not new else "",
        "the weights were edited again" if again else "",
        "what the weights did not answer is in the memory" if given and wrong is None else "",
        f"{sum(kept)} of {len(kept)} other facts kept" if kept else "",
    ]
    counts = {"asked": len(words), "answered": sum(words), "others": len(kept), "kept": sum(kept)}
    where = NOWHERE if wrong is not None else MEMORY if given else WEIGHTS
    return {"ended": where, "why": ", ".join(filter(None, why)), **counts}
