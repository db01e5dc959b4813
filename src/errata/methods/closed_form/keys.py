"""What flows at each subject's last token: the keys of edits, and the values and hidden states beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.types import Edit

CHUNK = 128  # facts whose keys are read together

Site = tuple[str, str]  # as for HFLM.read


def check_reads_subjects(lm: HFLM) -> None:
    """Raises :class:`BadInput` for an encoder-decoder."""
    if lm.seq2seq:
        raise BadInput("keys at a subject are read in decoder-only models; use a fine-tuning method here")


@dataclass(frozen=True)
class SubjectReadings:
    """What flows at a site at each subject's last token, (n, width): in the bare prompt, and the mean over contexts."""

    bare: Tensor
    mean: Tensor


@dataclass(frozen=True)
class SubjectRows:
    """Token ids of each edit behind each context, (edits, contexts), up to its subject's last token.

    The first context is the empty one. A few facts of them are read at a time, so that memory does not grow with their
    number.
    """

    rows: list[list[list[int]]]

    @classmethod
    def of(cls, lm: HFLM, edits: Sequence[Edit], contexts: Sequence[str]) -> "SubjectRows":
        """The rows of ``edits``."""
        check_reads_subjects(lm)
        return cls([[_up_to_subject(lm, edit, context) for context in contexts] for edit in edits])

    def read(
        self, lm: HFLM, sites: Iterable[Site], *, bare: Iterable[Site] = (), by_context_type: bool = False
    ) -> dict[Site, SubjectReadings]:
        """Site -> readings of each edit.

        Sites in ``bare`` are read in the bare prompt alone (which spares the other rows the way up to them). With
        ``by_context_type`` the empty context weighs as much as all others together in the mean (MEMIT's released code),
        else all weigh alike.
        """
        others = len(self.rows[0]) - 1
        empty_weight = 0.5 if by_context_type and others else 1 / (others + 1)
        sites = list(dict.fromkeys(sites))
        all_sites = list(dict.fromkeys([*sites, *bare]))
        alone = {site for site in all_sites if site not in sites}
        chunks: list[tuple[int, dict[Site, tuple[Tensor, Tensor]]]] = []
        for start in range(0, len(self.rows), CHUNK):
            chunk = self.rows[start : start + CHUNK]
            first = _read(lm, [rows[:1] for rows in chunk], all_sites)
            rest = _read(lm, [rows[1:] for rows in chunk], sites) if others and sites else {}
            read: dict[Site, tuple[Tensor, Tensor]] = {}
            for site in dict.fromkeys([*first, *rest]):  # an expert may be asked in some contexts alone
                values = first[site][:, 0] if site in first else torch.zeros_like(rest[site][:, 0])
                mean = values
                if others and site not in alone:
                    away = rest[site].mean(1) if site in rest else torch.zeros_like(values)
                    mean = empty_weight * values + (1 - empty_weight) * away
                read[site] = values, mean
            chunks.append((len(chunk), read))
        return {site: _joined(site, chunks) for site in dict.fromkeys(site for _, read in chunks for site in read)}


def read_at_subjects(
    lm: HFLM, edits: Sequence[Edit], contexts: Sequence[str], sites: Iterable[Site], **options: Any
) -> dict[Site, SubjectReadings]:
    """The readings of ``edits`` behind ``contexts``; ``options`` are those of :meth:`SubjectRows.read`."""
    return SubjectRows.of(lm, edits, contexts).read(lm, sites, **options)


def _joined(site: Site, chunks: Sequence[tuple[int, Mapping[Site, tuple[Tensor, Tensor]]]]) -> SubjectReadings:
    """The readings of all chunks, zero in those whose facts a site did not see."""
    (like, _) = next(read[site] for _, read in chunks if site in read)
    parts = [read.get(site, (like.new_zeros(n, like.shape[1]),) * 2) for n, read in chunks]
    return SubjectReadings(*map(torch.cat, zip(*parts, strict=True)))


def _up_to_subject(lm: HFLM, edit: Edit, context: str) -> list[int]:
    text = context + edit.prompt
    last = lm.tokens.last_of_subject(text, edit.subject, len(context) + edit.start)
    return lm.tokens.prompt(text)[: last + 1]


def _read(lm: HFLM, edits: Sequence[Sequence[list[int]]], sites: Sequence[Site]) -> dict[Site, Tensor]:
    """site -> (n, contexts, width)"""
    rows = [row for rows in edits for row in rows]
    readings = lm.read(rows, [[len(row) - 1] for row in rows], sites)
    return {site: values.view(len(edits), -1, values.shape[-1]) for site, values in readings.items()}
