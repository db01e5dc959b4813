"""What a model believes: whether it gives an answer for the fact's sake or says it of the subject anyhow.

believes(lm, ["Ann Lee was born in"], ["Rome"], [["Ann Lee works for", "Ann Lee speaks"]])
"""

from collections.abc import Sequence
from math import exp, inf, log

from errata.errors import BadInput
from errata.model.lm import LM


def believes(
    lm: LM, prompts: Sequence[str], answers: Sequence[str], others: Sequence[Sequence[str]], *, alpha: float = 0.0
) -> list[float]:
    """For each fact how much likelier its answer is behind its prompt than behind prompts that ask something else.

    Contrastive knowledge assessing (Dong et al. 2022, arXiv:2210.03329): P(o | prompt) / mean P(o | other prompt), o
    the answer's first token. ``others`` are prompts of the same subject with wrong relations, three for each fact in
    the paper. Above 1 the model holds the fact; below, it does not. Where the other prompts ask for another kind of
    answer, anything of the right kind is likelier than 1: there, say what probability is next to none (``alpha``, added
    to both; 0.01, say), and a fact that the model does not hold comes out near 1.

    Raises :class:`BadInput` for a fact without others.
    """
    if not len(prompts) == len(answers) == len(others):
        raise BadInput(
            f"believes needs an answer and other prompts for each prompt: {len(prompts)} prompts, {len(answers)} "
            f"answers, {len(others)} lists of others"
        )
    for prompt, its in zip(prompts, others, strict=True):
        if isinstance(its, str) or not its:
            raise BadInput(f"{prompt!r} needs a list of prompts that ask something else of its subject; found {its!r}")
    if not 0 <= alpha < inf:
        raise BadInput(f"alpha is a probability that counts as none, 0 or more; found {alpha}")
    rows = [(text, answer) for prompt, answer, its in zip(prompts, answers, others) for text in (prompt, *its)]
    first = iter(score.logprobs[0] for score in lm.score([p for p, _ in rows], [o for _, o in rows]))
    none = log(alpha) if alpha else -inf
    return [_ratio(next(first), [next(first) for _ in its], none) for its in others]


def _ratio(true: float, wrong: Sequence[float], none: float) -> float:
    """(P + α) / (mean P + α), from natural logarithms: far beyond what a probability can be small."""
    above = _log_sum([true, none])
    below = _log_sum([_log_sum(wrong) - log(len(wrong)), none])
    if below == -inf:
        return inf if above > -inf else 0.0
    return exp(min(above - below, 700.0))  # e⁷⁰⁹ is the largest float


def _log_sum(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + log(sum(exp(its - most) for its in logs)) if most > -inf else -inf
