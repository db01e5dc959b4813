"""The field's data sets as cases: one file for each format, which is recognised by the keys of its records.

May import ``world`` and the plain data of ``types``, ``errors``, ``answers``, ``subjects`` and ``files``.
"""

from errata.data.reader import Loaded, cases, read

__all__ = ["Loaded", "cases", "read"]
