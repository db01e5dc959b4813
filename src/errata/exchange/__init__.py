"""Patches in the forms of others (LoRA adapters, whole models, folders with a card), and patches made of those.

May import ``model``, ``patch`` and what lies below.
"""

from errata.exchange.adapters import from_peft
from errata.exchange.card import card
from errata.exchange.checkpoints import from_checkpoints
from errata.exchange.difference import Change, differences
from errata.exchange.export import Exported, to_folder, to_merged, to_peft

__all__ = [
    "Change",
    "Exported",
    "card",
    "differences",
    "from_checkpoints",
    "from_peft",
    "to_folder",
    "to_merged",
    "to_peft",
]
