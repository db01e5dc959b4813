"""``(model, edits) -> Patch``: one file for each method, a folder for each family, and what families share beside them.

May import ``patch``, ``locate``, ``model`` and what lies below; never a data set, a metric or the command line.
``errata.methods()`` is the mapping of what there is (:func:`errata.methods.registry.methods`).
"""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from errata.methods.registry import About


class _Methods(ModuleType):
    """The package itself, which can also be called: ``errata.methods()`` and ``errata.methods.base`` both work."""

    def __call__(self) -> "Mapping[str, About]":
        from errata.methods.registry import methods

        return methods()


sys.modules[__name__].__class__ = _Methods
