"""What memories are composed of: a log of edits, a look-up that finds an edit for a prompt, a payload that acts for it.

Holds no method of its own. May import ``errata.methods``' shared files and what lies below ``methods``; never a family.
"""
