"""UnKE: a text as the target, in the weights of one whole block; and AnyEdit's chunks on top of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import TypedDict, override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.closed_form.chunks import Chunked, check_overlap, default_window, find_chunk_deltas, key_rows
from errata.methods.closed_form.keys import check_reads_subjects
from errata.methods.closed_form.objective import TargetSettings
from errata.methods.closed_form.statistics import typical_norms
from errata.methods.settings import setting
from errata.methods.state import State, cached_state
from errata.model import hooks
from errata.model.added import InterventionSite
from errata.model.blocks import BlockPass
from errata.model.hf import HFLM
from errata.model.passes import Rows
from errata.model.projection import Projection
from errata.model.texts import pieces_of, texts_of
from errata.patch.delta import difference, trainable
from errata.patch.patch import Patch
from errata.types import Edit

POOL = 200  # texts that those of an edit are drawn from
TEXT_TOKENS = 128  # of each


class Kept(TypedDict):
    """What UnKE's state says: texts to keep as token ids, and the lengths of hidden states."""

    kept: list[list[int]]
    norms: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class UnKE(TargetSettings):
    """The block's output at the prompt's last token, searched for so that the whole text follows; then the block is
    trained to put it out there, and at all other tokens, of the prompt and of random texts, what it put out before.

        mean over tokens of ‖f(h) − z‖² (prompts)  +  mean over tokens of ‖f(h) − f₀(h)‖² (texts)

    by AdamW on all parameters of the block, attention and MLP (section 4). Padding does not count, as it does in the
    released code. ``window`` cuts the text into AnyEdit's chunks. All edits of a call are learned together.
    """

    name: ClassVar[str] = "unke"
    family: ClassVar[str] = "locate, then edit"
    paper: ClassVar[str] = "Deng et al. 2025, UnKE: Unstructured Knowledge Editing, arXiv:2405.15349"
    stores: ClassVar[str] = "a dense change of one block: attention, MLP and norms"
    needs_prepare: ClassVar[bool] = True
    holds: ClassVar[type[Any] | None] = Kept
    tags: ClassVar[Tags] = Tags()
    RATE: ClassVar[float] = 0.8  # as AnyEdit's
    ADAM_RATE: ClassVar[float] = 0.19

    layer: int | None = setting(None, "7/32 of the depth: section 5.1's 7 of Llama 2's 32", key="layers")
    window: int | None = setting(None, "tokens of a chunk; None: the whole text at once", key="window_size", above=0)
    overlap: int = setting(0, "tokens that a chunk shares with the one before")
    end: bool = setting(True, "whether the text's end is learned too; released code")
    rounds: int = setting(50, "of AdamW; section 5.1", key="optim_num_step", above=0)
    rate: float | None = setting(None, "0.01 x root mean square of the block's weights; 2e-4", key="lr", above=0)
    shrink: float = setting(0.01, "AdamW's weight decay; released code", key="weight_decay")
    texts: int = setting(20, "random texts that are kept; released code", key="ex_data_num", above=0)
    search_contexts: int = setting(0, "released code: none")
    clamp: float = setting(4.0, "x length of the hidden state; released code", key="clamp_norm_factor")
    kl: float = setting(0.0, "none", key="kl_factor")
    decay: float = setting(1e-3, "released code", key="v_weight_decay")
    stop: float = setting(5e-3, "loss that ends the search; AnyEdit's released code, UnKE's goes on")

    # x root mean square of the block's weights: the released 2e-4 where that is 0.02, as in Llama 2 7B.
    STEP: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_overlap(self.name, self.window, self.overlap)
        if self.kl or self.preserve or self.search_contexts:
            raise BadInput(f"{self.name} has no subject to hold: leave kl=0, preserve=0 and search_contexts=0")

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """Texts to keep, of which each call draws some: those given, else what goes with the model, or it writes."""
        check_reads_subjects(lm)
        layer = self._layer(lm)
        source = islice(texts_of(lm, data, self.seed), POOL)
        pieces = [piece[:TEXT_TOKENS] for piece in pieces_of(lm, source, None)][:POOL]

        def make() -> State:
            info = {
                "model": {"name": lm.name, "fingerprint": lm.fingerprint},
                "what": "texts to keep",
                "kept": pieces,
                "norms": typical_norms(lm, pieces[:: max(1, len(pieces) // 64)], [layer]),
            }
            return State({}, info)

        return cached_state("texts", [lm.fingerprint, layer, pieces], make, lambda state: self.check_state(lm, state))

    @override
    def check_state(self, lm: HFLM, state: State) -> None:
        super().check_state(lm, state)
        path, rows = lm.sites.layer[self._layer(lm)], lm.tokens.rows
        if not state.info["norms"].get(path, 0.0) > 0:
            raise BadInput(f"this state does not say how long the outputs of {path} are; prepare anew, for this layer")
        ids = [token for row in state.info["kept"] for token in row]
        if not ids or min(ids) < 0 or (rows is not None and max(ids) >= rows):
            raise BadInput("the texts of this state are not the model's tokens; prepare anew")

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        check_reads_subjects(lm)
        layer = self._layer(lm)
        path = lm.sites.layer[layer]
        matrices = [p.detach().float() for p in lm.model.get_submodule(path).parameters() if p.ndim > 1]
        scale = (sum(float(p.square().sum()) for p in matrices) / sum(p.numel() for p in matrices)) ** 0.5
        width, _ = Projection.of(lm.sites, layer).shape(lm.model)
        first = self.ADAM_RATE if self.optimizer == "adam" else self.RATE
        return replace(
            self,
            layer=layer,
            lr=first * state.info["norms"][path] / width**0.5 if self.lr is None else self.lr,
            rate=self.STEP * scale if self.rate is None else self.rate,
        )

    def _layer(self, lm: HFLM) -> int:
        """The block that is trained. Raises :class:`BadInput` for one that the model does not have."""
        layer = 7 * lm.sites.depth // 32 if self.layer is None else self.layer
        if not 0 <= layer < lm.sites.depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {lm.sites.depth - 1}; found {layer}")
        return layer

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layer is not None
        texts = self._drawn(state.info["kept"], len(prior.edits))
        with prior.without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            chunked = [Chunked.of(lm, edit, [""], self.window, self.overlap, self.end) for edit in edits]
            delta = self._search(edited, chunked)
            return prior + Patch((self._trained(edited, chunked, delta, texts),))

    def _drawn(self, kept: Sequence[list[int]], before: int) -> Rows:
        """Some of the texts, others with each call."""
        generator = torch.Generator().manual_seed((self.seed + before) % 2**32)
        return [kept[i] for i in torch.randperm(len(kept), generator=generator)[: self.texts].tolist()]

    def _search(self, lm: HFLM, chunked: Sequence[Chunked]) -> Tensor:
        """δ (chunks, d) at the block's output, at each key token."""
        assert self.layer is not None
        site = InterventionSite(self.layer)
        here = (site.path(lm.sites), "out")
        length = key_rows(chunked).read(lm, [here])[here].bare.norm(dim=-1, keepdim=True)  # (chunks, 1)
        return find_chunk_deltas(lm, chunked, site, self, self.clamp * length, length, plain=self.plain).delta

    def _trained(self, lm: HFLM, chunked: Sequence[Chunked], delta: Tensor, texts: Rows) -> Any:
        """The change of the block with which it puts out its old outputs, with δ at the key tokens."""
        assert self.layer is not None and self.rate is not None
        wholes = [one.whole() for one in chunked]
        rows = [row if self.window else row[: keys[0] + 1] for row, keys in wholes]  # as released: UnKE's end there
        edited, kept = BlockPass(lm, rows, self.layer), BlockPass(lm, texts, self.layer)
        with torch.no_grad():
            z, old = edited.outputs().float(), kept.outputs().float()
        places = [edited.at(i, column) for i, (_, keys) in enumerate(wholes) for column in keys]
        z[places] += delta.to(z)
        weights = trainable(lm, edited.parameters())
        adam = torch.optim.AdamW(weights.values(), lr=self.rate, weight_decay=self.shrink)
        for _ in range(self.rounds):
            adam.zero_grad()
            loss = _distance(edited.outputs(weights), z) + _distance(kept.outputs(weights), old)
            loss.backward()
            adam.step()
        return difference(lm, weights)


def _distance(outputs: Tensor, wanted: Tensor) -> Tensor:
    """The mean over tokens of ‖f(h) − z‖²."""
    return (outputs.float() - wanted).square().sum(-1).mean()


@dataclass(frozen=True, kw_only=True)
class AnyEditUnKE(UnKE):
    """AnyEdit with UnKE as its base: the text in chunks, the block trained at all their key tokens."""

    name: ClassVar[str] = "anyedit-unke"
    paper: ClassVar[str] = "Jiang et al. 2025, AnyEdit: Edit Any Knowledge, arXiv:2502.05628"
    tags: ClassVar[Tags] = Tags(quick={"window": 2})

    window: int | None = setting(None, "tokens of a chunk: width x depth / 3,277; 40 for Llama 3 8B", key="window_size")

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        resolved = super().resolve(lm, state)
        return resolved if self.window else replace(resolved, window=default_window(lm, self.overlap))
