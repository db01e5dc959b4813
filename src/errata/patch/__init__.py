"""What an edit is: parts, their algebra and their file, applied and undone whichever method made them.

May import ``model`` and what lies below it.
"""
