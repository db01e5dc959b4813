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

from errata.errors import Unsupported
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Edit

log = logging.getLogger(__name__)
NAMED = 3  # edits that a warning names
Outcome = dict[
    str, Any
]  # of an edit, JSON: those of ``loss``, ``met``, ``search_loss`` and ``search_met`` that are known

_FOUND: ContextVar[dict[str, Outcome] | None] = ContextVar("found", default=None)


def report(ids: Iterable[str], losses: Iterable[float], met: Iterable[bool]) -> None:
    """Notes how the search for each edit ended: its last loss, in nats, and whether that met the method's criterion.

    ``Method.edit`` collects it; outside of that nothing happens. Of an edit that is searched for twice the last counts.
    """
    found = _FOUND.get()
    if found is not None:
        for id, loss, good in zip(ids, losses, met, strict=True):
            found[id] = {"search_loss": _number(loss), "search_met": good}


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

    Empty for a patch that answers by generation alone.
    """
    try:
        with patch.applied(lm) as edited:
            scores = edited.score([edit.prompt for edit in edits], [edit.target_new for edit in edits])
    except Unsupported:
        return {}
    return {
        edit.id: {"loss": _number(-score.total / len(score.tokens)), "met": score.correct}
        for edit, score in zip(edits, scores, strict=True)
    }


def missed(outcome: Mapping[str, Any]) -> bool:
    """Whether an edit failed: its target is not the answer; where that is not known, its search did not get there."""
    return not outcome.get("met", outcome.get("search_met", True))


def warn(method: str, edits: Sequence[Edit], outcomes: Mapping[str, Outcome]) -> None:
    """Names the edits that failed in a warning."""
    failed = [edit for edit in edits if missed(outcomes.get(edit.id, {}))]
    if failed:
        named = [f"{e.prompt!r} -> {e.target_new!r} ({describe(outcomes[e.id])})" for e in failed[:NAMED]]
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        log.warning("%s missed %d of %d edits: %s%s", method, len(failed), len(edits), ", ".join(named), more)


def describe(outcome: Mapping[str, Any]) -> str:
    """The losses in words."""
    return ", ".join(
        f"{name} {outcome[key]:.2f}"
        for name, key in (("loss", "loss"), ("search ended at", "search_loss"))
        if outcome.get(key) is not None
    )


def _number(value: float) -> float | None:
    """Four digits of it; None where it is not finite, which JSON cannot hold."""
    return round(value, 4) if isfinite(value) else None
