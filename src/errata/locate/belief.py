"""Whether a model knows a fact, or gives the answer to any question about the subject.

believes(lm, ["Ann Lee was born in"], ["Rome"], [["Ann Lee works for", "Ann Lee speaks"]])
"""

from collections.abc import Sequence
from math import exp, inf, log

from errata.errors import BadInput
from errata.model.lm import LM


def believes(
    lm: LM, prompts: Sequence[str], answers: Sequence[str], others: Sequence[Sequence[str]], *, alpha: float = 0.0
) -> list[float]:
    """For each fact the ratio P(o | prompt) / mean P(o | other prompt), o being the answer's first token.

    Contrastive knowledge assessing (Dong et al. 2022, arXiv:2210.03329): above 1 the model knows the fact, below it
    does not. ``others`` are prompts about the same subject with other relations, three for each fact in the paper.
    Where those ask for another kind of answer, every answer of the right kind gets a ratio above 1: there set
    ``alpha``, a probability that counts as none and is added to both (0.01, say); an unknown fact then comes out near
    1. Raises :class:`BadInput` for a fact without others.
    """
    if not len(prompts) == len(answers) == len(others):
        raise BadInput(
            f"believes needs an answer and other prompts for each prompt: {len(prompts)} prompts, {len(answers)} "
            f"answers, {len(others)} lists of others"
        )
    for prompt, wrong in zip(prompts, others, strict=True):
        if isinstance(wrong, str) or not wrong:
            raise BadInput(
                f"{prompt!r} needs a list of prompts that ask something else of its subject; found {wrong!r}"
            )
    if not 0 <= alpha < inf:
        raise BadInput(f"alpha is a probability that counts as none, 0 or more; found {alpha}")
    rows = [(text, answer) for prompt, answer, wrong in zip(prompts, answers, others) for text in (prompt, *wrong)]
    logprobs = iter(score.logprobs[0] for score in lm.score([p for p, _ in rows], [o for _, o in rows]))
    log_alpha = log(alpha) if alpha else -inf
    return [_ratio(next(logprobs), [next(logprobs) for _ in wrong], log_alpha) for wrong in others]


def _ratio(right: float, wrong: Sequence[float], log_alpha: float) -> float:
    """(P + α) / (mean P + α), from natural logarithms, so that tiny probabilities do not underflow."""
    numerator = _log_sum([right, log_alpha])
    denominator = _log_sum([_log_sum(wrong) - log(len(wrong)), log_alpha])
    if denominator == -inf:
        return inf if numerator > -inf else 0.0
    return exp(min(numerator - denominator, 700.0))  # e⁷⁰⁹ is the largest float


def _log_sum(logs: Sequence[float]) -> float:
    largest = max(logs)
    return largest + log(sum(exp(x - largest) for x in logs)) if largest > -inf else -inf
