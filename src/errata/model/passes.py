"""Forward passes over many rows: batches by token budget, logits where wanted, and the suffix pass.

A change at layer l and token t cannot touch layers below l nor tokens before t. :class:`SuffixPass` runs all that
once, and then, as often as asked, only the layers above l on the tokens from t on. :class:`FullPass` is the
plain way to the same logits: the reference, and the way out for a model that bends the rules.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from errata.model import hooks
from errata.model.sites import Sites
from errata.model.tokens import Padded, pad, positions_of

log = logging.getLogger(__name__)

Rows = Sequence[Sequence[int]]
HEAD = 6  # rows whose first tokens are these many alike begin with the same text


def budgeted(lengths: Sequence[int], budget: int, run: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Indices in batches of like length; rows x longest row stay within ``budget`` tokens, unless it is one row.

    With ``run``, the tokens of each row that are run at once, a batch that holds a sixteenth of the budget also ends
    where padding would be more than an eighth of it.
    """
    its = lengths if run is None else run
    order = sorted(range(len(lengths)), key=lambda i: (its[i], lengths[i]))
    batch: list[int] = []
    held = longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        padded = (len(batch) + 1) * its[i]
        wasteful = run is not None and held > budget // 16 and padded > 9 / 8 * (held + its[i])
        if batch and ((len(batch) + 1) * longest > budget or wasteful):
            yield batch
            batch, held, longest = [], 0, lengths[i]
        batch.append(i)
        held += its[i]
    if batch:
        yield batch


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward takes an argument of this name."""
    return name in inspect.signature(type(model).forward).parameters


def inputs_of(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any = None) -> dict[str, Any]:
    """What to call the model with. ``mask`` covers cached tokens too; positions are passed wherever they are taken."""
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if accepts(model, "use_cache"):
        inputs["use_cache"] = cache is not None
    if cache is not None:
        inputs["past_key_values"] = cache
    if accepts(model, "position_ids"):
        inputs["position_ids"] = positions_of(mask)[:, -ids.shape[1] :]
    return inputs


def exact(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where that is finer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def new_cache(model: nn.Module) -> Any:
    """An empty cache of keys and values, or None for a model that keeps none (the first GPT)."""
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config) if accepts(model, "past_key_values") else None


def part_of(output: Any) -> Tensor:
    """The hidden state in what a block returns (a tensor, or a tuple or list that begins with it)."""
    return output[0] if isinstance(output, tuple | list) else output


def rowwise(hidden: Tensor, b: int) -> Tensor:
    """(b, t, width), also where a block has laid its rows end to end (OPT)."""
    return hidden.reshape(b, -1, hidden.shape[-1]) if hidden.ndim == 2 else hidden


def with_part(output: Any, hidden: Tensor) -> Any:
    """``output`` in its own form, with another hidden state."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


def gathered(model: nn.Module, sites: Sites, rows: Tensor, columns: Tensor) -> Any:
    """A ``with`` block in which logits come only for (rows, columns), as (1, k, V).

    Gathered at the input of ``lm_head``, so that a scale or soft cap behind it stays in force.
    """

    def gather(args: hooks.Args, kwargs: hooks.Kwargs) -> tuple[hooks.Args, hooks.Kwargs]:
        hidden = args[0]
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)][None], *args[1:]), kwargs

    return hooks.before(model.get_submodule(sites.lm_head), gather)


def only_at(model: nn.Module, sites: Sites, layer: int, shape: tuple[int, int], rows: Tensor, columns: Tensor) -> Any:
    """A ``with`` block in which a block's MLP runs for (rows, columns) alone and adds nothing elsewhere.

    For the last block, when nobody reads the other tokens. ``shape`` is (b, t).
    """

    end_to_end = False  # as OPT lays its rows

    def flat(hidden: Tensor) -> Tensor:
        nonlocal end_to_end
        end_to_end = hidden.ndim == 2
        return hidden.reshape(-1, hidden.shape[-1])[(rows * shape[1] + columns).to(hidden.device)][None]  # (1, k, d)

    def spread(output: Tensor) -> Tensor:
        zeros = output.new_zeros(*shape, output.shape[-1])
        full = zeros.index_put((rows.to(output.device), columns.to(output.device)), output[0])
        return full.flatten(0, 1) if end_to_end else full

    down = model.get_submodule(sites.mlp_out[layer])
    inputs = [model.get_submodule(path) for path in sites.mlp_in[layer]]
    return hooks.all_of(
        [
            *(hooks.before(module, lambda args, kwargs: ((flat(args[0]), *args[1:]), kwargs)) for module in inputs),
            hooks.after(down, lambda args, kwargs, output: spread(output)),
        ]
    )


