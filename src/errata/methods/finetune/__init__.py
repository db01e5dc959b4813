"""Gradient descent on the new answers, and what keeps the rest in place.

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
