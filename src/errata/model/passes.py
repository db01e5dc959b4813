"""Forward passes over many rows: batches by token budget, inputs, the logits that are needed, changed hidden states.

A change at layer l and token t reaches neither the layers below l nor the tokens before t. :class:`SuffixPass` runs
those once, and then, as often as needed, only the layers above l on the tokens from t on. :class:`FullPass` gives the
same logits the plain way: it is the reference, and the fallback for models in which the suffix pass does not hold.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.model import hooks
from errata.model.sites import Sites
from errata.model.tokens import Padded, pad, positions_of

Rows = Sequence[Sequence[int]]  # token ids, not padded


def budgeted(lengths: Sequence[int], budget: int, run_lengths: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Batches of indices, rows of similar length together.

    A batch holds at most ``budget`` tokens (rows × longest row), unless it is a single row. ``run_lengths`` gives the
    tokens of each row that one pass runs, where a batch holds more than that (decoding: the prompt, of prompt and
    answer); with it a batch that runs a sixteenth of the budget also ends where more than an eighth would be padding.
    """
    run = lengths if run_lengths is None else run_lengths
    order = sorted(range(len(lengths)), key=lambda i: (run[i], lengths[i]))
    batch: list[int] = []
    tokens = longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        padded = (len(batch) + 1) * run[i]
        wasteful = run_lengths is not None and tokens > budget // 16 and padded > 9 / 8 * (tokens + run[i])
        if batch and ((len(batch) + 1) * longest > budget or wasteful):
            yield batch
            batch, tokens, longest = [], 0, lengths[i]
        batch.append(i)
        tokens += run[i]
    if batch:
        yield batch


# Inputs --------------------------------------------------------------------------------------------


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's ``forward`` takes an argument of this name."""
    return name in inspect.signature(type(model).forward).parameters


def inputs_of(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any = None) -> dict[str, Any]:
    """Keyword arguments of a causal model's ``forward`` for ``ids`` (b, t); ``mask`` covers the cached tokens too.

    ``position_ids`` are passed wherever the model takes them: without them padded batches are wrong in some models.
    """
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if accepts(model, "use_cache"):
        inputs["use_cache"] = cache is not None
    if cache is not None:
        inputs["past_key_values"] = cache
    if accepts(model, "position_ids"):
        inputs["position_ids"] = positions_of(mask)[:, -ids.shape[1] :]
    return inputs


def decoder_start(config: Any, fill: int) -> int:
    """Token id with which an encoder-decoder's decoder begins; ``fill`` where the configuration names none."""
    start = getattr(config, "decoder_start_token_id", None)
    return fill if start is None else start


def new_cache(model: nn.Module) -> Any:
    """An empty cache of keys and values; None for a model that keeps none (the first GPT)."""
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config) if accepts(model, "past_key_values") else None


def input_device(model: nn.Module, sites: Sites) -> torch.device:
    """Device of the token ids: that of the embedding, or where the embedding runs if it is offloaded."""
    embed: Any = model.get_submodule(sites.embed)
    if embed.weight.device.type != "meta":
        return embed.weight.device
    return torch.device(getattr(getattr(embed, "_hf_hook", None), "execution_device", None) or "cpu")


# Outputs -------------------------------------------------------------------------------------------


def exact(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged where its type is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def hidden_of(output: Any) -> Tensor:
    """The hidden state in a block's output, which is a tensor, or a tuple or list that begins with one."""
    return output[0] if isinstance(output, tuple | list) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A block's output with another hidden state, in the same form (tensor, tuple or list)."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


def unflattened(hidden: Tensor, b: int) -> Tensor:
    """The hidden state as (b, t, width), also in models that flatten rows and tokens to (b·t, width) (OPT)."""
    return hidden.reshape(b, -1, hidden.shape[-1]) if hidden.ndim == 2 else hidden


def gathered(model: nn.Module, sites: Sites, rows: Tensor, columns: Tensor) -> AbstractContextManager[None]:
    """Context manager: the model computes logits only at (rows, columns) and returns them as (1, k, V).

    The positions are gathered at the input of ``lm_head``, so a scale or soft cap behind it stays in force.
    """

    def gather(args: hooks.Args, kwargs: hooks.Kwargs) -> tuple[hooks.Args, hooks.Kwargs]:
        hidden = args[0]
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)][None], *args[1:]), kwargs

    return hooks.before(model.get_submodule(sites.lm_head), gather)


