"""."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.types import Edit

CHUNK = 64  # facts whose keys are read together


@dataclass(frozen=True)
class Seen:
    """What flows at a site at each subject's last token, (n, width): in the bare prompt, and the mean over contexts."""

    bare: Tensor
    mean: Tensor


def at_subjects(
    lm: HFLM,
    edits: Sequence[Edit],
    contexts: Sequence[str],
    sites: Iterable[tuple[str, str]],
    *,
    bare: Iterable[tuple[str, str]] = (),
    by_type: bool = False,
) -> dict[tuple[str, str], Seen]:
    """What is seen at each site (path, "in" or "out"); the first context is the empty one.

    Sites in ``bare`` are read in the bare prompt alone (which spares the other rows the way up to them).
    ``by_type`` the empty context weighs as much as all others together (MEMIT's released code), else all weigh alike.
    Read a few facts at a time, so that memory does not grow with their number.
    """
    if lm.seq2seq:
        raise BadInput("keys at a subject are read in decoder-only models; use a fine-tuning method here")
    others = len(contexts) - 1
    share = 0.5 if by_type and others else 1 / len(contexts)  # of the empty context
    sites, more = list(dict.fromkeys(sites)), list(dict.fromkeys([*sites, *bare]))
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {site: [] for site in more}
    for start in range(0, len(edits), CHUNK):
        chunk = edits[start : start + CHUNK]
        first = _read(lm, chunk, contexts[:1], more)
        rest = _read(lm, chunk, contexts[1:], sites) if others else {}
        for site, alone in first.items():
            mean = alone[:, 0]
            if site in rest:
                mean = share * mean + (1 - share) * rest[site].mean(1)
            found[site].append((alone[:, 0], mean))
    return {site: Seen(*map(torch.cat, zip(*parts, strict=True))) for site, parts in found.items()}


def _read(
    lm: HFLM, edits: Sequence[Edit], contexts: Sequence[str], sites: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Tensor]:
    """site -> (n, contexts, width)"""
    rows: list[list[int]] = []
    columns: list[list[int]] = []
    for edit in edits:
        for text in (context + edit.prompt for context in contexts):
            at = lm.tokens.last_of_subject(text, edit.subject)
            rows.append(lm.tokens.prompt(text)[: at + 1])
            columns.append([at])
    seen = lm.read(rows, columns, sites)
    return {site: values.view(len(edits), len(contexts), values.shape[-1]) for site, values in seen.items()}
