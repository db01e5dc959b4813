"""Edits that contradict each other: the same question with another answer.

May import ``patch`` and what lies below it.
"""
