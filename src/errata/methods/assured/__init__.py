"""An editor that makes sure: other methods, taken by name from the registry, whose edits are asked and tried again.

May import ``errata.methods``' shared files, the registry and what lies below ``methods``; never another family.
"""
