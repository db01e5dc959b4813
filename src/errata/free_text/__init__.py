"""Edits that are told in free text: found in it by rules or by a model that reads, and chosen among by the model.

May import ``model``, ``completions`` and what lies below; nothing here changes a model.
"""

from errata.free_text.choose import Choice, choose, names_of
from errata.free_text.reader import read
from errata.free_text.readings import Reading
from errata.free_text.rules import readings
from errata.free_text.sentences import sentences

__all__ = ["Choice", "Reading", "choose", "names_of", "read", "readings", "sentences"]
