"""Errata changes what a language model knows.

    import errata

    lm = errata.load("world")
    case = errata.cases("world", limit=1)[0]
    memit = errata.method("memit")
    patch = memit.edit(lm, case.edits, memit.prepare(lm))
    with patch.applied(lm) as edited:
        print(edited.generate([case.edits[0].prompt]))
    patch.save("birthplace.safetensors")

Names are imported when they are first used, so that ``import errata`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from errata.types import Case, Edit, Probe, Row, Score

if TYPE_CHECKING:
    from errata import data as data
    from errata import exchange as exchange
    from errata.cost.plan import plan as plan
    from errata.data.reader import cases as cases
    from errata.evaluation.baseline import baseline as baseline
    from errata.evaluation.evaluate import evaluate as evaluate
    from errata.journal.journal import Journal as Journal
    from errata.methods.registry import method as method
    from errata.methods.registry import methods as methods
    from errata.patch import transforms as transforms
    from errata.patch.patch import EMPTY as EMPTY
    from errata.patch.patch import Patch as Patch
    from errata.patch.reverting import reverted as reverted
    from errata.review.reviewing import review as review
    from errata.world.bundled import load as load

_WHERE = {  # name -> module, or module:attribute
    "load": "errata.world.bundled:load",
    "cases": "errata.data.reader:cases",
    "data": "errata.data",
    "exchange": "errata.exchange",
    "baseline": "errata.evaluation.baseline:baseline",
    "evaluate": "errata.evaluation.evaluate:evaluate",
    "method": "errata.methods.registry:method",
    "methods": "errata.methods",
    "reverted": "errata.patch.reverting:reverted",
    "plan": "errata.cost.plan:plan",
    "Journal": "errata.journal.journal:Journal",
    "review": "errata.review",
    "Patch": "errata.patch.patch:Patch",
    "EMPTY": "errata.patch.patch:EMPTY",
    "transforms": "errata.patch.transforms",
}

__all__ = [
    "Case", "Edit", "Probe", "Row", "Score",
    "load", "cases", "baseline", "evaluate", "review", "method", "methods", "reverted", "plan",
    "Patch", "EMPTY", "transforms", "Journal", "data", "exchange",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'errata' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _WHERE[name].partition(":")
    imported = import_module(module)
    return getattr(imported, attribute) if attribute else imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "import_module"})  # what users complete
