"""Passes in which a hidden state is changed at one token of each row: where, and the two ways to run them.

A change at layer l and token t reaches neither the layers below l nor the tokens before t. :class:`SuffixPass` runs
those once, and then, as often as needed, only the layers above l on the tokens from t on. :class:`FullPass` gives the
same logits the plain way: it is the reference, and the fallback for models in which the suffix pass does not hold.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

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

Weights = Mapping[str, Tensor] | None  # of parameters, by name

DENSE = 0.9  # share of tokens that are no padding, from which on MLPs run at all of them


# The two passes ------------------------------------------------------------------------------------


class Pass(Protocol):
    """Rows of tokens whose hidden state can be changed at one position each, to be run many times.

    What a row holds at earlier positions (``held``) is in force in every pass.
    """

    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]], weights: Weights = None) -> Tensor:
        """Logits at ``columns`` of each row, with ``delta`` (b, d) added to the hidden states. (k, V).

        Columns are counted from the row's changed position. None for ``delta`` changes nothing. ``weights`` replace
        parameters of the site's down projection inside the graph. Differentiable.
        """
        ...

    def select(self, rows: Sequence[int]) -> "Pass":
        """The pass over some of the rows, in that order; what has been computed is kept."""
        ...


class FullPass(Pass):
    """Runs every layer on every token, each time."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        rows: Rows,
        positions: Sequence[int],
        site: InterventionSite,
        fill: int,
        held: Sequence[Held] = (),
    ) -> None:
        """``positions``: the column of each row at which the hidden state is changed; ``fill`` pads.

        ``held``: what each row holds before its position.
        """
        self.model, self.sites, self.site, self.fill = model, sites, site, fill
        self.rows, self.positions = [list(row) for row in rows], list(positions)
        self.held = list(held) or [{} for _ in rows]
        self.padded = pad(self.rows, "right", fill, input_device(model, sites))

    @override
    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]], weights: Weights = None) -> Tensor:
        rows, cols = _flat([[p + c for c in some] for p, some in zip(self.positions, columns, strict=True)])
        device = self.padded.ids.device
        where = torch.arange(len(self.rows), device=device), torch.tensor(self.positions, device=device)
        held = holding(self.model, self.sites, self.site, self.held, [0] * len(self.rows))
        with use_of(self.model).lock, held, changed(self.model, self.sites, self.site, delta, *where):
            logits = with_weights(
                self.model, weights, inputs_of(self.model, self.padded.ids, self.padded.mask)
            ).logits  # (b, t, V)
        return logits[rows.to(logits.device), cols.to(logits.device)]

    @override
    def select(self, rows: Sequence[int]) -> "FullPass":
        chosen = [self.rows[i] for i in rows]
        positions = [self.positions[i] for i in rows]
        held = [self.held[i] for i in rows]
        return FullPass(self.model, self.sites, chosen, positions, self.site, self.fill, held)


class SuffixPass(Pass):
    """Runs only the layers above the site, and only the tokens from the changed position on.

    Where the site is a down projection, of its own block no attention runs either, and no linear: what they put out is
    kept, the projection's own output too, unless it is asked for with other ``weights``. Where an MLP ends with that
    projection, the projection alone runs of it, on its input that is kept (``keys``).

    Prefixes are padded on the left and suffixes on the right, so there is no padding between the two; the joined mask
    and explicit positions go with every pass; each pass works on copies of the cache's layer objects.
    """

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
        self.model, self.sites, self.site = model, sites, site
        device = input_device(model, sites)
        prefixes = [row[:p] for row, p in zip(rows, positions, strict=True)]
        # one token alone takes another way through a recurrent layer: it is not masked, and it overwrites the state
        least = 2 if has_states(new_cache(model)) else 0
        self.prefix = pad(prefixes, "left", fill, device, least if any(positions) else 0)
        self.suffix = pad([row[p:] for row, p in zip(rows, positions, strict=True)], "right", fill, device, least)
        self.mask = torch.cat([self.prefix.mask, self.suffix.mask], 1)
        with use_of(model).lock, torch.no_grad():
            begun = begins.before(of, self.prefix.lengths) if begins is not None and any(positions) else None
            self.cache = self._prefix_cache(prefixes, held) if begun is None else begun
            self.stored = self._output_of_skipped()
            self.cache = without_heads(self.cache, self.skipped)
            self.keys: Tensor | None = None
            self.within = self._outputs_within()

    @property
    def skipped(self) -> int:
        """Number of blocks, from the first, that need not run again."""
        return self.site.layer + (0 if self.site.mlp_output else 1)

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
        padded = len(where[0]) < DENSE * self.suffix.mask.numel()
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
        return with_weights(self.model, weights, inputs_of(self.model, self.suffix.ids, self.mask, cache))

    @override
    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]], weights: Weights = None) -> Tensor:
        rows, cols = _flat(columns)
        b, device = len(self.suffix.ids), self.suffix.ids.device
        where = torch.arange(b, device=device), torch.zeros(b, dtype=torch.long, device=device)
        forwards = self._standing_in(weights)
        change = nullcontext()
        if self.site.mlp_output:
            change = changed(self.model, self.sites, self.site, delta, *where)
        else:
            last = self.model.get_submodule(self.sites.layer[self.site.layer])
            forwards[last] = lambda *a, **k: adding(delta, *where, b)(self.stored)
        sparse = self._sparse(range(self.site.layer + 1, self.sites.depth), read=(rows, cols))
        gather = gathered(self.model, self.sites, rows, cols)
        with use_of(self.model).lock, hooks.forward_replaced(forwards), change, sparse, gather:
            return self._run(weights).logits[0]

    @property
    def above(self) -> range:
        """The blocks above the site's."""
        return range(self.site.layer + 1, self.sites.depth)

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
        chosen = copy.copy(self)
        index = torch.tensor(list(rows), dtype=torch.long)
        width = self.prefix.ids.shape[1]
        spare = width - max((self.prefix.lengths[row] for row in rows), default=width)  # what pads all of them
        cut = min(spare, width - 1) if spare and plain(self.cache) else 0  # an empty cache has no rows to select
        chosen.prefix, chosen.suffix = _rows_of(self.prefix, index, cut), _rows_of(self.suffix, index)
        chosen.mask = self.mask[index, cut:]
        chosen.cache = cache_rows(self.cache, index, cut)
        if self.skipped:
            chosen.stored = with_hidden(self.stored, hidden_of(self.stored)[index])
        b = len(self.suffix.ids)
        chosen.within = {path: _rows_in(output, index, b) for path, output in self.within.items()}
        chosen.keys = None if self.keys is None else _rows_in(self.keys, index, b)
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


def _flat(columns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Row and column of every position, (k,) each."""
    rows = [i for i, some in enumerate(columns) for _ in some]
    return torch.tensor(rows), torch.tensor([c for some in columns for c in some])


def _same_tensor(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def _rows_in(output: Any, index: Tensor, b: int) -> Any:
    """Some rows of a module's output on ``b`` rows, in the form that it has."""
    hidden = hidden_of(output)
    rows = unflattened(hidden, b)[index.to(hidden.device)]
    return with_hidden(output, rows.flatten(0, 1) if hidden.ndim == 2 else rows)


def _rows_of(padded: Padded, index: Tensor, cut: int = 0) -> Padded:
    """Some rows, without the first ``cut`` columns, of padding alone."""
    return Padded(padded.ids[index, cut:], padded.mask[index, cut:], tuple(padded.lengths[i] for i in index.tolist()))
