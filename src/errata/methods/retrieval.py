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
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
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
        product: Any = self.encode(queries) @ self.rows.T
        return np.asarray(product.todense() if hasattr(product, "todense") else product, np.float32)


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


def _words(texts: Sequence[str]) -> Callable[[Sequence[str]], Any]:
    """Pieces of words, so that inflected forms are alike: TF-IDF of 2 to 4 letters, (n, pieces), sparse."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted: Any = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    fitted.fit([*texts, "a"])
    return fitted.transform
