"""How the tables of a journal came to be, step by step, for Alembic: a journal of an earlier Errata is led through.

May import nothing of Errata.
"""
