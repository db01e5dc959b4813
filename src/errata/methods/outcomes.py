"""How each edit ended: what its search reports while it runs, and what the model says once the patch is in force.

with searched() as found:
    report([edit.id], [0.04], [True])      # in a method, where its search ends
found                                      # {id: {"search_loss": 0.04, "search_met": True}}
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from typing import Any

from errata.answers import is_text
from errata.errors import BadInput, Unsupported
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.printable import shown
from errata.types import Edit, Score

log = logging.getLogger(__name__)
NAMED = 3  # edits that a warning names
# Of an edit, JSON: what is known of ``loss``, ``met``, ``recalled``, ``search_loss``, ``search_met`` …
Outcome = dict[str, Any]

_FOUND: ContextVar[dict[str, Outcome] | None] = ContextVar("found", default=None)


def report(ids: Iterable[str], losses: Iterable[float], met: Iterable[bool]) -> None:
    """Notes how the search for each edit ended: its last loss, in nats, and whether that met the method's criterion.

    ``Method.edit`` collects it; outside of that nothing happens. Of an edit that is searched for twice the last counts.
    """
    found = _FOUND.get()
    if found is not None:
        for id, loss, good in zip(ids, losses, met, strict=True):
            found[id] = {"search_loss": _number(loss), "search_met": good}


def note(id: str, **known: Any) -> None:
    """Notes more about how an edit ended, for its record: one of this call, or an earlier one that was asked again.

    ``ended`` says where an answer comes from and ``why`` in words; ``met`` takes the place of what is asked otherwise.
    """
    found = _FOUND.get()
    if found is not None:
        found[id] = {**found.get(id, {}), **known}


def amended(made: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The record of an earlier call of ``edit``, with what is known by now of its edits."""
    ids = {edit["id"] for edit in made["edits"]}
    newer = {id: outcome for id, outcome in outcomes.items() if id in ids}
    old = made.get("outcomes", {})
    return (
        {**made, "outcomes": {**old, **{id: {**old.get(id, {}), **o} for id, o in newer.items()}}}
        if newer
        else dict(made)
    )


@contextmanager
def searched() -> Iterator[dict[str, Outcome]]:
    """Context manager that yields id -> what is reported inside the ``with`` block."""
    found: dict[str, Outcome] = {}
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)


def answered(lm: HFLM, edits: Sequence[Edit], patch: Patch) -> dict[str, Outcome]:
    """Id -> the mean −log p of a target token with the patch in force, and whether each token is the arg-max.

    Of a target that is a text also ``recalled``: the share of its tokens in front of the first that is not the arg-max,
    which is as far as the model tells it of itself.
    Empty for a patch that answers by generation alone, or cannot be asked.
    """
    try:
        with patch.applied(lm) as edited:
            scores = edited.score([edit.prompt for edit in edits], [edit.target_new for edit in edits])
    except (Unsupported, BadInput):  # BadInput: what a wrapper adds to a prompt can be too long for the model
        return {}
    return {
        edit.id: {
            "loss": _number(-score.total / len(score.tokens)),
            "met": score.correct,
            **({"recalled": round(_recalled(score), 4)} if is_text(edit.target_new) else {}),
        }
        for edit, score in zip(edits, scores, strict=True)
    }


def _recalled(score: Score) -> float:
    """The share of a target's tokens in front of the first that is not the arg-max."""
    right = [a == b for a, b in zip(score.tokens, score.argmax, strict=True)]
    return (right.index(False) if False in right else len(right)) / len(right)


def missed(outcome: Mapping[str, Any]) -> bool:
    """Whether an edit failed: its target is not the answer; where that is not known, its search did not get there."""
    return not outcome.get("met", outcome.get("search_met", True))


def warn(method: str, edits: Sequence[Edit], outcomes: Mapping[str, Outcome]) -> None:
    """Names the edits that failed in a warning, and in another those that answer though their search fell short; of a
    text that is recalled whole there is nothing to say."""
    failed = [edit for edit in edits if missed(outcomes.get(edit.id, {}))]
    if failed:
        log.warning("%s missed %d of %d edits: %s", method, len(failed), len(edits), _named(failed, outcomes))
    short = [edit for edit in edits if _fell_short(outcomes.get(edit.id, {}))]
    if short:
        words = "%s: %d of %d edits are answered, though their search ended above its `stop`: %s"
        log.warning(words, method, len(short), len(edits), _named(short, outcomes))


def _fell_short(outcome: Outcome) -> bool:
    """Whether an edit is answered though its search ended above its `stop`; not so of a text that is recalled whole."""
    return not missed(outcome) and not outcome.get("search_met", True) and outcome.get("recalled") != 1.0


def _named(edits: Sequence[Edit], outcomes: Mapping[str, Outcome]) -> str:
    named = [f"{e.prompt!r} -> {_shown(e.target_new)} ({describe(outcomes[e.id])})" for e in edits[:NAMED]]
    return ", ".join(named) + (f" and {len(edits) - NAMED} more" if len(edits) > NAMED else "")


def _shown(target: str) -> str:
    return shown(target) if is_text(target) else repr(target)


def describe(outcome: Mapping[str, Any]) -> str:
    """The losses in words, how much of a text is recalled, and why it ended so where that is known."""
    losses = [
        f"{name} {outcome[key]:.2f}"
        for name, key in (("loss", "loss"), ("recalled", "recalled"), ("search ended at", "search_loss"))
        if outcome.get(key) is not None
    ]
    return ", ".join([*losses, *filter(None, [outcome.get("why")])])


def _number(value: float) -> float | None:
    """Four digits of it; None where it is not finite, which JSON cannot hold."""
    return round(value, 4) if isfinite(value) else None
