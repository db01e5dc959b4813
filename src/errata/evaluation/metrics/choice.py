"""Which of two answers a model finds more likely: CounterFact's measures, and belief over several choices.

ℓ(o | p) = -(1/|o|) Σ_t log P(o_t | p, o_<t) is the mean over an answer's tokens, so that long answers lose nothing.
The same functions serve edit, paraphrase and neighbourhood prompts: they differ in which object is expected.
"""

from collections.abc import Mapping
from math import exp

from errata.types import Score


def nll(score: Score) -> float:
    """ℓ(o | p) in nats per token."""
    return -score.total / len(score.tokens)


def success(expected: Score, rival: Score) -> float:
    """1{ℓ(expected) < ℓ(rival)}: ES on the edit's prompt, PS on paraphrases, NS on neighbours.

    Expected is o* and the rival o^c on the edit and its paraphrases, and the other way round on neighbours; a tie
    counts 0 (ROME, https://arxiv.org/abs/2202.05262, eval_utils_counterfact.py and summarize.py).
    """
    return float(nll(expected) < nll(rival))


def magnitude(expected: Score, rival: Score) -> float:
    """e^(-ℓ(expected)) - e^(-ℓ(rival)): EM, PM and NM. Geometric means of token probabilities, not probabilities."""
    return exp(-nll(expected)) - exp(-nll(rival))


def choice(options: Mapping[str, Score]) -> str:
    """The option with the smallest ℓ: what a model picks from a multiple choice. The first of those that tie."""
    return min(options, key=lambda option: nll(options[option]))


def ranks_first(option: str, options: Mapping[str, Score]) -> float:
    """1{the option is likelier than all others}: of the old answer, whether it is still believed after the edit."""
    return float(choice(options) == option)
