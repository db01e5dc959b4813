"""How much of a text another repeats: ROUGE-N by runs of words, ROUGE-L by the longest common subsequence."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+")  # of scripts without spaces each sign


@dataclass(frozen=True)
class Overlap:
    """What two texts share: of the reference (``recall``), of the other text (``precision``), and ``f1`` of both."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """2pr / (p + r); 0 where nothing is shared."""
        return 2 * self.precision * self.recall / (self.precision + self.recall) if self.recall else 0.0


def rouge(text: str, reference: str, n: int | None = None, *, as_long: bool = False) -> Overlap:
    """ROUGE-N of words in lower case, or with ``n`` None ROUGE-L of the whole texts (Lin 2004, W04-1013, 2.1 and 3.1).

    Without stemming, as ``rouge_score`` counts; the package ``rouge`` (UnKE's) splits at spaces alone and takes
    sentences apart for ROUGE-L. ``as_long``: of the text only as many words count as the reference has.
    """
    given, wanted = _words(text), _words(reference)
    if as_long:
        given = given[: len(wanted)]
    if n is None:
        return _overlap(_common(given, wanted), len(given), len(wanted))
    a, b = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (given, wanted))
    return _overlap((a & b).total(), a.total(), b.total())


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _overlap(shared: int, given: int, wanted: int) -> Overlap:
    return Overlap(shared / (given or inf), shared / (wanted or inf))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)  # of the words of a so far with each beginning of b
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(lengths[j] + 1 if x == y else max(lengths[j + 1], row[j]))
        lengths = row
    return lengths[-1]
