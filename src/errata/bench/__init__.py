"""Many runs from one file: the plan, its units (folds of edits), their costs, and rows that a stopped run resumes from.

May import ``report`` (rows), ``evaluation`` and what lies below; knows no method by name.
"""
