# pyright: reportUnknownMemberType=false
"""Which of many texts is near a question: unit vectors of a named encoder, looked up by one matrix product.

An encoder is a model of sentence-transformers, by name or folder (extra ``retrieval``), or ``tfidf``: scikit-learn's,
fitted on the texts themselves.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from errata.encoders import SENTENCES, TFIDF, sentences

Array = npt.NDArray[np.float32]

HAN = "぀-ヿ㐀-鿿"  # scripts without spaces: each sign counts as a word
WORD = rf"[{HAN}]|[^\W{HAN}]+"


def default_encoder() -> str:
    """The sentence encoder where sentence-transformers is installed, else ``tfidf``."""
    return SENTENCES if find_spec("sentence_transformers") else TFIDF


class Index:
    """Texts as rows of unit vectors; what several texts are is encoded once."""

    def __init__(self, encoder: str, texts: Sequence[str]) -> None:
        self.number = number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self.texts = list(number)  # distinct
        self.of = np.array([number[text] for text in texts], np.int64)  # (n,)
        self.encode = _words(texts) if encoder == TFIDF else sentences(encoder)
        self.rows = self.encode(self.texts)  # (distinct texts, width)

    def near(self, queries: Sequence[str]) -> Array:
        """(b, n): the cosine of each query with each text."""
        cosines = self.product(queries)
        return cosines if len(self.texts) == len(self.of) else cosines[:, self.of]

    def product(self, queries: Sequence[str]) -> Array:
        """(b, distinct texts): the same of each distinct text."""
        product: Any = self._encoded(queries) @ self.rows.T
        return np.asarray(product.todense() if hasattr(product, "todense") else product, np.float32)

    def _encoded(self, queries: Sequence[str]) -> Any:
        """The queries as rows; one that is among the texts is not encoded again."""
        new = [query for query in dict.fromkeys(queries) if query not in self.number]
        if not isinstance(self.rows, np.ndarray) or len(self.number) == 0:
            return self.encode(queries)
        rows = np.concatenate([self.rows, self.encode(new)]) if new else self.rows
        place = {query: len(self.rows) + i for i, query in enumerate(new)}
        return rows[[self.number.get(query, place.get(query, -1)) for query in queries]]


@lru_cache(maxsize=8)
def index(encoder: str, texts: tuple[str, ...]) -> Index:
    """The index of some texts; the last ones are kept, since a fold asks for the same again and again."""
    return Index(encoder, texts)


class Names:
    """Subjects, by their words."""

    def __init__(self, subjects: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self.counts: Any = CountVectorizer(binary=True, token_pattern=WORD)
        wanted: Any = self.counts.fit([*subjects, "a"]).transform(
            subjects
        )  # (n, words); "a": no vocabulary may be empty
        self.wanted: Any = wanted.T.tocsr()  # (words, n)
        self.sizes = np.maximum(np.asarray(wanted.sum(1)).T, 1)

    def named(self, queries: Sequence[str]) -> Array:
        """(b, n): the share of each subject's words that each query holds."""
        return (self.counts.transform(queries) @ self.wanted).toarray() / self.sizes

    def naming(self, queries: Sequence[str], least: float) -> "tuple[npt.NDArray[np.int64], npt.NDArray[Any]]":
        """Pairs (p, 2) of a query and a subject whose share is at least ``least``, above 0, in order; the share (p,).

        What takes time are the subjects that share a word with a query, and not their number.
        """
        counts: Any = (self.counts.transform(queries) @ self.wanted).tocsr()
        counts.sort_indices()
        rows = np.repeat(np.arange(len(queries)), np.diff(counts.indptr))
        share = counts.data / self.sizes[0, counts.indices]
        some = np.flatnonzero(share >= least)
        return np.stack([rows[some], counts.indices[some]], 1).astype(np.int64), share[some]


def _words(texts: Sequence[str]) -> Callable[[Sequence[str]], Any]:
    """Pieces of words, so that inflected forms are alike: TF-IDF of 2 to 4 letters, (n, pieces), sparse."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted: Any = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    fitted.fit([*texts, "a"])
    return fitted.transform
