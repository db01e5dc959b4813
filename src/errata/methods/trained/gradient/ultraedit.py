"""UltraEdit: value changes from normalised gradients, aggregated by least squares; nothing is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.gradient.changes import delta_of
from errata.methods.trained.gradient.editor import output_size
from errata.methods.trained.gradient.gradients import TokenGradients, token_gradients
from errata.methods.trained.gradient.least_squares import beside, least_squares
from errata.methods.trained.gradient.network import FEW, Running
from errata.methods.trained.mlp import MLPWeights
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.weights import stem, weight_shape
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight
from errata.patch.memory import forget, remember
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

SHARE = 0.55  # of the outputs' size is that of a value change
FEWEST = 20  # vectors that statistics begin with
PLACE = "ultraedit/"  # before a shape's statistics in a patch's memory


@dataclass(frozen=True, kw_only=True)
class UltraEdit(MLPWeights):
    """v = −η ‖ĥ‖² ĝ where answers are predicted, and Δ = Vᵀ (H Hᵀ + λ I)⁻¹ H; ĥ and ĝ are normalised by running
    statistics of all edits so far, which ``patch.memory`` holds.

    Statistics of the first few edits are those of FEWEST vectors more, or one edit alone would be divided by noise.
    η is relative: the paper's 1e-6 is for keys of 4,096 to 16,384 numbers and outputs of some hundredths. With η =
    SHARE · (root mean square of the outputs) / f, v is SHARE as large as what the weight puts out there.
    The released code solves for each batch alone, with gradients of the model as edited so far. With ``history`` all
    edits so far are solved for together, by recursive least squares over the keys in the memory, with gradients of the
    unedited model: with statistics that stand still, batches then give what one batch of all edits gives. An edit of a
    prompt that was edited before takes the earlier one's place. On the bundled model's validation cases, 200 edits by
    20, history keeps 0.92 of the edits and 0.77 of the neighbours where the released way keeps 0.84 and 0.65.
    """

    name: ClassVar[str] = "ultraedit"
    family: ClassVar[str] = "gradients"
    paper: ClassVar[str] = "Gu et al. 2025, UltraEdit: Training-, Subject-, and Memory-Free Editing, arXiv:2505.14679"
    stores: ClassVar[str] = "a change of weights; in the memory statistics of keys and gradients"

    tags: ClassVar[Tags] = Tags(restates=True)  # keys of another wording are far from the fact's own

    eta: float | None = setting(None, "η; SHARE · outputs / f; paper: 1e-6", key="lr", above=0)
    ridge: float = setting(1.0, "λ: the released code's", above=0)
    history: bool = setting(True, "whether all edits so far are solved for together; released code: no")

    @override
    def default_layers(self, lm: HFLM) -> tuple[int, ...]:
        """From 5/8 of the depth on (paper: 18 to 26 of GPT-J's 28)."""
        return tuple(range(5 * lm.sites.depth // 8, lm.sites.depth))

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        self._made_before(prior)
        gradients = self._gradients(lm, edits, EMPTY if self.history else prior.without_wrappers())
        statistics = self._statistics(lm, gradients, prior)
        memory = self._unlearned(lm, edits, prior) if self.history else dict(prior.memory)
        changes: dict[str, Weight] = {}
        for name, g in gradients.items():
            values = self._values(lm, name, g, statistics[weight_shape(lm.model, name)])
            if self.history:
                values -= sum(_product(w, g.u) for d in prior.of_kind(Delta) if (w := d.weights.get(name)) is not None)
                changes[name] = beside(g.u, values, self.ridge, memory, name)
                memory = remember(memory, stem(name), g.u.cpu())
            else:
                changes[name] = least_squares(g.u, values, self.ridge)
        for shape, running in statistics.items():
            memory |= {f"{_place(shape)}{key}": value.cpu() for key, value in running.state_dict().items()}
        return replace(prior + Patch((delta_of(changes),)), memory=memory)

    def _gradients(self, lm: HFLM, edits: Sequence[Edit], on: Patch) -> dict[str, TokenGradients]:
        with on.applied(lm) as edited, hooks.frozen(lm.model):
            return token_gradients(edited, self.pairs(lm, edits), self.names(lm), answers_only=True)

    def _unlearned(self, lm: HFLM, edits: Sequence[Edit], prior: Patch) -> dict[str, Tensor]:
        """The memory without the keys of earlier edits of the same prompts, which no longer hold."""
        made = [made for made in self._made_before(prior) if made["resolved"]["history"]]
        if any(made["resolved"]["layers"] != list(self.layers or ()) for made in made):
            raise BadInput("the patch remembers UltraEdit's edits of other layers; go on with the same layers")
        held = {edit.prompt: edit for record in made for edit in map(Edit.from_json, record["edits"])}
        earlier = [held[prompt] for prompt in {edit.prompt: None for edit in edits} if prompt in held]
        memory = dict(prior.memory)
        for name, g in self._gradients(lm, earlier, EMPTY).items() if earlier else ():
            memory = forget(memory, stem(name), g.u.cpu())
        return memory

    def _made_before(self, prior: Patch) -> list[Mapping[str, Any]]:
        """The records of this method's edits in a patch. Raises :class:`BadInput` where it remembers none of them."""
        made = [record for record in prior.meta.get("made", ()) if record["method"] == self.name]
        if made and not any(name.startswith(PLACE) for name in prior.memory):
            raise BadInput(
                "the patch was saved without its memory, which UltraEdit goes on from; keep memory=True "
                "(no --no-memory)"
            )
        return made

    def _statistics(
        self, lm: HFLM, gradients: Mapping[str, TokenGradients], prior: Patch
    ) -> dict[tuple[int, int], Running]:
        """Of keys and gradients by the weight's shape: those in the memory, and these edits counted first."""
        found: dict[tuple[int, int], Running] = {}
        for name, g in gradients.items():
            shape = weight_shape(lm.model, name)
            if shape not in found:
                found[shape] = Running(sum(shape))
                held = {key: prior.memory.get(f"{_place(shape)}{key}") for key in found[shape].state_dict()}
                if held["count"] is not None:
                    found[shape].load_state_dict(_checked(held, shape, found[shape].state_dict()))
                found[shape].to(g.u.device)
            found[shape].add(torch.cat([g.u, g.delta], -1))
        return found

    def _values(self, lm: HFLM, name: str, g: TokenGradients, statistics: Running) -> Tensor:
        """v = −η ‖ĥ‖² ĝ. (k, d)"""
        f = g.u.shape[1]
        h = _normalised(g.u, statistics.mean[:f], statistics.square[:f], statistics.count[:f])
        gradient = _normalised(g.delta, statistics.mean[f:], statistics.square[f:], statistics.count[f:])
        eta = SHARE * output_size(lm, name, g.u) / g.u.shape[1] if self.eta is None else self.eta
        return -eta * h.square().sum(-1, keepdim=True) * gradient


def _normalised(x: Tensor, mean: Tensor, square: Tensor, count: Tensor) -> Tensor:
    """(x − mean) / std of vectors (k, w), as if FEWEST others had been seen, of mean 0 and of their own size.

    So that a few vectors, whose spread says nothing, are divided by their size, and many as the paper says.
    """
    size = (square / count.clamp(min=1) + mean.square()).mean()
    variance = (square + FEWEST * size) / (count - 1 + FEWEST)
    share = count / (count + FEWEST)
    return (x - share * mean) / (variance.sqrt() + FEW)


def _place(shape: tuple[int, int]) -> str:
    return f"{PLACE}{shape[0]} x {shape[1]}/"


def _product(change: Weight, keys: Tensor) -> Tensor:
    """Δk of each key. (k, d)"""
    return change.to(keys).product(keys) if isinstance(change, LowRank) else keys @ change.to(keys).T


def _checked(
    held: Mapping[str, Tensor | None], shape: tuple[int, int], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The statistics of a memory. Raises :class:`BadInput` where they are none."""
    whole: dict[str, Tensor] = {}
    for key, expected in like.items():
        found = held[key]
        negative = key != "mean" and found is not None and bool((found < 0).any())
        if found is None or negative or (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise BadInput(
                f"the patch's memory holds no whole {_place(shape)}{key}; make the edits on the patch before"
            )
        whole[key] = found
    return whole
