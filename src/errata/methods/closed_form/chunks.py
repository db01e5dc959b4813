"""Targets of any length: a text in chunks, each given by the hidden state of the token in front of it.

    prompt  |  chunk 1  |  chunk 2
         k₁ ^        k₂ ^                 kᵢ: a key token; its δᵢ, at one layer, shall make the model write chunk i

δ₁ is searched for first, δ₂ with δ₁ in force, and so on (AnyEdit, arXiv:2502.05628, algorithm 1). With one chunk for
the whole text, k₁ is the prompt's last token and this is the search of UnKE (arXiv:2405.15349, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from errata.errors import BadInput
from errata.methods.closed_form.keys import SubjectRows, check_reads_subjects
from errata.methods.closed_form.objective import FactRows, TargetSettings
from errata.methods.closed_form.search import SearchResult
from errata.methods.closed_form.targets import search_rows
from errata.methods.outcomes import report
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.projection import Projection
from errata.types import Edit

PER_TOKEN = 4096 * 32 / 40  # width x depth for each token of a chunk: Llama 3 8B has 4,096 x 32, and chunks of 40


def default_window(lm: HFLM, overlap: int = 0) -> int:
    """Tokens of a chunk where the settings give none: what one hidden state can say goes by its width, and by the
    depth of what reads it. It is 40 for Llama 3 8B, and 1 for the bundled model.
    """
    width, _ = Projection.of(lm.sites, 0).shape(lm.model)
    return max(1 + overlap, round(width * lm.sites.depth / PER_TOKEN))


def check_overlap(name: str, window: int | None, overlap: int) -> None:
    """Raises :class:`BadInput` unless chunks go on behind those before."""
    if window is not None and overlap >= window:
        raise BadInput(f"{name}'s overlap is less than its window of {window}; found {overlap}")


@dataclass(frozen=True)
class Chunked:
    """An edit behind each context, as ids: its ``prompts``, its ``target``, and where in that the chunks begin.

    The first context is the empty one.
    """

    edit: Edit
    prompts: list[list[int]]
    target: list[int]
    chunks: list[tuple[int, int]]

    @classmethod
    def of(
        cls, lm: HFLM, edit: Edit, contexts: Sequence[str], window: int | None, overlap: int = 0, end: bool = False
    ) -> "Chunked":
        """Chunks of ``window`` tokens (None: one chunk), each beginning ``overlap`` before the last one ends.

        With ``end`` the target's end token is its last one, where the model has one and room for it.
        """
        check_reads_subjects(lm)
        tokens = lm.tokens
        prompts = [tokens.prompt(context + edit.prompt) for context in contexts]
        target = tokens.target(edit.prompt, edit.target_new)
        if end:
            target = tokens.ended(prompts[0], target)
        width = window or len(target)
        starts = range(0, max(1, len(target) - overlap), width - overlap)
        return cls(edit, prompts, target, [(start, min(start + width, len(target))) for start in starts])

    def beginning(self, context: int, chunk: int) -> list[int]:
        """The ids behind a context up to a chunk's key token, and with it."""
        return [*self.prompts[context], *self.target[: self.chunks[chunk][0]]]

    def rows(self, chunk: int, deltas: Sequence[Tensor]) -> FactRows:
        """What the search for a chunk's δ minimises, with ``deltas`` of the chunks before in force."""
        rows = FactRows()
        start, end = self.chunks[chunk]
        for context in range(len(self.prompts)):
            before = self.beginning(context, chunk)
            keys = [len(self.prompts[context]) + at - 1 for at, _ in self.chunks]
            columns = list(range(len(before) - 1, len(before) - 1 + end - start))
            held = dict(zip(keys, deltas, strict=False))
            ids = [*before, *self.target[start : end - 1]]
            rows.add(ids, len(before) - 1, columns, self.target[start:end], 1 / len(self.prompts), held=held)
        return rows

    def whole(self) -> tuple[list[int], list[int]]:
        """The ids of the prompt and the target, which is fed but for its last token, and the columns of the keys."""
        keys = [len(self.prompts[0]) + start - 1 for start, _ in self.chunks]
        return [*self.prompts[0], *self.target[:-1]], keys


def key_rows(chunked: Sequence[Chunked]) -> SubjectRows:
    """The rows that end at the key token of each chunk, edit by edit."""
    return SubjectRows(
        [
            [one.beginning(context, chunk) for context in range(len(one.prompts))]
            for one in chunked
            for chunk in range(len(one.chunks))
        ]
    )


def find_chunk_deltas(
    lm: HFLM,
    chunked: Sequence[Chunked],
    site: InterventionSite,
    settings: TargetSettings,
    limits: Tensor,
    units: Tensor,
    *,
    plain: bool = False,
) -> SearchResult:
    """δ of every chunk, edit by edit; the first chunks of all edits are searched together, then their second ones.

    ``limits`` and ``units`` (chunks, paths) are as for :func:`find_deltas`. The outcomes of the edits are reported.
    """
    place = {(i, c): n for n, (i, c) in enumerate((i, c) for i, one in enumerate(chunked) for c in range(_len(one)))}
    result: SearchResult | None = None
    for chunk in range(max(map(_len, chunked))):
        having = [i for i, one in enumerate(chunked) if chunk < _len(one)]
        rows = [chunked[i].rows(chunk, [_delta(result, place[i, c]) for c in range(chunk)]) for i in having]
        places = [place[i, chunk] for i in having]
        found = search_rows(lm, rows, site, settings, limits[places], units[places], plain=plain)
        if result is None:
            result = SearchResult.start(len(place), found.delta.shape[1], lm.dtype, settings.optimizer)
        result.put(places, found)
    assert result is not None
    _report(chunked, result)
    return result


def _len(chunked: Chunked) -> int:
    return len(chunked.chunks)


def _delta(result: SearchResult | None, place: int) -> Tensor:
    assert result is not None
    return result.delta[place]


def _report(chunked: Sequence[Chunked], result: SearchResult) -> None:
    """Of each edit the mean loss of a token, over its chunks, and whether all chunks were met."""
    losses = iter(zip(result.final_loss.tolist(), result.met.tolist(), strict=True))
    for one in chunked:
        sizes = [end - start for start, end in one.chunks]
        some = [next(losses) for _ in sizes]
        mean = sum(size * loss for size, (loss, _) in zip(sizes, some, strict=True)) / sum(sizes)
        report([one.edit.id], [mean], [all(met for _, met in some)])
