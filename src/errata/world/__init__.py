"""The invented world: its facts, text and cases, and the bundled model that was trained on it.

May import ``model`` and what lies below it.
"""
