"""Trained changes of hidden states: a direction at an edit's subject, and steps up a learned value while decoding.

May import what trained methods share and what they may import; never another method.
"""
