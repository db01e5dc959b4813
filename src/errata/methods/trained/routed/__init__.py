"""Methods that decide for each query whether an edit answers it, and leave all others to the model as it is.

May import what trained methods share and what they may import; never another method.
"""
