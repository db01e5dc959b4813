"""The methods by name. Adding one touches its file and one line here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from errata.errors import unknown

if TYPE_CHECKING:
    from errata.methods.base import Method


METHODS: dict[str, str] = {
    "ft": "errata.methods.finetune.ft:FT",
    "ft-l": "errata.methods.finetune.ft:FTL",
    "ft-m": "errata.methods.finetune.ft:FTM",
    "locft-bf": "errata.methods.finetune.ft:LocFTBF",
    "ewc": "errata.methods.finetune.ft:EWC",
    "recadam": "errata.methods.finetune.ft:RecAdam",
    "f-learning": "errata.methods.finetune.ft:FLearning",
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
    "emmet": "errata.methods.closed_form.rome:EMMET",
    "memit": "errata.methods.closed_form.memit:MEMIT",
    "kn": "errata.methods.neurons.kn:KN",
    "pmet": "errata.methods.closed_form.memit:PMET",
    "alphaedit": "errata.methods.closed_form.memit:AlphaEdit",
    "ike": "errata.methods.prompting.ike:IKE",
    "ice": "errata.methods.prompting.ike:ICE",
    "rag": "errata.methods.prompting.rag:RAG",
    "memprompt": "errata.methods.prompting.rag:MemPrompt",
    "mello": "errata.methods.prompting.mello:MeLLo",
}


@dataclass(frozen=True)
class About:
    """What ``errata methods`` tells of one."""

    name: str
    family: str
    paper: str
    stores: str
    needs_prepare: bool


def method_class(name: str) -> "type[Method]":
    """The class of a method. Raises ``UnknownName`` with near matches."""
    if name not in METHODS:
        raise unknown("method", name, list(METHODS))
    module, attribute = METHODS[name].split(":")
    return getattr(import_module(module), attribute)


def method(name: str, **settings: Any) -> "Method":
    """The method of that name; an unknown name or setting answers with near matches."""
    cls = method_class(name)
    names = [f.name for f in fields(cls)]
    for setting in settings:
        if setting not in names:
            raise unknown(f"setting of {name}", setting, names)
    return cls(**settings)


def methods() -> Mapping[str, About]:
    """name -> family, paper, what it stores, whether it needs ``prepare``."""
    classes = {name: method_class(name) for name in METHODS}
    return {n: About(n, c.family, c.paper, c.stores, c.needs_prepare) for n, c in classes.items()}
