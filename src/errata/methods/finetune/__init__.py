"""Gradient descent on the new answers, and what keeps everything else in place.

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
