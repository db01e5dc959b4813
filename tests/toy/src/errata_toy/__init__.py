"""A package that is installed beside Errata and joins it by entry points."""
