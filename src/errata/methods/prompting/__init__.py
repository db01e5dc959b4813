"""Editing by text before a prompt: facts that are retrieved and prepended, and a loop over questions of several hops.

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
