"""Texts that a model generates, and texts that it reads: fluency, consistency, sentiment, perplexity, divergence."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import exp, log2
from typing import TYPE_CHECKING, Any

from errata.types import Score

if TYPE_CHECKING:
    import numpy as np

# As the Penn Treebank splits: "does n't" and "Ann 's"; "U.S.", "3.5", "10:30" and "well-known" stay whole.
CONTRACTED = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))\b", re.IGNORECASE)
WORD = re.compile(
    r"""\.\.\. | -- | n't\b | '(?:s|m|d|ll|re|ve)\b
      | (?:[a-z]\.){2,}(?=\s\S)
      | [\w*+=/\\|~^-]+ (?: (?:[.'](?=\w) | [,:](?=\d)) [\w*+=/\\|~^-]+ )*
      | \S""",
    re.VERBOSE | re.IGNORECASE,
)
WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of bigrams and trigrams in ROME's fluency


def words(text: str) -> list[str]:
    """The words and marks of a text, about as NLTK's ``word_tokenize`` splits them (which would download a model)."""
    return WORD.findall(CONTRACTED.sub(r" \1", text))


def ngram_entropy(text: str, n: int) -> float:
    """H_n = -Σ f log2 f over the frequencies of a text's n-grams of words, in bits; 0 of a text that is too short."""
    tokens = words(text)
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(c / total * log2(c / total) for c in counts.values())


def fluency(texts: Iterable[str]) -> float:
    """GE = the mean over texts of (1/2)(2/3 H_2 + 4/3 H_3), in bits; papers print 100 times this.

    Texts are prompt and continuation together, at most 100 tokens (ROME, https://arxiv.org/abs/2202.05262,
    eval_utils_counterfact.py: weights 2/3 and 4/3, then the plain mean over n). Repetition lowers it.
    """
    entropies = [sum(w * ngram_entropy(text, n) for n, w in WEIGHTS.items()) / len(WEIGHTS) for text in texts]
    return sum(entropies) / len(entropies)


class Tfidf:
    """Unigram TF-IDF with the frequencies of a fixed corpus: ``Tfidf.of(texts).cosine(a, b)``.

    Vectors as scikit-learn's ``TfidfVectorizer`` makes them (its words, smoothed IDF); words that the corpus does not
    hold do not count. ``idf`` maps each of its words to ln((1 + n)/(1 + df)) + 1.
    """

    def __init__(self, idf: dict[str, float]) -> None:
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.idf = idf
        self.vectors: Any = TfidfVectorizer(vocabulary={word: i for i, word in enumerate(idf)})
        self.vectors.idf_ = np.array(list(idf.values()))

    @classmethod
    def of(cls, corpus: Iterable[str]) -> "Tfidf":
        """The frequencies of these texts. ValueError where they hold no word."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        fitted = TfidfVectorizer().fit(corpus)
        return cls(dict(zip(fitted.get_feature_names_out().tolist(), fitted.idf_.tolist(), strict=True)))

    def cosine(self, a: str, b: str) -> float:
        """The cosine of two texts; 0 where one shares no word with the corpus."""
        one, two = self.vectors.transform([a, b])
        return float((one @ two.T).sum())  # rows have length one


def reference_score(texts: Sequence[str], references: Sequence[str], tfidf: Tfidf) -> float:
    """RS = cos(TF-IDF of all generations joined, TF-IDF of all references joined); papers print 100 times this.

    References are texts about subjects that have the new object; the IDF is of a fixed corpus (ROME,
    eval_utils_counterfact.py and tfidf_stats.py: all reference texts of the data set).
    """
    return tfidf.cosine(" ".join(texts), " ".join(references))


def perplexity(scores: Iterable[Score]) -> float:
    """exp(-(1/T) Σ log P(token | its prefix)) over all T tokens of all texts (scored behind an empty prompt)."""
    logprobs = [logprob for score in scores for logprob in score.logprobs]
    return exp(-sum(logprobs) / len(logprobs))


def kl(p: "np.ndarray", q: "np.ndarray") -> float:
    """KL(P ‖ Q) = Σ P (log P - log Q) of log-probabilities (V,) or (b, V), in nats; the mean over rows.

    CounterFact+'s NKL with P after and Q before the edit (https://arxiv.org/abs/2305.17553).
    """
    import numpy as np

    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    weight = np.exp(p)
    difference = np.where(weight > 0, p - q, 0.0)  # 0 log 0 = 0
    return float((weight * difference).sum(-1).mean())


def sentiment(same_before: Sequence[Score], same_after: Sequence[Score], opposite_after: Sequence[Score]) -> float:
    """ES = z_sent z_topic, z_sent = σ(ℓ⁺_after - ℓ⁻_after), z_topic = min(1, exp(ℓ⁺_after - ℓ⁺_before)).

    ℓ⁺ and ℓ⁻ are mean log-likelihoods over all tokens of the replies with the wanted and with the opposite sentiment
    (SERAC, https://arxiv.org/abs/2206.06520; ConvSent in KnowEdit): the second factor asks to stay on the topic.
    """
    plus_before, plus, minus = (_mean_logprob(scores) for scores in (same_before, same_after, opposite_after))
    return min(1.0, exp(plus - plus_before)) / (1 + exp(minus - plus))


def _mean_logprob(scores: Sequence[Score]) -> float:
    return sum(score.total for score in scores) / sum(len(score.tokens) for score in scores)
