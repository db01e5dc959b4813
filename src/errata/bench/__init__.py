"""Many runs: what a bench file says, the folds it comes to, their costs, and rows that a broken-off run goes on from.

May import ``report`` (rows), ``evaluation`` and what lies below; knows no method by name.
"""
