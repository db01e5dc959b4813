"""NAS: new values of one length, that which new values have on the unedited model (arXiv:2602.02543)."""

import torch
from torch import Tensor

from errata.model.hf import HFLM
from errata.model.texts import openings
from errata.types import Edit

ANCHOR = "anchor/"  # memory of the length that NAS gives to new values
ANCHOR_FACTS = 100  # facts that it is measured on; NAS takes 1,000 of CounterFact
ANCHOR_KEPT = 0.95  # of them, without the longest


def anchor_edits(lm: HFLM, seed: int) -> list[Edit]:
    """The facts on whose new values the length is measured: the model's training cases, else invented ones.

    On the bundled model invented facts give a length 1.14 times that of its cases.
    """
    cases = lm.resources.cases() if lm.resources.cases else []
    edits = [edit for case in cases for edit in case.edits][:ANCHOR_FACTS]
    return edits or invented_facts(lm, ANCHOR_FACTS, seed)


def anchor_of(values: Tensor) -> Tensor:
    """The mean length of new values (n, d), but for the longest of them."""
    lengths = values.norm(dim=-1).sort().values
    return lengths[: max(1, int(ANCHOR_KEPT * len(lengths)))].mean()


def anchored(delta: Tensor, value: Tensor, anchor: Tensor) -> Tensor:
    """δ (n, d) that brings v + δ to the length c of ``anchor``; none where it has more than 2c (NAS, released code)."""
    new = value + delta
    length, c = new.norm(dim=-1, keepdim=True), anchor.to(new)
    return torch.where(length > 2 * c, torch.zeros_like(new), new * c / length - value)


def invented_facts(lm: HFLM, n: int, seed: int) -> list[Edit]:
    """Up to ``n`` edits made of texts: a sentence cut short, its first half the subject, to go on as another does."""
    beginnings = [text.split() for text in openings(lm, None, n, seed)]
    prompts = [words for words in beginnings if len(words) > 2]
    return [
        Edit(" ".join(words[:-1]), " ".join(words[: len(words) // 2]), other[-1])
        for words, other in zip(prompts, [*prompts[1:], *prompts[:1]], strict=True)
    ]
