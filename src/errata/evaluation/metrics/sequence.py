"""Change of accuracy by an edit, along a sequence of edits, and with their number: damage, forgetting, scale."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from errata.evaluation.metrics.means import Mean, mean

Edited = TypeVar("Edited", bound=Hashable)


def retainability(curve: Sequence[float]) -> float:
    """Ret = (1/(n - 1)) Σ_i (A_{i+1} - A_i), A_i = the accuracy after i edits on those i edits; negative is forgetting.

    The survey's (https://arxiv.org/abs/2310.16218). The sum telescopes to (A_n - A_1)/(n - 1): it sees the two ends
    only and shrinks with n, so the curve itself and :func:`backward_transfer` belong beside it.
    """
    if len(curve) < 2:
        raise ValueError(f"retainability needs the accuracy after at least two edits, found {len(curve)}")
    return (curve[-1] - curve[0]) / (len(curve) - 1)


def backward_transfer(right_after: Mapping[Edited, float], at_the_end: Mapping[Edited, float]) -> Mean | None:
    """The mean over edits of (accuracy at the end - accuracy right after that edit); negative is forgetting.

    Backward transfer of continual learning (Lopez-Paz and Ranzato 2017, https://arxiv.org/abs/1706.08840), per edit.
    No edit follows the last one; leave it out of ``right_after``, or it counts as kept.
    """
    return mean(at_the_end[edit] - value for edit, value in right_after.items() if edit in at_the_end)


def scalability(alone: Sequence[float], together: Sequence[float]) -> float:
    """Sca = mean accuracy of edits made alone - that of all made together; smaller is better (survey)."""
    return sum(alone) / len(alone) - sum(together) / len(together)


def drawdown(before: float, after: float) -> float:
    """DD = acc_before - acc_after on what must not move (MEND, https://arxiv.org/abs/2110.11309)."""
    return before - after


def deterioration(before: float, after: float) -> float:
    """1 - acc_after / acc_before (KnowledgeEditor, https://arxiv.org/abs/2104.08164); 0 where nothing was known."""
    return 1 - after / before if before else 0.0


def efficacy(before: Sequence[bool], after: Sequence[bool]) -> Mean | None:
    """The share of wrong answers that became right (MEMIT_CSK, https://arxiv.org/abs/2305.14956); None without any."""
    return mean(float(now) for was, now in zip(before, after, strict=True) if not was)


def relapse(before: Sequence[bool], after: Sequence[bool]) -> Mean | None:
    """The share of right answers that became wrong (MEMIT_CSK); None without any."""
    return mean(float(not now) for was, now in zip(before, after, strict=True) if was)
