"""Locate, then edit: a least-squares change of down projections (ROME, MEMIT and their kin).

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
