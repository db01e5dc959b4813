"""Memories beside one layer that are looked up by keys: a key for each edit's prompt, a value or a LoRA for each key.

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
