"""Several answers that count as one: phrasings, queries of a test, hops of a chain; each right or wrong, or a share."""

from collections.abc import Iterable


def any_or_all(values: Iterable[float], rule: str = "any") -> float:
    """The best of the values (``any``) or the worst (``all``).

    ``any`` is MQuAKE's multi-hop accuracy over the three phrasings of a question (https://arxiv.org/abs/2305.14795),
    ``all`` its strict form; RippleEdits' test conditions OR and AND (https://arxiv.org/abs/2307.12976, testrunner.py).
    """
    if rule not in ("any", "all"):
        raise ValueError(f"the rule is 'any' or 'all', found {rule!r}")
    return max(values) if rule == "any" else min(values)


def instance_wise(hops: Iterable[bool]) -> float:
    """1{every single hop of the chain is known}, edited or not (MQuAKE)."""
    return float(all(hops))


def hop_wise(hops: Iterable[bool], final: bool) -> float:
    """1{every hop of the path and its end are right}: PokeMQA's Hop-Acc (https://arxiv.org/abs/2312.15194).

    An answer that was reached by luck does not count.
    """
    return float(final and all(hops))