def only_at(
    model: nn.Module, sites: Sites, shape: tuple[int, int], rows: Tensor, columns: Tensor
) -> AbstractContextManager[None]:
    """Context manager: the last block's MLP runs only at (rows, columns) and outputs zero elsewhere.

    Valid only if no other position reaches ``lm_head``. ``shape`` is (b, t).
    """
    flattened = False  # whether the model's hidden states are (b·t, d)

    def gather(hidden: Tensor) -> Tensor:
        nonlocal flattened
        flattened = hidden.ndim == 2
        return hidden.reshape(-1, hidden.shape[-1])[(rows * shape[1] + columns).to(hidden.device)][None]  # (1, k, d)

    def scatter(output: Tensor) -> Tensor:
        zeros = output.new_zeros(*shape, output.shape[-1])
        full = zeros.index_put((rows.to(output.device), columns.to(output.device)), output[0])
        return full.flatten(0, 1) if flattened else full

    down = model.get_submodule(sites.mlp_out[-1])
    inputs = [model.get_submodule(path) for path in sites.mlp_in[-1]]
    return hooks.all_of(
        [
            *(hooks.before(module, lambda args, kwargs: ((gather(args[0]), *args[1:]), kwargs)) for module in inputs),
            hooks.after(down, lambda args, kwargs, output: scatter(output)),
        ]
    )


def same_logits(fast: Tensor, full: Tensor) -> bool:
    """Whether two ways to compute logits (k, V) agree within the precision of their type.

    Compares log-probabilities, weighted by the probability: differences in what has none do not count.
    """
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(full.dtype, 0.15)
    a, b = fast.double().log_softmax(-1), full.double().log_softmax(-1)
    weight = b.exp().clamp(min=1e-4)
    return bool(torch.isfinite(a).all()) and float(((a - b).abs() * weight).amax()) < tolerance


# Beginnings that rows share ------------------------------------------------------------------------

SAME = 6  # rows whose first tokens are the same, this many, are taken to begin with a common text


@dataclass(frozen=True)
class PrefixGroup:
    """Rows whose first tokens are in a cache already: ``ids`` (b, t) are still to run, ``mask`` covers both."""

    rows: list[int]
    skipped: list[int]  # for each row, how many of its tokens the cache holds
    cache: Any
    mask: Tensor
    ids: Tensor


def shared_prefixes(
    model: nn.Module, sites: Sites, rows: Rows, most: Sequence[int] | None = None
) -> list[PrefixGroup] | None:
    """The rows in groups, after the beginnings that several of them share have been run once, into a cache.

    ``most`` limits how many tokens of each row may be taken for its beginning. The rests of a group's rows have the
    same length, so there is no padding inside a row. None where nothing is shared, or where the model's cache is not
    made of plain layers.
    """
    lengths = _shared_lengths(rows, most)
    base = new_cache(model)
    if not any(lengths) or base is None or not base.layers:
        return None
    if any(type(layer).__name__ != "DynamicLayer" for layer in base.layers):
        return None
    device = input_device(model, sites)
    prefixes: dict[tuple[int, ...], int] = {}
    by_rest: dict[tuple[bool, int], list[int]] = {}  # (has a shared prefix, length of the rest) -> rows
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        if n:
            prefixes.setdefault(tuple(row[:n]), len(prefixes))
        by_rest.setdefault((n > 0, len(row) - n), []).append(i)
    prefix = pad([list(ids) for ids in prefixes], "left", 0, device)
    extend(model, sites, base, prefix.ids, prefix.mask)
    groups: list[PrefixGroup] = []
    for (has_prefix, rest), members in by_rest.items():
        cache, mask = new_cache(model), torch.zeros(len(members), 0, dtype=torch.long, device=device)
        if has_prefix:
            index = torch.tensor([prefixes[tuple(rows[i][: lengths[i]])] for i in members], device=device)
            cache, mask = cache_rows(base, index), prefix.mask[index]
        ids = torch.tensor([list(rows[i])[lengths[i] :] for i in members], dtype=torch.long, device=device)
        ids = ids.view(len(members), rest)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        groups.append(PrefixGroup(members, [lengths[i] for i in members], cache, mask, ids))
    return groups


def extend(model: nn.Module, sites: Sites, cache: Any, ids: Tensor, mask: Tensor) -> None:
    """Runs more tokens into a cache; ``mask`` covers the tokens that it holds already too."""
    with torch.no_grad(), gathered(model, sites, torch.tensor([0]), torch.tensor([0])):
        model(**inputs_of(model, ids, mask, cache))


def _shared_lengths(rows: Rows, most: Sequence[int] | None) -> list[int]:
    """For each row, how many of its first tokens it shares with all rows whose first SAME are equal (0: none)."""
    by_start: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_start.setdefault(tuple(row[:SAME]), []).append(i)
    lengths = [0] * len(rows)
    for start, members in by_start.items():
        if len(start) == SAME and len(members) > 1:
            columns = zip(*(rows[i] for i in members), strict=False)
            shortest = min(len(rows[i]) for i in members)
            n = next((j for j, column in enumerate(columns) if len(set(column)) > 1), shortest)
            for i in members:
                lengths[i] = n if most is None else min(n, most[i])
    return lengths


