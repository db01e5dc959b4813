"""How large a model is and what its passes take: of a loaded model, or of one that is only a configuration (on meta).

What a method takes is told in the same terms: a :class:`Step` for each thing that it does (``Method.cost``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from errata.model import hooks, passes
from errata.model.experts import stand_ins
from errata.model.hf import HFLM
from errata.model.projection import Projection
from errata.model.stacks import DOWN, is_stack
from errata.model.weights import shape_of, transposed
from errata.types import Edit

PROBED = 16  # tokens of the run in which is measured what a gradient keeps
LIVE = 3  # states of the widest kind that a pass without gradients holds at a time
WINDOW = 512  # tokens of a piece of text, where the model reads so many


@dataclass(frozen=True)
class Step:
    """One thing that a method does, and what it takes."""

    name: str
    verb: str
    """"prepare", "edit" or "apply"."""
    flop: Mapping[str, float] | None = field(default_factory=dict[str, float])
    """Operations by where they run: "model" (its type, its device), "float32" (its device), "inverse" (float64 on its
    device, where that has it) and "float64" (the host). None where they are not counted."""
    moved: float = 0.0
    """Bytes of weights that are read and written again and again: where that takes longer than the operations."""
    device: float = 0.0
    """Bytes at the peak beside the model's weights, where the model is."""
    host: float = 0.0
    """Bytes at the peak in main memory, besides those where the model is there."""
    disk: float = 0.0
    """Bytes that are written."""
    note: str = ""


@dataclass(frozen=True)
class Work:
    """How much there is to do: of edits the number, and means in tokens. What is not known is assumed."""

    edits: int = 1
    subject_end: float = 5
    """Tokens of a prompt up to the subject's last one, which counts."""
    suffix: float = 6
    """Tokens from the subject's last one to the last of the answer that is fed."""
    target: float = 2
    context: float = 12
    """Tokens of a text before a prompt."""
    texts: int | None = None
    """Tokens to prepare with; None: as many as the method takes by itself."""
    sampled: bool = False
    """Whether those texts are sampled from the model first."""

    @classmethod
    def of(cls, lm: HFLM, edits: Sequence[Edit], **more: Any) -> "Work":
        """The work of these edits, as the model's tokenizer cuts them."""
        ends, suffixes, targets = 0, 0, 0
        for edit in edits:
            prompt, target = lm.tokens.prompt(edit.prompt), lm.tokens.target(edit.prompt, edit.target_new)
            last = lm.tokens.last_of_subject(edit.prompt, edit.subject, edit.start)
            ends, targets = ends + last + 1, targets + len(target)
            suffixes += len(prompt) - last + len(target) - 1
        n = len(edits)
        return cls(n, ends / n, suffixes / n, targets / n, **more)

    @property
    def prompt(self) -> float:
        """Tokens of a prompt with the answer that is fed."""
        return self.subject_end - 1 + self.suffix


@dataclass(frozen=True)
class Down:
    """``count`` matrices (out, into) of a down projection, of which a token reaches so many."""

    out: int
    into: int
    count: int
    reached: float

    @property
    def active(self) -> float:
        """Entries that act on a token."""
        return self.out * self.into * self.reached

    def touched(self, tokens: float) -> float:
        """How many of the matrices that many tokens reach, each wherever it likes."""
        return self.count * (1 - (1 - min(1.0, self.reached / self.count)) ** tokens)


