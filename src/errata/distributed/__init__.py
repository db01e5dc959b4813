"""Worker processes over Ray that hold a copy of a model each, tasks that are shared out among them, and a model whose
verbs they answer. May import the model and patch layers below; Ray itself is imported when a pool is made.
"""
