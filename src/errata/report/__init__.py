"""Rows folded into summaries, tables, pictures and a page of HTML.

May import ``evaluation`` and what lies below; asks no model.
"""
