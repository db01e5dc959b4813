"""What an edit will take, before anything starts: operations, bytes, seconds, and whether it fits.

May import ``model`` and ``world`` and what lies below; methods come as objects.
"""
