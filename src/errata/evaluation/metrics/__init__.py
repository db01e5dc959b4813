"""Numbers from replies of models. Pure functions of values, each with its formula and source; no model is asked here.

May import the plain data of ``types`` and ``answers``, and of ``patch`` what a change of weights is.
"""

from errata.evaluation.metrics.accuracy import (
    forced_accuracy,
    forced_agreement,
    generated_agreement,
    token_accuracy,
    token_agreement,
    token_f1,
)
from errata.evaluation.metrics.change import Change, change_of
from errata.evaluation.metrics.choice import choice, magnitude, nll, ranks_first, success
from errata.evaluation.metrics.hops import any_or_all, hop_wise, instance_wise
from errata.evaluation.metrics.means import Mean, case_means, harmonic_mean, mean, mean_over_cases, score
from errata.evaluation.metrics.outlook import Outlook, answer_kl
from errata.evaluation.metrics.rouge import Overlap, rouge
from errata.evaluation.metrics.sequence import (
    backward_transfer,
    deterioration,
    drawdown,
    efficacy,
    relapse,
    retainability,
    scalability,
)
from errata.evaluation.metrics.texts import (
    Tfidf,
    fluency,
    kl,
    ngram_entropy,
    perplexity,
    reference_score,
    sentiment,
    words,
)

__all__ = [
    "Mean", "mean", "mean_over_cases", "case_means", "harmonic_mean", "score",
    "generated_agreement", "forced_accuracy", "forced_agreement",
    "token_accuracy", "token_agreement", "token_f1",
    "nll", "success", "magnitude", "choice", "ranks_first",
    "retainability", "backward_transfer", "scalability", "deterioration", "drawdown", "efficacy", "relapse",
    "any_or_all", "instance_wise", "hop_wise",
    "words", "ngram_entropy", "fluency", "Tfidf", "reference_score", "perplexity", "kl", "sentiment",
    "Overlap", "rouge",
    "Outlook", "answer_kl",
    "Change", "change_of",
]  # fmt: skip
