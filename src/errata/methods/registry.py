"""The methods by name. Adding one touches its file and one line here; other packages add theirs by entry points.

[project.entry-points."errata.methods"]
my-method = "my_package.my_method:MyMethod"
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from errata.errors import BadInput, unknown

if TYPE_CHECKING:
    from errata.methods.base import Method

log = logging.getLogger(__name__)

GROUP = "errata.methods"  # of entry points
METHODS: dict[str, str] = {
    "ft": "errata.methods.finetune.ft:FT",
    "ft-l": "errata.methods.finetune.ft:FTL",
    "ft-m": "errata.methods.finetune.ft:FTM",
    "locft-bf": "errata.methods.finetune.locft_bf:LocFTBF",
    "ewc": "errata.methods.finetune.ewc:EWC",
    "recadam": "errata.methods.finetune.recadam:RecAdam",
    "f-learning": "errata.methods.finetune.f_learning:FLearning",
    "lora": "errata.methods.finetune.lora:LoRA",
    "grace": "errata.methods.codebook.grace:GRACE",
    "horen": "errata.methods.codebook.horen:HoReN",
    "wise": "errata.methods.side_memory.wise:WISE",
    "memoir": "errata.methods.side_memory.memoir:MEMOIR",
    "steering": "errata.methods.steering:Steering",
    "melo": "errata.methods.codebook.melo:MELO",
    "t-patcher": "errata.methods.neurons.t_patcher:TPatcher",
    "calinet": "errata.methods.neurons.calinet:CaliNet",
    "rome": "errata.methods.closed_form.rome:ROME",
    "r-rome": "errata.methods.closed_form.rome:RROME",
    "emmet": "errata.methods.closed_form.emmet:EMMET",
    "memit": "errata.methods.closed_form.memit:MEMIT",
    "kn": "errata.methods.neurons.kn:KN",
    "pmet": "errata.methods.closed_form.pmet:PMET",
    "alphaedit": "errata.methods.closed_form.alphaedit:AlphaEdit",
    "anyedit": "errata.methods.closed_form.anyedit:AnyEdit",
    "unke": "errata.methods.closed_form.unke:UnKE",
    "anyedit-unke": "errata.methods.closed_form.unke:AnyEditUnKE",
    "ike": "errata.methods.prompting.ike:IKE",
    "ice": "errata.methods.prompting.ike:ICE",
    "rag": "errata.methods.prompting.rag:RAG",
    "memprompt": "errata.methods.prompting.rag:MemPrompt",
    "serac": "errata.methods.trained.routed.serac:SERAC",
    "remedi": "errata.methods.trained.representation.remedi:REMEDI",
    "re-control": "errata.methods.trained.representation.re_control:REControl",
    "mend": "errata.methods.trained.gradient.mend:MEND",
    "malmen": "errata.methods.trained.gradient.malmen:MALMEN",
    "ultraedit": "errata.methods.trained.gradient.ultraedit:UltraEdit",
    "rledit": "errata.methods.trained.gradient.rledit:RLEdit",
    "instruct-edit": "errata.methods.trained.gradient.instruct_edit:InstructEdit",
    "language-patches": "errata.methods.trained.routed.language_patches:LanguagePatchMethod",
    "ke": "errata.methods.trained.gradient.ke:KE",
    "slag": "errata.methods.trained.gradient.slag:SLAG",
    "enn": "errata.methods.trained.enn:ENN",
    "mello": "errata.methods.prompting.mello:MeLLo",
    "assured": "errata.methods.assured.assured:Assured",
}


@dataclass(frozen=True)
class About:
    """A line of ``errata methods``."""

    name: str
    family: str
    paper: str
    stores: str
    needs_prepare: bool


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Name -> entry point of each method of another package; one with a name of Errata's own is logged and left out."""
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in METHODS:
            package = entry.dist.name if entry.dist else entry.value
            log.warning("the method %s of %s is left out: Errata has one of that name", entry.name, package)
        else:
            entries[entry.name] = entry
    return entries


def names() -> list[str]:
    """The names of all methods, Errata's own first."""
    return [*METHODS, *installed()]


def method_class(name: str) -> "type[Method]":
    """The class of a method. Raises ``UnknownName`` with near matches, :class:`BadInput` for one that is broken."""
    if name in METHODS:
        module, attribute = METHODS[name].split(":")
        return getattr(import_module(module), attribute)
    if name not in installed():
        raise unknown("method", name, names())
    from errata.methods.base import Method

    entry = installed()[name]
    try:
        cls: Any = entry.load()
    except Exception as error:  # whatever another package's import may raise
        raise BadInput(
            f"the method {name} ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Method) and getattr(cls, "name", None) == name):
        raise BadInput(f"the entry point {name} = {entry.value!r} is no errata Method with `name = {name!r}`")
    return cls


def import_all() -> None:
    """Imports the module of every method, which registers its parts; what cannot be imported is logged."""
    for name in names():
        try:
            method_class(name)
        except BadInput as error:
            log.warning("%s", error)


def method(name: str, **settings: Any) -> "Method":
    """The method of that name with these settings. Raises ``UnknownName`` with near matches for either."""
    cls = method_class(name)
    known = [f.name for f in fields(cls)]
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of {name}", setting, known)
    return cls(**settings)


def methods() -> Mapping[str, About]:
    """name -> family, paper, what it stores, whether it needs ``prepare``; one that cannot be imported is logged."""
    table: dict[str, About] = {}
    for name in names():
        try:
            cls = method_class(name)
        except BadInput as error:
            log.warning("%s", error)
            continue
        table[name] = About(name, cls.family, cls.paper, cls.stores, cls.needs_prepare)
    return table
