"""What was done to a model, told from its weights: which of them differ and how, and whose answers changed with them.

May import ``exchange``, ``model``, ``patch`` and what lies below.
"""

from errata.audit.audit import Audit, Claim, audit
from errata.audit.names import names_in, read_subjects
from errata.audit.suspects import Suspect

__all__ = ["Audit", "Claim", "Suspect", "audit", "names_in", "read_subjects"]
