"""Memories beside one layer that answer by look-up: a key for each question, and a value or a LoRA for each key.

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
