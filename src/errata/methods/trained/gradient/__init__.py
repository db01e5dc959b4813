"""Editors that turn the gradient of an edit, token by token, into a change of weights.

May import what trained methods share and what they may import; never another method.
"""
