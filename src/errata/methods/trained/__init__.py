"""Methods that are trained on examples of edits before their first one; an edit then costs a pass or two.

May import the layers below methods, methods.base and what all methods share; never another method.
"""
