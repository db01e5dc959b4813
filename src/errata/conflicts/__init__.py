"""Edits that cannot both hold: one question with two answers, in the same words or in others, or an inverse that does
not agree. May import ``patch`` and what lies below it.
"""
