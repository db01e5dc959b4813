"""Which of two answers a model finds more likely: CounterFact's measures, and belief over several choices.

ℓ(o | p) = -(1/|o|) Σ_t log P(o_t | p, o_<t) is the mean over an answer's tokens, so that long answers lose nothing.
One pair of functions serves efficacy, paraphrase and neighbourhood: what differs is which object ought to win.
"""

from collections.abc import Mapping
from math import exp

from errata.types import Score


def nll(score: Score) -> float:
    """ℓ(o | p) in nats per token."""
    return -score.total / len(score.tokens)


def success(wanted: Score, rival: Score) -> float:
    """1{ℓ(wanted) < ℓ(rival)}: ES on the edit's prompt, PS on paraphrases, NS on neighbours.

    Wanted is o* and the rival o^c on the edit and its paraphrases, and the other way round on neighbours; a tie is
    lost (ROME, https://arxiv.org/abs/2202.05262, eval_utils_counterfact.py and summarize.py).
    """
    return float(nll(wanted) < nll(rival))


def magnitude(wanted: Score, rival: Score) -> float:
    """e^(-ℓ(wanted)) - e^(-ℓ(rival)): EM, PM and NM. Geometric means of token probabilities, not probabilities."""
    return exp(-nll(wanted)) - exp(-nll(rival))


def choice(options: Mapping[str, Score]) -> str:
    """The option with the smallest ℓ: what a model picks from a multiple choice. The first of those that tie."""
    return min(options, key=lambda option: nll(options[option]))


def ranks_first(option: str, options: Mapping[str, Score]) -> float:
    """1{the option is ahead of all others}: of the old answer, whether the model still believes it after the edit."""
    return float(choice(options) == option)
