"""Errata changes what a language model knows.

    import errata

    lm = errata.load("world")
    case = errata.cases("world", limit=1)[0]
    memit = errata.method("memit")
    patch = memit.edit(lm, case.edits, memit.prepare(lm))
    with patch.applied(lm) as edited:
        print(edited.generate([case.edits[0].prompt]))
    patch.save("birthplace.safetensors")

What is imported here is imported when it is first asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from errata.types import Case, Edit, Probe, Row, Score

if TYPE_CHECKING:
    from errata import transforms as transforms
    from errata.data import cases as cases
    from errata.data.world.bundled import load as load
    from errata.evaluate import baseline as baseline
    from errata.evaluate import evaluate as evaluate
    from errata.methods import method as method
    from errata.methods import methods as methods
    from errata.patch import EMPTY as EMPTY
    from errata.patch import Patch as Patch

_WHERE = {  # imported when first asked for, so that `import errata` and `errata --help` cost nothing
    "load": "errata.data.world.bundled",
    "cases": "errata.data",
    "baseline": "errata.evaluate",
    "evaluate": "errata.evaluate",
    "method": "errata.methods",
    "methods": "errata.methods",
    "Patch": "errata.patch",
    "EMPTY": "errata.patch",
}

__all__ = [
    "Case", "Edit", "Probe", "Row", "Score",
    "load", "cases", "baseline", "evaluate", "method", "methods", "Patch", "EMPTY", "transforms",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "transforms":
        return import_module("errata.transforms")
    if name not in _WHERE:
        raise AttributeError(f"module 'errata' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_WHERE[name]), name)


class _Package(ModuleType):
    """Keeps ``evaluate`` and ``methods`` the functions where modules of these names have been imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