def cache_copy(cache: Any) -> Any:
    """The cache with layer objects of its own: a pass that appends to them leaves the original as it is."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def cache_rows(cache: Any, index: Tensor) -> Any:
    """A cache of some rows; the original stays as it is."""
    chosen = cache_copy(cache)
    for layer in chosen.layers:
        layer.batch_select_indices(index)
    return chosen


# Where a hidden state is changed -------------------------------------------------------------------


@dataclass(frozen=True)
class InterventionSite:
    """Where a vector is added: at a block's output, or (``inside``) at the output of the block's down projection.

    At the down projection, a norm between it and the residual sees the changed value. With ``attention`` a second
    vector, stored behind the first, is added at the output of the block's attention (PMET).
    """

    layer: int
    inside: bool = False
    attention: bool = False

    def path(self, sites: Sites) -> str:
        """Path of the module at whose output the first vector is added."""
        return sites.mlp_out[self.layer] if self.inside else sites.layer[self.layer]

    def paths(self, sites: Sites) -> list[str]:
        """Paths of all modules at whose outputs vectors are added."""
        return [self.path(sites), *([sites.attn_out[self.layer]] if self.attention else [])]


def _changed(
    model: nn.Module, sites: Sites, site: InterventionSite, delta: Tensor | None, rows: Tensor, columns: Tensor
) -> AbstractContextManager[None]:
    """Context manager: ``delta`` (b, d for each path of the site) is added at one token of each row."""
    paths = site.paths(sites)
    parts = [None] * len(paths) if delta is None else delta.chunk(len(paths), 1)
    adds = [_adding(part, rows, columns) for part in parts]
    return hooks.all_of(
        hooks.after(model.get_submodule(path), lambda args, kwargs, out, add=add: add(out))
        for path, add in zip(paths, adds, strict=True)
    )


def _adding(delta: Tensor | None, rows: Tensor, columns: Tensor) -> Callable[[Any], Any]:
    """A function that adds ``delta`` (b, d) to the hidden state in a module's output, at one token of each row."""

    def add(output: Any) -> Any:
        if delta is None:
            return output
        hidden = hidden_of(output)
        zeros = torch.zeros_like(unflattened(hidden, len(delta)))
        added = zeros.index_put((rows.to(hidden.device), columns.to(hidden.device)), delta.to(hidden))
        return with_hidden(output, hidden + added.view_as(hidden))

    return add


# The two passes ------------------------------------------------------------------------------------


class Pass(Protocol):
    """Rows of tokens whose hidden state can be changed at one position each, to be run many times."""

    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]]) -> Tensor:
        """Logits at ``columns`` of each row, with ``delta`` (b, d) added to the hidden states. (k, V).

        Columns are counted from the row's changed position. None for ``delta`` changes nothing. Differentiable.
        """
        ...

    def select(self, rows: Sequence[int]) -> "Pass":
        """The pass over some of the rows, in that order; what has been computed is kept."""
        ...


class FullPass(Pass):
    """Runs every layer on every token, each time."""

    def __init__(
        self, model: nn.Module, sites: Sites, rows: Rows, positions: Sequence[int], site: InterventionSite, fill: int
    ) -> None:
        """``positions``: the column of each row at which the hidden state is changed; ``fill`` pads."""
        self.model, self.sites, self.site, self.fill = model, sites, site, fill
        self.rows, self.positions = [list(row) for row in rows], list(positions)
        self.padded = pad(self.rows, "right", fill, input_device(model, sites))

    @override
    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]]) -> Tensor:
        rows, cols = _flat([[p + c for c in some] for p, some in zip(self.positions, columns, strict=True)])
        device = self.padded.ids.device
        where = torch.arange(len(self.rows), device=device), torch.tensor(self.positions, device=device)
        with _changed(self.model, self.sites, self.site, delta, *where):
            logits = self.model(**inputs_of(self.model, self.padded.ids, self.padded.mask)).logits  # (b, t, V)
        return logits[rows.to(logits.device), cols.to(logits.device)]

    @override
    def select(self, rows: Sequence[int]) -> "FullPass":
        chosen = [self.rows[i] for i in rows]
        positions = [self.positions[i] for i in rows]
        return FullPass(self.model, self.sites, chosen, positions, self.site, self.fill)


