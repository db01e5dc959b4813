"""Where a model keeps what it knows: where, not how to change it."""

from errata.locate.tracing import KINDS, ROLES, Average, Trace, average, embedding_std, trace

__all__ = ["KINDS", "ROLES", "Average", "Trace", "average", "embedding_std", "trace"]
