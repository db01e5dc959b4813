"""Whether a model knows a fact, and which of its states and neurons its answer depends on. Nothing is changed here.

May import ``model``, ``patch`` and what lies below.
"""

from errata.locate.averages import ROLES, Average, average
from errata.locate.belief import believes
from errata.locate.layers import Ranking, rank_layers
from errata.locate.subject import SubjectFound, edit_of, subject_of
from errata.locate.tracing import KINDS, Trace, embedding_std, trace

__all__ = [
    "KINDS",
    "ROLES",
    "Average",
    "Ranking",
    "SubjectFound",
    "Trace",
    "average",
    "believes",
    "edit_of",
    "embedding_std",
    "rank_layers",
    "subject_of",
    "trace",
]
