"""Before and after: what is asked, by whose rules, how answers are scored, and what else a model can still do.

May import ``data``, ``patch``, ``model`` and what lies below; knows no method.
"""
