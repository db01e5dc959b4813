"""The invented world: its facts, what is said of them, cases, and the bundled model that was trained on it.

May import ``model`` and what lies below it.
"""
