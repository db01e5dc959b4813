"""A file for each step, with the functions that Alembic calls. A step that has been released is never changed.

May import nothing of Errata.
"""
