"""Language models: the contract on text, its implementation over transformers, and where things are in a model.

May import ``types``, ``errors``, ``answers``, ``subjects`` and ``files``; nothing here knows what an edit is.
"""
