"""Passes that go on from what never changes: below a change, and before it, a model has run once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.model import hooks
from errata.model.added import Held, InterventionSite, adding, changed, holding
from errata.model.caches import (
    cache_layer,
    cache_rows,
    cache_with,
    ending,
    has_states,
    keeps,
    new_cache,
    plain,
    put,
    spent_copy,
    taken,
    without_heads,
)
from errata.model.in_use import use_of
from errata.model.intervention import Pass, Weights, flat
from errata.model.padding import Padded, pad
from errata.model.passes import (
    Rows,
    attention_only_at,
    gathered,
    hidden_of,
    input_device,
    inputs_of,
    mlp_only_at,
    unflattened,
    with_hidden,
    with_weights,
)
from errata.model.prefixes import PrefixGroup, extend, shared_lengths, shared_prefixes
from errata.model.sites import Sites

DENSE = 0.9  # share of tokens that are no padding, from which on linears run at all of them
FEW = 64  # tokens of padding that cost no more than leaving them out


class ResumedPass(Pass):
    """Runs only the layers above the site, and only the tokens from the changed position on: the suffixes.

    Where the site is a down projection, of its own block no attention runs either, and no linear: what they put out is
    kept, the projection's own output too, unless it is asked for with other ``weights``. Where an MLP ends with that
    projection, the projection alone runs of it, on its input that is kept (``keys``). Each pass works on copies of the
    cache's layer objects. How rows stand in the batch is a sub-class's matter.
    """

    suffix: Padded
    """The suffixes as they stand in the batch. (b, t)"""
    mask: Tensor
    """Of what the cache holds and the suffixes: (b, tokens of both), or (b, 1, t, tokens of both), which is added."""
    positions: Tensor | None
    """Of the suffixes, where ``mask`` does not tell them. (b, t)"""
    at: tuple[Tensor, Tensor]
    """Where each row's hidden state is changed, in the batch: row and column, (rows,) each, on the CPU."""
    cache: Any
    """What attention keeps of the tokens before the suffixes."""

    def __init__(self, model: nn.Module, sites: Sites, site: InterventionSite) -> None:
        self.model, self.sites, self.site = model, sites, site
        self.stored: Any = None
        self.keys: Tensor | None = None
        self.within: dict[str, Any] = {}

    def _run_below(self) -> None:
        """Runs the suffixes up to the site; of what the cache holds for blocks that rest then, no more is kept."""
        self.stored = self._output_of_skipped()
        self.cache = without_heads(self.cache, self.skipped)
        self.within = self._outputs_within()

    @property
    def skipped(self) -> int:
        """Number of blocks, from the first, that need not run again."""
        return self.site.layer + (0 if self.site.mlp_output else 1)

    @property
    def above(self) -> range:
        """The blocks above the site's."""
        return range(self.site.layer + 1, self.sites.depth)

    def _output_of_skipped(self) -> Any:
        """The output of the last skipped block on the suffixes; None where no block is skipped."""
        outputs: list[Any] = []
        if not self.skipped:
            return None

        def keep(args: hooks.Args, kwargs: hooks.Kwargs, output: Any) -> None:
            outputs.append(output)
            raise hooks.Stop

        try:
            stop = hooks.after(self.model.get_submodule(self.sites.layer[self.skipped - 1]), keep)
            with self._sparse(range(self.skipped)), stop:
                self._run()
        except hooks.Stop:
            pass
        return outputs[0]

    def _outputs_within(self) -> dict[str, Any]:
        """What the modules of the site's block put out on the suffixes that nothing added at the site can change."""
        outputs: dict[str, Any] = {}
        paths = self._constant()
        if not paths:
            return outputs
        keys: list[Any] = []
        last = self._mlp() or paths[-1]

        def keep(path: str, args: hooks.Args, output: Any) -> None:
            if path == last != paths[-1]:
                if _same_tensor(output, outputs.get(paths[-1])):
                    self.keys = keys[0]
            else:
                outputs[path] = output
            if path == paths[-1]:
                keys.append(args[0])
            if path == last:
                raise hooks.Stop

        watched = (
            hooks.after(
                self.model.get_submodule(path), lambda args, kwargs, output, path=path: keep(path, args, output)
            )
            for path in dict.fromkeys([*paths, last])
        )
        try:
            with hooks.forward_replaced(self._skipping()), hooks.all_of(watched):
                self._run()
        except hooks.Stop:
            pass
        if outputs.keys() != set(paths):
            self.keys, outputs = None, {}
        read = [] if self.keys is None else self.sites.mlp_in[self.site.layer]
        return {path: output for path, output in outputs.items() if path not in read}

    def _mlp(self) -> str | None:
        """The path of a module within the site's block that ends with the down projection, as it seems."""
        path, block = self.sites.mlp_out[self.site.layer].rpartition(".")[0], self.sites.layer[self.site.layer]
        return path if path.startswith(f"{block}.") and not self.sites.experts_of(self.site.layer) else None

    def _constant(self) -> list[str]:
        """The paths of those modules: the attention, the linears that the MLP begins with, the projection itself."""
        layer, sites = self.site.layer, self.sites
        down = sites.mlp_out[layer]
        if not self.site.mlp_output or self.site.attention or sites.mixing(layer):
            return []
        attention = (sites.attn_out[layer] or "").rpartition(".")[0]
        inside = attention.startswith(f"{sites.layer[layer]}.") and not down.startswith(f"{attention}.")
        linears = [] if sites.experts_of(layer) else sites.mlp_in[layer]
        return [*([attention] if inside else []), *linears, down]

    def _skipping(self) -> dict[nn.Module, Callable[..., Any]]:
        """The blocks below, each with what stands in for its ``forward``."""
        blocks = [self.model.get_submodule(path) for path in self.sites.layer[: self.skipped]]
        return {block: lambda *a, **k: self.stored for block in blocks}

    def _sparse(self, blocks: range, read: tuple[Tensor, Tensor] | None = None) -> AbstractContextManager[None]:
        """Context manager: linears of ``blocks`` leave out padding; the last MLP runs where it is ``read`` alone."""
        where = self.suffix.mask.nonzero(as_tuple=True)
        n, tokens = len(where[0]), self.suffix.mask.numel()
        padded = n < DENSE * tokens and n < tokens - FEW
        at = dict.fromkeys(blocks if padded else (), where)
        if read is not None and self.sites.depth - 1 in blocks:
            at[self.sites.depth - 1] = read
        b, t = self.suffix.ids.shape
        about = self.model, self.sites
        return hooks.all_of(
            [
                *(mlp_only_at(*about, block, (b, t), *some) for block, some in at.items()),
                *(attention_only_at(*about, block, (b, t), *where) for block in (blocks if padded else ())),
            ]
        )

    def _standing_in(self, weights: Weights) -> dict[nn.Module, Callable[..., Any]]:
        """What runs no more, each module with what stands in for its ``forward``."""
        forwards, down = self._skipping(), self.sites.mlp_out[self.site.layer]
        for path, output in self.within.items():
            if not weights or path != down:
                forwards[self.model.get_submodule(path)] = lambda *a, output=output, **k: output
        if self.keys is not None and (mlp := self._mlp()):
            projection = self.model.get_submodule(down)
            forwards[self.model.get_submodule(mlp)] = lambda *a, **k: projection(self.keys)
        return forwards

    def _run(self, weights: Weights = None, cache: Any = None) -> Any:
        cache = spent_copy(self.cache) if cache is None else cache
        inputs = inputs_of(self.model, self.suffix.ids, self.mask, cache, self.positions)
        return with_weights(self.model, weights, inputs)

    def _places(self, columns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Where ``columns`` of each row, counted from its changed position, stand in the batch. (k,) twice."""
        rows, cols = flat(columns)
        return self.at[0][rows], self.at[1][rows] + cols

    @override
    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]], weights: Weights = None) -> Tensor:
        rows, cols = self._places(columns)
        b, forwards, change = len(self.suffix.ids), self._standing_in(weights), nullcontext()
        if self.site.mlp_output:
            change = changed(self.model, self.sites, self.site, delta, *self.at, b)
        else:
            last = self.model.get_submodule(self.sites.layer[self.site.layer])
            forwards[last] = lambda *a, **k: adding(delta, *self.at, b)(self.stored)
        sparse = self._sparse(range(self.site.layer + 1, self.sites.depth), read=(rows, cols))
        gather = gathered(self.model, self.sites, rows, cols)
        with use_of(self.model).lock, hooks.forward_replaced(forwards), change, sparse, gather:
            return self._run(weights).logits[0]

    def _with(self, take: Callable[[Tensor], Tensor]) -> Self:
        """A copy with what is kept of the suffixes, of which ``take`` makes (b, t, width) those of another batch."""
        b = len(self.suffix.ids)

        def taken(output: Any) -> Any:
            hidden = hidden_of(output)
            rows = take(unflattened(hidden, b))
            return with_hidden(output, rows.flatten(0, 1) if hidden.ndim == 2 else rows)

        chosen = copy.copy(self)
        if self.skipped:
            chosen.stored = taken(self.stored)
        chosen.within = {path: taken(output) for path, output in self.within.items()}
        chosen.keys = None if self.keys is None else taken(self.keys)
        return chosen


class SuffixPass(ResumedPass):
    """A :class:`ResumedPass` with a row of the batch for each row.

    Prefixes are padded on the left and suffixes on the right, so there is no padding between the two; the joined mask
    and explicit positions go with every pass.
    """

    positions = None

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        rows: Rows,
        positions: Sequence[int],
        site: InterventionSite,
        fill: int,
        held: Sequence[Held] = (),
        begins: "Beginnings | None" = None,
        of: Sequence[int] = (),
    ) -> None:
        """Runs the prefixes, and the suffixes up to the site. Arguments as for :class:`FullPass`.

        With ``begins`` each prefix is the beginning of their text ``of``, and is taken from there.
        """
        super().__init__(model, sites, site)
        device = input_device(model, sites)
        prefixes = [row[:p] for row, p in zip(rows, positions, strict=True)]
        # one token alone takes another way through a recurrent layer: it is not masked, and it overwrites the state
        least = 2 if has_states(new_cache(model)) else 0
        self.prefix = pad(prefixes, "left", fill, device, least if any(positions) else 0)
        self.suffix = pad([row[p:] for row, p in zip(rows, positions, strict=True)], "right", fill, device, least)
        self.mask, self.at = torch.cat([self.prefix.mask, self.suffix.mask], 1), _firsts(len(rows))
        with use_of(model).lock, torch.no_grad():
            begun = begins.before(of, self.prefix.lengths) if begins is not None and any(positions) else None
            self.cache = self._prefix_cache(prefixes, held) if begun is None else begun
            self._run_below()

    def _prefix_cache(self, prefixes: Rows, added: Sequence[Held]) -> Any:
        """Keys and values of the prefixes. A beginning that many rows share (a context) is run once.

        Where anything is ``added`` all the time, each is run by itself.
        """
        cache = new_cache(self.model)
        assert cache is not None
        width = self.prefix.ids.shape[1]
        if not width:
            return cache
        if any(added):
            starts = [width - n for n in self.prefix.lengths]
            with holding(self.model, self.sites, self.site, added, starts):
                extend(self.model, self.sites, cache, self.prefix.ids, self.prefix.mask)
            return cache
        groups = shared_prefixes(self.model, self.sites, prefixes, shared_lengths(prefixes))
        if groups is None:
            extend(self.model, self.sites, cache, self.prefix.ids, self.prefix.mask)
            return cache
        for group in groups:
            if group.ids.shape[1]:
                extend(self.model, self.sites, group.cache, group.ids, group.mask)
        filled = [group for group in groups if group.mask.shape[1]]
        for i, layer in enumerate(filled[0].cache.layers):
            if layer.is_initialized:  # others are of blocks that rest
                put(cache, i, *(self._joined(groups, i, side) for side in ("keys", "values")))
        return cache

    def _joined(self, groups: Sequence[PrefixGroup], layer: int, side: str) -> Tensor:
        """(b, heads, t, width): the keys or values of all prefixes, zero where they are padded, on the left."""
        b, width = self.prefix.ids.shape
        like = next(getattr(group.cache.layers[layer], side) for group in groups if group.mask.shape[1])
        joined = like.new_empty(b, like.shape[1], width, like.shape[-1])
        for group in groups:
            last = min(width, group.mask.shape[1])
            joined[group.rows, :, : width - last] = 0
            if last:
                joined[group.rows, :, width - last :] = getattr(group.cache.layers[layer], side)[:, :, -last:]
        return joined

    @property
    def keeps_above(self) -> bool:
        """Whether the blocks above keep keys and values of each token of the prefixes: :meth:`behind` holds."""
        return keeps(self.cache, self._layers_above(), self.prefix.ids.shape[1])

    def _layers_above(self) -> list[int]:
        """The layers of a cache that belong to those blocks."""
        return [cache_layer(self.model, self.sites, block) for block in self.above]

    def keys_above(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of the suffixes (without prefixes) in the blocks above, with what hooks change on the way.

        Two of (b, heads, t, width) for each layer of a cache. Differentiable: with :meth:`behind` what many rows begin
        with is run once in a pass in which it changes.
        """
        cache, first = spent_copy(self.cache), torch.zeros(1, dtype=torch.long)
        gather = gathered(self.model, self.sites, first, first)
        enough = ending(cache, cache_layer(self.model, self.sites, self.sites.depth - 1))
        with use_of(self.model).lock, hooks.forward_replaced(self._standing_in(None)), gather, enough:
            self._run(cache=cache)
        return {i: (cache.layers[i].keys, cache.layers[i].values) for i in self._layers_above()}

    def behind(self, keys: Mapping[int, tuple[Tensor, Tensor]], of: Sequence[int]) -> "SuffixPass":
        """The pass with its prefixes' keys and values taken from :meth:`keys_above` of others, of which each row's
        prefix is the beginning of row ``of``."""
        chosen = copy.copy(self)
        about = list(of), self.prefix.lengths, self.prefix.ids.shape[1]
        chosen.cache = cache_with(self.cache, {i: (taken(k, *about), taken(v, *about)) for i, (k, v) in keys.items()})
        return chosen

    @override
    def select(self, rows: Sequence[int]) -> "SuffixPass":
        index = torch.tensor(list(rows), dtype=torch.long)
        width = self.prefix.ids.shape[1]
        spare = width - max((self.prefix.lengths[row] for row in rows), default=width)  # what pads all of them
        cut = min(spare, width - 1) if spare and plain(self.cache) else 0  # an empty cache has no rows to select
        chosen = self._with(lambda x: x[index.to(x.device)])
        chosen.prefix, chosen.suffix = _rows_of(self.prefix, index, cut), _rows_of(self.suffix, index)
        chosen.mask, chosen.at = self.mask[index, cut:], _firsts(len(index))
        chosen.cache = cache_rows(self.cache, index, cut)
        return chosen


@dataclass(frozen=True)
class Beginnings:
    """Texts that rows begin with, each run once."""

    run: SuffixPass
    """The pass over the texts, which are all suffix."""
    cache: Any
    """Their keys and values in all blocks; None where the model's cache is not made of plain layers."""

    @classmethod
    def read(cls, run: SuffixPass) -> "Beginnings":
        """Of the texts that ``run`` is over."""
        cache = new_cache(run.model)
        if cache is None or not plain(cache):
            return cls(run, None)
        with use_of(run.model).lock:
            extend(run.model, run.sites, cache, run.suffix.ids, run.suffix.mask)
        return cls(run, cache)

    def before(self, of: Sequence[int], lengths: Sequence[int]) -> Any:
        """A cache of the first ``lengths`` tokens of the texts ``of``, padded on the left; None where none is kept."""
        if self.cache is None:
            return None
        cache, width = new_cache(self.run.model), max(lengths)
        for i, layer in enumerate(self.cache.layers):
            if layer.is_initialized:  # others are of blocks that rest
                put(cache, i, *(taken(x, of, lengths, width) for x in (layer.keys, layer.values)))
        return cache


def _firsts(b: int) -> tuple[Tensor, Tensor]:
    """The first column of each row, (b,) twice."""
    return torch.arange(b), torch.zeros(b, dtype=torch.long)


def _same_tensor(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def _rows_of(padded: Padded, index: Tensor, cut: int = 0) -> Padded:
    """Some rows, without the first ``cut`` columns, of padding alone."""
    return Padded(padded.ids[index, cut:], padded.mask[index, cut:], tuple(padded.lengths[i] for i in index.tolist()))