class SuffixPass(Pass):
    """Runs only the layers above the site, and only the tokens from the changed position on.

    Prefixes are padded on the left and suffixes on the right, so there is no padding between the two; the joined mask
    and explicit positions go with every pass; each pass works on copies of the cache's layer objects.
    """

    def __init__(
        self, model: nn.Module, sites: Sites, rows: Rows, positions: Sequence[int], site: InterventionSite, fill: int
    ) -> None:
        """Runs the prefixes, and the suffixes up to the site. Arguments as for :class:`FullPass`."""
        self.model, self.sites, self.site = model, sites, site
        device = input_device(model, sites)
        prefixes = [row[:p] for row, p in zip(rows, positions, strict=True)]
        self.prefix = pad(prefixes, "left", fill, device)
        self.suffix = pad([row[p:] for row, p in zip(rows, positions, strict=True)], "right", fill, device)
        self.mask = torch.cat([self.prefix.mask, self.suffix.mask], 1)
        with torch.no_grad():
            self.cache = self._prefix_cache(prefixes)
            self.stored = self._output_of_skipped()

    @property
    def skipped(self) -> int:
        """Number of blocks, from the first, that need not run again."""
        return self.site.layer + (0 if self.site.inside else 1)

    def _prefix_cache(self, prefixes: Rows) -> Any:
        """Keys and values of the prefixes. A beginning that many rows share (a context) is run once."""
        cache = new_cache(self.model)
        assert cache is not None
        width = max(map(len, prefixes))
        if not width:
            return cache
        groups = shared_prefixes(self.model, self.sites, prefixes)
        if groups is None:
            extend(self.model, self.sites, cache, self.prefix.ids, self.prefix.mask)
            return cache
        for group in groups:
            if group.ids.shape[1]:
                extend(self.model, self.sites, group.cache, group.ids, group.mask)
        filled = [group for group in groups if group.mask.shape[1]]
        for i, layer in enumerate(filled[0].cache.layers):
            sides = (layer.keys, layer.values)
            keys, values = (x.new_zeros(len(prefixes), x.shape[1], width, x.shape[-1]) for x in sides)
            for group in filled:
                held = group.cache.layers[i]
                last = min(width, held.keys.shape[-2])  # on the right, since the prefixes are padded on the left
                keys[group.rows, :, width - last :] = held.keys[:, :, -last:]
                values[group.rows, :, width - last :] = held.values[:, :, -last:]
            cache.update(keys, values, i)
        return cache

    def _output_of_skipped(self) -> Any:
        """The output of the last skipped block on the suffixes; None where no block is skipped."""
        outputs: list[Any] = []
        if not self.skipped:
            return None

        def keep(args: hooks.Args, kwargs: hooks.Kwargs, output: Any) -> None:
            outputs.append(output)
            raise hooks.Stop

        try:
            with hooks.after(self.model.get_submodule(self.sites.layer[self.skipped - 1]), keep):
                self._run()
        except hooks.Stop:
            pass
        return outputs[0]

    def _run(self) -> Any:
        return self.model(**inputs_of(self.model, self.suffix.ids, self.mask, cache_copy(self.cache)))

    @override
    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]]) -> Tensor:
        rows, cols = _flat(columns)
        b, device = len(self.suffix.ids), self.suffix.ids.device
        where = torch.arange(b, device=device), torch.zeros(b, dtype=torch.long, device=device)
        blocks = [self.model.get_submodule(path) for path in self.sites.layer[: self.skipped]]
        forwards = {block: lambda *a, **k: self.stored for block in blocks}
        changed = sparse = nullcontext()
        if self.site.inside:
            changed = _changed(self.model, self.sites, self.site, delta, *where)
        else:
            forwards[blocks[-1]] = lambda *a, **k: _adding(delta, *where)(self.stored)
        if self.sites.depth - 1 > self.site.layer:
            sparse = only_at(self.model, self.sites, (b, self.suffix.ids.shape[1]), rows, cols)
        gather = gathered(self.model, self.sites, rows, cols)
        with hooks.forward_replaced(forwards), changed, sparse, gather:
            return self._run().logits[0]

    @override
    def select(self, rows: Sequence[int]) -> "SuffixPass":
        chosen = copy.copy(self)
        index = torch.tensor(list(rows), dtype=torch.long, device=self.mask.device)
        chosen.prefix, chosen.suffix = _rows_of(self.prefix, index), _rows_of(self.suffix, index)
        chosen.mask = self.mask[index]
        chosen.cache = cache_rows(self.cache, index)
        if self.skipped:
            chosen.stored = with_hidden(self.stored, hidden_of(self.stored)[index])
        return chosen


def _flat(columns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Row and column of every position, (k,) each."""
    rows = [i for i, some in enumerate(columns) for _ in some]
    return torch.tensor(rows), torch.tensor([c for some in columns for c in some])


def _rows_of(padded: Padded, index: Tensor) -> Padded:
    return Padded(padded.ids[index], padded.mask[index], tuple(padded.lengths[i] for i in index.tolist()))