@dataclass(frozen=True)
class InterventionSite:
    """Where a vector is added: at the output of a block, or (``inside``) at that of its down projection.

    Inside, what stands between projection and residual (a norm) sees the changed value; with ``attention`` a second
    vector, behind the first, is added at the output of the block's attention (PMET).
    """

    layer: int
    inside: bool = False
    attention: bool = False

    def path(self, sites: Sites) -> str:
        return sites.mlp_out[self.layer] if self.inside else sites.layer[self.layer]

    def paths(self, sites: Sites) -> list[str]:
        return [self.path(sites), *([sites.attn_out[self.layer]] if self.attention else [])]


class Pass(Protocol):
    """Rows whose hidden state changes at one token each."""

    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]]) -> Tensor: ...  # (k, V)
    def select(self, rows: Sequence[int]) -> "Pass": ...


def _flat(columns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    rows = [i for i, its in enumerate(columns) for _ in its]
    return torch.tensor(rows), torch.tensor([c for its in columns for c in its])


def _adding(delta: Tensor | None, rows: Tensor, columns: Tensor) -> Callable[[Any], Any]:
    """Adds ``delta`` (b, d) to the hidden state of a block's output at one token per row."""

    def add(output: Any) -> Any:
        if delta is None:
            return output
        hidden = part_of(output)
        zeros = torch.zeros_like(rowwise(hidden, len(delta)))
        added = zeros.index_put((rows.to(hidden.device), columns.to(hidden.device)), delta.to(hidden))
        return with_part(output, hidden + added.view_as(hidden))

    return add


def _changed(
    model: nn.Module, sites: Sites, place: InterventionSite, delta: Tensor | None, rows: Tensor, columns: Tensor
) -> Any:
    """A ``with`` block in which ``delta`` (b, d for each path of the place) is added at one token per row."""
    paths = place.paths(sites)
    parts = [None] * len(paths) if delta is None else delta.chunk(len(paths), 1)
    adds = [_adding(part, rows, columns) for part in parts]
    return hooks.all_of(
        hooks.after(model.get_submodule(path), lambda args, kwargs, out, add=add: add(out))
        for path, add in zip(paths, adds, strict=True)
    )


# What begins alike is run once ---------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Rows that go on from a cached head: ``ids`` (b, t) are still to run, ``mask`` covers head and ids."""

    rows: list[int]
    skipped: list[int]  # tokens of each row that its head holds
    cache: Any
    mask: Tensor
    ids: Tensor


def shared_groups(model: nn.Module, sites: Sites, rows: Rows, most: Sequence[int] | None = None) -> list[Group] | None:
    """The rows with the heads that several of them share (contexts before a prompt) run once into a cache.

    At most ``most`` tokens of a row belong to its head. Rows are together when their rests are of one length, so that
    there is never a hole. None where nothing is shared, or where the model's cache is of a special kind.
    """
    shared = _shared_heads(rows, most)
    base = new_cache(model)
    if not any(shared) or base is None or not base.layers:
        return None
    if any(type(layer).__name__ != "DynamicLayer" for layer in base.layers):
        return None
    device = input_device(model, sites)
    heads: dict[tuple[int, ...], int] = {}
    alike: dict[tuple[bool, int], list[int]] = {}
    for i, (row, n) in enumerate(zip(rows, shared, strict=True)):
        if n:
            heads.setdefault(tuple(row[:n]), len(heads))
        alike.setdefault((n > 0, len(row) - n), []).append(i)
    head = pad([list(ids) for ids in heads], "left", 0, device)
    extend(model, sites, base, head.ids, head.mask)
    groups: list[Group] = []
    for (has_head, rest), its in alike.items():
        cache, mask = new_cache(model), torch.zeros(len(its), 0, dtype=torch.long, device=device)
        if has_head:
            index = torch.tensor([heads[tuple(rows[i][: shared[i]])] for i in its], device=device)
            cache, mask = _rows_of_cache(base, index), head.mask[index]
        ids = torch.tensor([list(rows[i])[shared[i] :] for i in its], dtype=torch.long, device=device)
        ids = ids.view(len(its), rest)
        groups.append(Group(its, [shared[i] for i in its], cache, torch.cat([mask, torch.ones_like(ids)], 1), ids))
    return groups


def extend(model: nn.Module, sites: Sites, cache: Any, ids: Tensor, mask: Tensor) -> None:
    """Runs more tokens into a cache; ``mask`` covers what it holds already."""
    with torch.no_grad(), gathered(model, sites, torch.tensor([0]), torch.tensor([0])):
        model(**inputs_of(model, ids, mask, cache))


def _shared_heads(rows: Rows, most: Sequence[int] | None) -> list[int]:
    """For each row, how many of its first tokens it shares with all rows that begin like it (0: with none)."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault(tuple(row[:HEAD]), []).append(i)
    shared = [0] * len(rows)
    for start, its in alike.items():
        if len(start) == HEAD and len(its) > 1:
            columns = zip(*(rows[i] for i in its), strict=False)
            n = next((j for j, column in enumerate(columns) if len(set(column)) > 1), min(len(rows[i]) for i in its))
            for i in its:
                shared[i] = n if most is None else min(n, most[i])
    return shared


# The two passes ------------------------------------------------------------------------------------


class FullPass:
    """Every layer on every token, each time."""

    def __init__(
        self, model: nn.Module, sites: Sites, rows: Rows, at: Sequence[int], place: InterventionSite, fill: int
    ) -> None:
        self.model, self.sites, self.place, self.fill = model, sites, place, fill
        self.rows, self.at = [list(row) for row in rows], list(at)
        self.padded = pad(self.rows, "right", fill, input_device(model, sites))

    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]]) -> Tensor:
        """(k, V): logits at the given columns of each row, counted from the row's changed token."""
        rows, cols = _flat([[a + c for c in its] for a, its in zip(self.at, columns, strict=True)])
        device = self.padded.ids.device
        where = torch.arange(len(self.rows), device=device), torch.tensor(self.at, device=device)
        with _changed(self.model, self.sites, self.place, delta, *where):
            logits = self.model(**inputs_of(self.model, self.padded.ids, self.padded.mask)).logits  # (b, t, V)
        return logits[rows.to(logits.device), cols.to(logits.device)]

    def select(self, rows: Sequence[int]) -> "FullPass":
        chosen = [self.rows[i] for i in rows]
        return FullPass(self.model, self.sites, chosen, [self.at[i] for i in rows], self.place, self.fill)


class SuffixPass:
    """Only the layers above the place, only the tokens from the changed one on.

    Prefixes are padded on the left and suffixes on the right, so that there is no hole between; the joined mask and
    explicit positions go with every pass; each pass works on shallow copies of the cache's layers.
    """

    def __init__(
        self, model: nn.Module, sites: Sites, rows: Rows, at: Sequence[int], place: InterventionSite, fill: int
    ) -> None:
        self.model, self.sites, self.place = model, sites, place
        device = input_device(model, sites)
        self.prefix = pad([row[:a] for row, a in zip(rows, at, strict=True)], "left", fill, device)
        self.suffix = pad([row[a:] for row, a in zip(rows, at, strict=True)], "right", fill, device)
        self.mask = torch.cat([self.prefix.mask, self.suffix.mask], 1)
        self.stored: list[Any] = []
        with torch.no_grad():
            self.cache = self._fill_cache([row[:a] for row, a in zip(rows, at, strict=True)])
            self._store()

    @property
    def skipped(self) -> int:
        """How many blocks need not run again."""
        return self.place.layer + (0 if self.place.inside else 1)

    def _fill_cache(self, prefixes: Rows) -> Any:
        """Keys and values of the prefixes. What begins many rows alike (a context) is run once."""
        cache = new_cache(self.model)
        assert cache is not None
        width = max(map(len, prefixes))
        if not width:
            return cache
        groups = shared_groups(self.model, self.sites, prefixes)
        if groups is None:
            extend(self.model, self.sites, cache, self.prefix.ids, self.prefix.mask)
            return cache
        parts: list[Group] = []
        for group in groups:
            if group.ids.shape[1]:
                extend(self.model, self.sites, group.cache, group.ids, group.mask)
            if group.mask.shape[1]:
                parts.append(group)
        for i, layer in enumerate(parts[0].cache.layers):
            sides = (layer.keys, layer.values)
            keys, values = (x.new_zeros(len(prefixes), x.shape[1], width, x.shape[-1]) for x in sides)
            for group in parts:
                its = group.cache.layers[i]
                last = min(width, its.keys.shape[-2])  # to the right, as a left-padded row has it
                keys[group.rows, :, width - last :] = its.keys[:, :, -last:]
                values[group.rows, :, width - last :] = its.values[:, :, -last:]
            cache.update(keys, values, i)
        return cache

    def _store(self) -> None:
        """Keeps what the last skipped block says of the suffix."""
        if not self.skipped:
            return

        def keep(args: hooks.Args, kwargs: hooks.Kwargs, output: Any) -> None:
            self.stored.append(output)
            raise hooks.Stop

        try:
            with hooks.after(self.model.get_submodule(self.sites.layer[self.skipped - 1]), keep):
                self._run()
        except hooks.Stop:
            pass

    def _run(self) -> Any:
        return self.model(**inputs_of(self.model, self.suffix.ids, self.mask, _copied(self.cache)))

    def logits(self, delta: Tensor | None, columns: Sequence[Sequence[int]]) -> Tensor:
        """(k, V): logits at the given columns of each row, counted from the row's changed token."""
        rows, cols = _flat(columns)
        b, device = len(self.suffix.ids), self.suffix.ids.device
        where = torch.arange(b, device=device), torch.zeros(b, dtype=torch.long, device=device)
        blocks = [self.model.get_submodule(path) for path in self.sites.layer[: self.skipped]]
        says = {block: lambda *a, **k: self.stored[0] for block in blocks}
        inside = hooks.all_of(())
        if self.place.inside:
            inside = _changed(self.model, self.sites, self.place, delta, *where)
        else:
            says[blocks[-1]] = lambda *a, **k: _adding(delta, *where)(self.stored[0])
        last = self.sites.depth - 1
        shape = (b, self.suffix.ids.shape[1])
        sparse = (
            only_at(self.model, self.sites, last, shape, rows, cols) if last > self.place.layer else hooks.all_of(())
        )
        with hooks.stand_in(says), inside, sparse, gathered(self.model, self.sites, rows, cols):
            return self._run().logits[0]

    def select(self, rows: Sequence[int]) -> "SuffixPass":
        """The pass of some of the rows; nothing is computed again."""
        chosen = copy.copy(self)
        index = torch.tensor(list(rows), dtype=torch.long, device=self.mask.device)
        chosen.prefix, chosen.suffix = _rows_of(self.prefix, index), _rows_of(self.suffix, index)
        chosen.mask = self.mask[index]
        chosen.cache = _rows_of_cache(self.cache, index)
        chosen.stored = [with_part(out, part_of(out)[index]) for out in self.stored]
        return chosen


def _copied(cache: Any) -> Any:
    """The cache with layers of its own: a pass appends to them, not to the tensors that they hold."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _rows_of_cache(cache: Any, index: Tensor) -> Any:
    chosen = _copied(cache)
    for layer in chosen.layers:
        layer.batch_select_indices(index)
    return chosen


def _rows_of(padded: Padded, index: Tensor) -> Padded:
    return Padded(padded.ids[index], padded.mask[index], tuple(padded.lengths[i] for i in index.tolist()))


def input_device(model: nn.Module, sites: Sites) -> torch.device:
    """Where ids go in: the device of the embedding, or on which it runs where it is offloaded."""
    embed: Any = model.get_submodule(sites.embed)
    if embed.weight.device.type != "meta":
        return embed.weight.device
    return torch.device(getattr(getattr(embed, "_hf_hook", None), "execution_device", None) or "cpu")


def agree(fast: Tensor, full: Tensor) -> bool:
    """Whether two ways of computing logits (k, V) gave the same, as far as their precision goes."""
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(full.dtype, 0.15)
    a, b = fast.double().log_softmax(-1), full.double().log_softmax(-1)
    weight = b.exp().clamp(min=1e-4)  # what has no probability may differ
    return bool(torch.isfinite(a).all()) and float(((a - b).abs() * weight).amax()) < tolerance
