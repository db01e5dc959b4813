"""A second matrix beside a down projection, which answers for prompts in its scope (WISE, MEMOIR).

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
