"""AnyEdit: texts of any length, chunk by chunk, by MEMIT's or AlphaEdit's solution."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Method, State, Tags
from errata.methods.closed_form import solve
from errata.methods.closed_form.base import ClosedForm, EditContext
from errata.methods.closed_form.chunks import Chunked, check_overlap, default_window, find_chunk_deltas, key_rows
from errata.methods.closed_form.keys import Site, SubjectReadings, SubjectRows
from errata.methods.closed_form.search import SearchResult
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite
from errata.model.projection import KEY
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class AnyEdit(ClosedForm):
    """The target is cut into chunks; the token in front of each is a key, whose value shall make the model write it.

    The keys of all chunks are solved for together, by MEMIT's equation or AlphaEdit's (``base``), in which the keys at
    all other tokens of prompt and target stay as they are. As released, keys are read and targets searched behind no
    context, and there is no KL.
    """

    name: ClassVar[str] = "anyedit"
    paper: ClassVar[str] = "Jiang et al. 2025, AnyEdit: Edit Any Knowledge, arXiv:2502.05628"
    stores: ClassVar[str] = "a low-rank change of the down projections, one rank per chunk and layer"
    tags: ClassVar[Tags] = Tags(quick={"window": 2})
    keeps_targets: ClassVar[bool] = False  # an edit has one for each of its chunks
    without = Method.without
    # Twice MEMIT's. Found on the bundled model, as is LAM: there the released λ of 15,000, which is 1.05 x the width of
    # Llama 3's keys, gives so little of the values that 0.08 of a text is recalled (three validation texts, one layer).
    RATE: ClassVar[float] = 0.8
    LAM: ClassVar[float] = 6.5e-5

    base: Literal["memit", "alphaedit"] = setting("memit", "which metric of keys; unke: the method anyedit-unke")
    window: int | None = setting(
        None, "tokens of a chunk: a hundredth of the hidden width; 40 for Llama 3's 4,096", key="window_size", above=0
    )
    overlap: int = setting(0, "tokens that a chunk shares with the one before; released code")
    end: bool = setting(True, "whether the text's end is learned too; released data")
    contexts: int = setting(0, "released code: none")
    clamp: float = setting(4.0, "x length of the hidden state; released code", key="clamp_norm_factor")
    kl: float = setting(0.0, "released code reads a factor that it does not use", key="kl_factor")
    decay: float = setting(1e-3, "released code", key="v_weight_decay")
    stop: float = setting(1e-2, "loss that ends a chunk's search; released code")
    cut: float = setting(0.02, "alphaedit: share of C's trace that is free", key="nullspace_threshold")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_overlap(self.name, self.window, self.overlap)
        if self.kl or self.preserve or self.nas:
            raise BadInput(f"{self.name} has no subject to hold: leave kl=0, preserve=0 and nas=False")

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        return resolved if self.window else replace(resolved, window=default_window(lm, self.overlap))

    @property
    @override
    def metric_name(self) -> str:
        return super().metric_name if self.base == "memit" else f"P{self.cut}"

    @override
    def metric(self, c: Tensor) -> Tensor:
        return super().metric(c) if self.base == "memit" else solve.scaled_null_projector(c, self.cut)

    @override
    def rows(self, lm: HFLM, edits: Sequence[Edit], contexts: Sequence[str]) -> SubjectRows:
        return key_rows(self._chunked(lm, edits, contexts))

    @override
    def search(
        self, lm: HFLM, edits: Sequence[Edit], site: InterventionSite, contexts: Sequence[str], **how: Any
    ) -> SearchResult:
        del how["under"]
        return find_chunk_deltas(lm, self._chunked(lm, edits, contexts[: self.search_contexts + 1]), site, **how)

    def _chunked(self, lm: HFLM, edits: Sequence[Edit], contexts: Sequence[str]) -> list[Chunked]:
        return [Chunked.of(lm, edit, contexts, self.window, self.overlap, self.end) for edit in edits]

    @override
    def _read(self, lm: HFLM, context: EditContext, sites: list[Site], bare: list[Site]) -> dict[Site, SubjectReadings]:
        """Beside what is read at the key tokens: the keys at all others, which are kept."""
        wholes = [one.whole() for one in self._chunked(context.lm, context.edits, [""])]
        others = [sorted({*range(len(row))} - {*keys}) for row, keys in wholes]
        if any(others):
            read = lm.read([row for row, _ in wholes], others, [site for site in sites if site[1] == KEY])
            context.kept = {name: keys[keys.any(1)] for (name, _), keys in read.items()}
        return super()._read(lm, context, sites, bare)
