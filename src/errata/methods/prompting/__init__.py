"""Facts told before the prompt: what is retrieved, how it is laid out, and a loop over questions of several hops.

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
