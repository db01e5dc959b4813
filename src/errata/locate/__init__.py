"""Where a model keeps what it knows, and whether it does: where, not how to change it.

May import ``model``, ``patch`` and what lies below.
"""

from errata.locate.belief import believes
from errata.locate.tracing import KINDS, ROLES, Average, Trace, average, embedding_std, trace

__all__ = ["KINDS", "ROLES", "Average", "Trace", "average", "believes", "embedding_std", "trace"]
