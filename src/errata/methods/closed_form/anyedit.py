"""AnyEdit: texts of any length, chunk by chunk, by MEMIT's or AlphaEdit's solution."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Method, Tags
from errata.methods.closed_form import solve
from errata.methods.closed_form.base import ClosedForm
from errata.methods.closed_form.chunks import Chunked, check_overlap, default_window, find_chunk_deltas, key_rows
from errata.methods.closed_form.context import EditContext, Targets
from errata.methods.closed_form.keys import Site, SubjectReadings, SubjectRows
from errata.methods.closed_form.others import about_others, other_subjects
from errata.methods.closed_form.search import SearchResult
from errata.methods.defaults import critical_layers, is_published
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.projection import KEY
from errata.types import Edit

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AnyEdit(ClosedForm):
    """The target is cut into chunks; the token in front of each is a key, whose value shall make the model write it.

    The keys of all chunks are solved for together, by MEMIT's equation or AlphaEdit's (``base``), in which the keys at
    all other tokens of prompt and target stay as they are. As released, keys are read and targets searched behind no
    context, and there is no KL.

    Two things are not in the paper. The keys at the end of the same prompt about ``others`` stay, too; who they are,
    the model's training cases say, else its texts. And λ falls to a tenth, up to ``falls`` times, until the arg-max of
    every token is the text's: the change is no greater than the text needs.
    """

    name: ClassVar[str] = "anyedit"
    paper: ClassVar[str] = "Jiang et al. 2025, AnyEdit: Edit Any Knowledge, arXiv:2502.05628"
    stores: ClassVar[str] = "a low-rank change of the down projections, one rank per chunk and layer"
    tags: ClassVar[Tags] = Tags(quick={"window": 2}, restates=True)
    keeps_targets: ClassVar[bool] = False  # an edit has one for each of its chunks
    without = Method.without
    RATE: ClassVar[float] = 0.8  # twice MEMIT's; found on the bundled model
    LAM: ClassVar[float] = 1.05  # the released 15,000 in units of the width of Llama 3's keys

    base: Literal["memit", "alphaedit"] = setting("memit", "which metric of keys; unke: the method anyedit-unke")
    window: int | None = setting(
        None, "tokens of a chunk: width x depth / 3,277; 40 for Llama 3 8B", key="window_size", above=0
    )
    overlap: int = setting(0, "tokens that a chunk shares with the one before; released code")
    end: bool = setting(True, "whether the text's end is learned too; released data")
    contexts: int = setting(0, "released code: none")
    clamp: float = setting(4.0, "x length of the hidden state; released code", key="clamp_norm_factor")
    kl: float = setting(0.0, "released code reads a factor that it does not use", key="kl_factor")
    decay: float = setting(1e-3, "released code", key="v_weight_decay")
    stop: float = setting(1e-2, "loss that ends a chunk's search; released code")
    others: int = setting(64, "other subjects, the keys of whose prompts are kept; released code: none")
    falls: int = setting(5, "times that λ may fall to a tenth until a text is told; released code: none")
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

    @override
    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """MEMIT's where they are published; else the first of them: one layer gives all chunks what was found there."""
        layers = critical_layers(lm.model, lm.sites)
        return layers if is_published(lm.model, lm.sites) else layers[:1]

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
    def _edit_layers(self, context: EditContext, layers: tuple[int, ...]) -> None:
        """Solves with a λ that falls until the texts are told, for targets that are searched for once."""
        assert self.lam is not None
        self._others(context)  # while no patch is in force: they may be sampled
        changes, memory = context.changes, context.memory
        for fallen in range(self.falls + 1):
            context.changes, context.memory = changes, memory
            once = replace(self, lam=self.lam / 10**fallen, falls=0)
            super(AnyEdit, once)._edit_layers(context, layers)
            if fallen == self.falls or _told(context):
                log.info("λ is %g of %g", once.lam, self.lam)
                return

    @override
    def _targets(
        self,
        lm: HFLM,
        edits: Sequence[Edit],
        context: EditContext,
        site: InterventionSite,
        known: Tensor | None = None,
    ) -> Targets:
        if site not in context.searched:
            context.searched[site] = super()._targets(lm, edits, context, site, known)
        return context.searched[site]

    @override
    def _read(self, lm: HFLM, context: EditContext, sites: list[Site], bare: list[Site]) -> dict[Site, SubjectReadings]:
        """Beside what is read at the key tokens: the keys that are kept, at all others and for other subjects."""
        wholes = [one.whole() for one in self._chunked(context.lm, context.edits, [""])]
        alike = about_others(context.lm, context.edits, self._others(context))
        rows = [*(row for row, _ in wholes), *alike]
        columns = [*(sorted({*range(len(row))} - {*keys}) for row, keys in wholes), *([len(row) - 1] for row in alike)]
        if any(columns):
            read = lm.read(rows, columns, [site for site in sites if site[1] == KEY])
            context.kept = {name: keys[keys.any(1)] for (name, _), keys in read.items()}
        return super()._read(lm, context, sites, bare)

    def _others(self, context: EditContext) -> list[str]:
        if not self.others:
            return []
        name = f"others/{self.others}/{self.seed}"
        return context.state.once(name, lambda: other_subjects(context.lm, self.others, self.seed))


def _told(context: EditContext) -> bool:
    """Whether every token of the targets is the arg-max, with the changes so far."""
    with context.edited() as edited:
        scores = edited.score([edit.prompt for edit in context.edits], [edit.target_new for edit in context.edits])
    return all(token == best for score in scores for token, best in zip(score.tokens, score.argmax, strict=True))
