"""Measuring models before and after an edit: protocols, questions and replies, scorers, metrics, general ability.

May import ``data``, ``patch``, ``model`` and what lies below; knows no method.
"""
