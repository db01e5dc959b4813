"""A second matrix beside a down projection, which is added for prompts in its scope alone (WISE, MEMOIR).

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