@dataclass(frozen=True)
class Size:
    """The measures of a model. Operations are those of products of matrices: 2 for a weight and token."""

    lm: HFLM
    block_flop: tuple[float, ...]
    """Operations of each block for a token, without those between tokens."""
    attention_width: tuple[int, ...]
    """Width of what attention mixes, of each block: 4 · width operations for a token and each token that it sees."""
    mlp_flop: float
    """Of those of the last block, the MLP's."""
    head_flop: float
    kept: float
    """Bytes that a pass keeps for its gradient, for a token and block; parameters are frozen."""
    parameters: int
    weights: int
    """Bytes of all weights."""
    itemsize: int
    on_host: bool
    """Whether the model runs in main memory."""
    reached: Mapping[nn.Module, float]
    """Of each stack of experts, how many a token is sent to."""

    @classmethod
    def of(cls, lm: HFLM, on_host: bool) -> "Size":
        """The measures of a model, which may be on the meta device."""
        kept, reached = _probed(lm)
        modules = dict(lm.model.named_modules())
        last = dict.fromkeys([*lm.sites.mlp_in[-1], lm.sites.mlp_out[-1]])
        tensors = {id(p): p for p in lm.model.parameters()}.values()
        return cls(
            lm,
            tuple(2.0 * _entries(modules[path], reached) for path in lm.sites.layer),
            tuple(_widths(modules[path])[1] if path else 0 for path in lm.sites.attn_out),
            2.0 * sum(_entries(modules[path], reached) for path in last),
            2.0 * _entries(modules[lm.sites.lm_head], reached),
            kept / PROBED / lm.sites.depth,
            sum(p.numel() for p in tensors),
            sum(p.numel() * p.element_size() for p in tensors),
            lm.dtype.itemsize,
            on_host,
            reached,
        )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.lm.sites.depth

    @property
    def window(self) -> int:
        """Tokens of the longest piece of text that is read at once."""
        return min(WINDOW, self.lm.tokens.limit or WINDOW)

    def down(self, layer: int) -> tuple[int, int]:
        """(d, f): the sides of a layer's down projection, of all experts' together."""
        return Projection.of(self.lm.sites, layer).shape(self.lm.model)

    def downs(self, layer: int) -> "list[Down]":
        """The matrices of a layer's down projection: one, or those of a stack of experts and a shared expert's."""
        model, found = self.lm.model, list[Down]()
        for name in Projection.of(self.lm.sites, layer).parameters(model):
            *count, d, f = shape_of(model, name)
            reached = self.reached[model.get_submodule(name.rpartition(".")[0])] if count else 1.0
            found.append(Down(d, f, count[0] if count else 1, reached))
        return found

    def keys_again(self, layer: int) -> float:
        """Operations for a token by which the keys of experts, which the model does not show, are computed again."""
        if not (experts := self.lm.sites.experts_of(layer)):
            return 0.0
        stack = self.lm.model.get_submodule(experts[0])
        entries = _entries(stack, self.reached) - sum(down.active for down in self.downs(layer)[:1])
        return 2.0 * entries

    def blocks(self, start: int, end: int, seen: float) -> float:
        """Operations for a token in the blocks from ``start`` up to ``end``, in rows of ``seen`` tokens."""
        return sum(self.block_flop[start:end]) + 4 * seen * sum(self.attention_width[start:end])

    def whole(self, seen: float) -> float:
        """Operations for a token in all blocks."""
        return self.blocks(0, self.depth, seen)

    def passing(self, tokens: float) -> float:
        """Bytes that a pass over so many tokens holds at a time, without gradients."""
        widest = max(sum(down.reached * down.into for down in self.downs(i)) for i in range(self.depth))
        return tokens * LIVE * (self.down(0)[0] + widest) * self.itemsize


def _entries(module: nn.Module, reached: Mapping[nn.Module, float]) -> float:
    """Entries of all matrices in a module that act on a token."""
    total = 0.0
    for part in module.modules():
        entries = sum(p.numel() for p in part.parameters(recurse=False) if p.ndim > 1)
        total += entries * reached[part] / len(getattr(part, DOWN)) if is_stack(part) else entries
    return total


def _widths(module: Any) -> tuple[int, int]:
    """(out, in) of a linear."""
    rows, columns = module.weight.shape
    return (columns, rows) if transposed(module) else (rows, columns)


def _probed(lm: HFLM) -> tuple[float, dict[nn.Module, float]]:
    """Measured in a run of PROBED tokens: bytes that autograd keeps, parameters apart; experts that a token reaches."""
    reached: dict[nn.Module, float] = {}
    known = {p.untyped_storage()._cdata for p in lm.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in known:
            kept[x.untyped_storage()._cdata] = x
        return x

    ids = torch.zeros(1, PROBED, dtype=torch.long, device=lm.device)
    embed = lm.model.get_submodule(lm.sites.embed)
    with (
        stand_ins(lm.model, lambda stack, rows: reached.update({stack: rows / PROBED})),
        hooks.frozen(lm.model),
        torch.enable_grad(),
        hooks.after(embed, lambda args, kwargs, out: out.detach().requires_grad_() * 1),  # no leaf: some add in place
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        mask = torch.ones_like(ids)
        inputs = passes.inputs_of(lm.model, ids, mask)
        if lm.seq2seq:
            inputs = {"input_ids": ids, "decoder_input_ids": ids, "decoder_attention_mask": mask, "use_cache": False}
        lm.model(**inputs)
    return float(sum(x.untyped_storage().nbytes() for x in kept.values())), reached
