"""Whether an answer is right, and whether it is the one that was given before: whole, or token by token.

Whether a generated answer is right is a match of texts: ``errata.answers``.
"""

from collections import Counter
from collections.abc import Iterable

from errata.answers import answer_of, normalise
from errata.types import Score


def generated_agreement(before: str, after: str, accepted: Iterable[str] = ()) -> float:
    """1{f*(x) = f(x)} of the normalised answers: locality (Yao et al. 2023, https://arxiv.org/abs/2305.13172).

    A full stop inside one of the ``accepted`` answers ends none: "George W. Bush" and "George H. Bush" are two.
    """
    accepted = tuple(accepted)
    return float(normalise(answer_of(before, accepted)) == normalise(answer_of(after, accepted)))


def forced_accuracy(scores: Iterable[Score]) -> float:
    """1{for an accepted answer y, argmax P(· | x, y_<t) = y_t at every t}.

    Reliability, generality and portability of Yao et al. 2023; the edit success of MEND
    (https://arxiv.org/abs/2110.11309), which matches the whole sequence.
    """
    return float(any(score.correct for score in scores))


def forced_agreement(before: Score, after: Score) -> float:
    """1{argmax P*(· | x, y_<t) = argmax P(· | x, y_<t) at every t}: SERAC's retain rate (one less its draw-down)."""
    return float(before.argmax == after.argmax)


def token_accuracy(score: Score) -> float:
    """(1/|y|) Σ_t 1{argmax P(· | x, y_<t) = y_t}: EasyEdit's ``rewrite_acc``, and zsRE's accuracy in ROME and MEMIT.

    A share of tokens, so that half an answer earns half a point: not comparable with :func:`forced_accuracy`.
    """
    return _share(score.tokens, score.argmax)


def token_agreement(before: Score, after: Score) -> float:
    """(1/|y|) Σ_t 1{the arg-max at t is what it was}: EasyEdit's locality.

    [29, 234, 334] and [29, 234, 333] give 2/3.
    """
    return _share(before.argmax, after.argmax)


def token_f1(text: str, answers: Iterable[str]) -> float:
    """2pr/(p + r) over the words that a generated answer and an accepted one share; the best over the answers.

    SQuAD's F1 (https://arxiv.org/abs/1606.05250) in words; GRACE scores zsRE by the F1 of token ids
    (https://arxiv.org/abs/2211.11031).
    """
    answers = tuple(answers)
    given = normalise(answer_of(text, answers)).split()
    return max((_f1(given, normalise(answer).split()) for answer in answers), default=0.0)


def _f1(given: list[str], expected: list[str]) -> float:
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected)) if shared else 0.0


def _share(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
