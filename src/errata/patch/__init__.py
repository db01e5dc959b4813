"""What an edit is: parts, their algebra and their file, applied and undone by code that does not know who made them.

May import ``model`` and what lies below it.
"""
