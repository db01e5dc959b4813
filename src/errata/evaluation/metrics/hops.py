"""Chains of facts: MQuAKE's accuracies and RippleEdits' criteria, from single answers that were right or wrong."""

from collections.abc import Iterable, Sequence


def multi_hop(phrasings: Iterable[bool], strict: bool = False) -> float:
    """1{any of a question's phrasings is answered right}; ``strict``: 1{all of them are}.

    MQuAKE (https://arxiv.org/abs/2305.14795) asks each question in three phrasings and counts any.
    """
    return float(all(phrasings) if strict else any(phrasings))


def instance_wise(hops: Iterable[bool]) -> float:
    """1{every single hop of the chain is known}, edited or not (MQuAKE)."""
    return float(all(hops))


def hop_wise(hops: Iterable[bool], final: bool) -> float:
    """1{every hop of the path and its end are right}: PokeMQA's Hop-Acc (https://arxiv.org/abs/2312.15194).

    An answer that was reached by luck does not count.
    """
    return float(final and all(hops))


def ripple_test(queries: Sequence[bool], condition: str = "OR") -> float:
    """1{a test passes}: any of its queries (``OR``) or all of them (``AND``) are answered.

    RippleEdits (https://arxiv.org/abs/2307.12976, testrunner.py).
    """
    if condition not in ("OR", "AND"):
        raise ValueError(f"a test's condition is 'OR' or 'AND', found {condition!r}")
    return float(any(queries) if condition == "OR" else all(queries))


def criterion(tests: Sequence[float | None]) -> tuple[float, float] | None:
    """(passed / (passed + failed), share executed) of one edit's tests within a criterion (RippleEdits, evaluation.py).

    A test is None where its conditions did not hold before the edit. None where none was executed: such an edit does
    not count. The mean over edits is of those alone whose own prompt is answered.
    """
    executed = [test for test in tests if test is not None]
    return (sum(executed) / len(executed), len(executed) / len(tests)) if executed else None
