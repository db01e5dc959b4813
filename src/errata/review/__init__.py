"""Review before it counts: what a patch changed and what it broke, asked before and after, with guards that can refuse.

May import ``report``, ``evaluation`` and what lies below, and how methods read texts; knows no method. The function is
``errata.review(lm, patch)`` (:func:`errata.review.reviewing.review`).
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.review.record import Review


class _Review(ModuleType):
    """The package itself, which can also be called: ``errata.review(…)`` and ``errata.review.record`` both work."""

    def __call__(self, *given: Any, **named: Any) -> "Review":
        from errata.review.reviewing import review

        return review(*given, **named)


sys.modules[__name__].__class__ = _Review
