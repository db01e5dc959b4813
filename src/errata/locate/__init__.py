"""Whether a model knows a fact, and which of its states and neurons its answer depends on. Nothing is changed here.

May import ``model``, ``patch`` and what lies below.
"""

from errata.locate.averages import ROLES, Average, average
from errata.locate.belief import believes
from errata.locate.layers import Ranking, rank_layers
from errata.locate.tracing import KINDS, Trace, embedding_std, trace

__all__ = [
    "KINDS",
    "ROLES",
    "Average",
    "Ranking",
    "Trace",
    "average",
    "believes",
    "embedding_std",
    "rank_layers",
    "trace",
]
