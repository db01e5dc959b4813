"""Which layers to edit: those published for a model type and depth, else a rule relative to the depth."""

from torch import nn

from errata.model.configuration import text_config
from errata.model.sites import Sites

# (model type, depth) -> ROME's layer, MEMIT's first and last. From the hparams of ROME and MEMIT, for Llama and
# Mistral from EasyEdit's. MEMIT's of the smaller GPT-2s as in XL: the five up to ROME's.
PUBLISHED: dict[tuple[str, int], tuple[int, tuple[int, int]]] = {
    ("gpt2", 48): (17, (13, 17)),
    ("gpt2", 36): (12, (8, 12)),
    ("gpt2", 24): (8, (4, 8)),
    ("gptj", 28): (5, (3, 8)),
    ("gpt_neox", 44): (15, (6, 10)),
    ("llama", 32): (5, (4, 8)),
    ("mistral", 32): (5, (4, 8)),
}


def critical_layers(model: nn.Module, sites: Sites) -> tuple[int, ...]:
    """The layers that MEMIT changes: the published ones, else an eighth to a quarter of the depth.

    From (depth + 4) // 8 to depth // 4, at least three layers, without the last block. That is 4 to 8 of 32 layers (as
    published for Llama), 4 to 7 of 28 (for GPT-J: 3 to 8), 6 to 11 of 44 (for GPT-NeoX: 6 to 10), 1 to 3 of 8. GPT-2
    XL's 13 to 17 of 48 lie deeper: in the table only.
    """
    if known := PUBLISHED.get(_kind(model, sites)):
        first, last = known[1]
    else:
        first = (sites.depth + 4) // 8
        last = max(first, min(max(sites.depth // 4, first + 2), sites.depth - 2))
    return tuple(range(first, last + 1))


def critical_layer(model: nn.Module, sites: Sites) -> int:
    """The layer that ROME changes: the published one, else the middle of MEMIT's (2 of 8)."""
    if known := PUBLISHED.get(_kind(model, sites)):
        return known[0]
    layers = critical_layers(model, sites)
    return layers[(len(layers) - 1) // 2]


def is_published(model: nn.Module, sites: Sites) -> bool:
    """Whether the layers of models of this type and depth are published."""
    return _kind(model, sites) in PUBLISHED


def _kind(model: nn.Module, sites: Sites) -> tuple[str, int]:
    return getattr(text_config(getattr(model, "config", None)), "model_type", ""), sites.depth
