"""Methods that leave the base model alone and answer what an edit is about with small models of their own.

May import what trained methods share and what they may import; never another method.
"""
