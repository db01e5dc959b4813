"""A language model as Errata sees it: the contract on text, its implementation over transformers, and where things are.

May import ``types``, ``errors``, ``answers`` and ``files``; nothing here knows what an edit is.
"""
