"""The journal of a model's patches: who changed what, when and why; commits, names, reverts and merges.

May import ``bench``, ``report`` and what lies below them.
"""
