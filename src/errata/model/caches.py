"""Caches of what a model keeps of the tokens that it has read: keys and values, and the states of recurrent layers."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.model import hooks
from errata.model.padding import pad
from errata.model.passes import cache_argument, gathered, input_device, inputs_of
from errata.model.sites import Sites

log = logging.getLogger(__name__)


def new_cache(model: nn.Module) -> Any:
    """An empty cache; None for a model that takes none (the first GPT)."""
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config) if cache_argument(model) else None


def has_states(cache: Any) -> bool:
    """Whether some layer of a cache holds a recurrent state."""
    return any(map(_is_recurrent, cache.layers))


def plain(cache: Any) -> bool:
    """Whether all layers keep keys and values of every token, and nothing else."""
    return bool(cache.layers) and all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)


def cache_copy(cache: Any) -> Any:
    """The cache with layer objects of its own: a pass that goes on from it leaves the original as it is.

    Keys and values are shared, since a pass appends to them; recurrent states are copied, since it overwrites them.
    """
    copied = copy.copy(cache)
    copied.layers = [_layer_copy(layer) for layer in cache.layers]
    return copied


def spent_copy(cache: Any) -> Any:
    """A copy for one pass, through which gradients may flow, and after which it is of no use.

    Recurrent layers do not store their last state in it: they would overwrite the first one, which backward needs.
    """
    copied = cache_copy(cache)
    for layer in filter(_is_recurrent, copied.layers):
        layer.update_recurrent_state = lambda recurrent_states, *args, **kwargs: recurrent_states
    return copied


def cache_rows(cache: Any, index: Tensor, cut: int = 0) -> Any:
    """A cache of some rows; the original stays as it is. ``index`` is on the CPU: layers may be on several devices.

    Without the first ``cut`` tokens, if it is :func:`plain`.
    """
    chosen = cache_copy(cache)
    for layer in filter(_holds_keys, chosen.layers if cut else ()):  # others are of blocks that rest
        layer.keys, layer.values = layer.keys[:, :, cut:], layer.values[:, :, cut:]
    select_rows(chosen, index)
    return chosen


def cache_columns(cache: Any, rows: Tensor, columns: Tensor) -> Any:
    """A :func:`plain` cache whose token (i, j) is that at ``rows[i, j], columns[i, j]``; the original stays."""
    chosen = cache_copy(cache)
    for layer in filter(_holds_keys, chosen.layers):
        at = rows.to(layer.keys.device), columns.to(layer.keys.device)
        layer.keys, layer.values = (x.transpose(1, 2)[at].transpose(1, 2) for x in (layer.keys, layer.values))
    return chosen


def cache_with(cache: Any, others: Mapping[int, tuple[Tensor, Tensor]]) -> Any:
    """A cache with other keys and values in some layers; the original stays as it is."""
    copied = cache_copy(cache)
    for i, (keys, values) in others.items():
        copied.layers[i].keys, copied.layers[i].values = keys, values
    return copied


def put(cache: Any, layer: int, keys: Tensor, values: Tensor) -> None:
    """Fills an empty plain layer with keys and values, which are not copied."""
    cache.update(keys[:, :, :0], values[:, :, :0], layer)
    cache.layers[layer].keys, cache.layers[layer].values = keys, values


def taken(x: Tensor, rows: Sequence[int], lengths: Sequence[int], width: int) -> Tensor:
    """The first ``lengths`` tokens of these ``rows`` of keys or values (n, heads, t, d), padded on the left.
    (b, heads, width, d)"""
    before = width - torch.tensor(list(lengths))
    at = (torch.arange(width) - before[:, None]).clamp(min=0).to(x.device)  # (b, width)
    return x.transpose(1, 2)[torch.tensor(list(rows), device=x.device)[:, None], at].transpose(1, 2)


def cache_layer(model: nn.Module, sites: Sites, block: int) -> int:
    """The layer of a cache into which a block's attention puts keys: not the block's number where some are no sites."""
    attention = (sites.attn_out[block] or "").rpartition(".")[0]
    found = getattr(model.get_submodule(attention), "layer_idx", None)
    return found if isinstance(found, int) else block


@contextmanager
def ending(cache: Any, layer: int) -> Iterator[None]:
    """Context manager: a pass with the cache ends as soon as a layer of it has got its keys and values; where that gets
    none, the pass is whole."""
    if layer >= len(cache.layers) or not hasattr(cache.layers[layer], "update"):
        yield
        return
    one = cache.layers[layer]
    update = one.update

    def last(*args: Any, **kwargs: Any) -> Any:
        update(*args, **kwargs)
        raise hooks.Stop

    one.update = last
    try:
        yield
    except hooks.Stop:
        pass
    finally:
        del one.update


def keeps(cache: Any, layers: Iterable[int], width: int) -> bool:
    """Whether those layers hold keys and values of all ``width`` tokens read so far, and nothing else."""
    return all(
        i < len(cache.layers) and _holds_keys(cache.layers[i]) and cache.layers[i].keys.shape[-2] == width
        for i in layers
    )


def without_heads(cache: Any, n: int) -> Any:
    """A cache whose first ``n`` layers, of blocks that do not run again, know how many tokens were read and no more."""
    slim = cache_copy(cache)
    for layer in slim.layers[:n]:
        if _holds_keys(layer):
            layer.keys, layer.values = (x[:, :1, :, :1].clone() for x in (layer.keys, layer.values))
    return slim


def select_rows(cache: Any, index: Tensor) -> None:
    """Keeps only these rows of a cache."""
    for layer in cache.layers:
        if _is_recurrent(layer):
            layer.reorder_cache(index)  # the one verb that takes both its states and its keys along
        else:
            layer.batch_select_indices(index)


def _holds_keys(layer: Any) -> bool:
    """Whether a layer holds keys and values, (b, heads, t, width) each, and nothing else."""
    pair = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return not _is_recurrent(layer) and all(isinstance(x, Tensor) and x.ndim == 4 for x in pair)


def _is_recurrent(layer: Any) -> bool:
    return hasattr(layer, "conv_states")


def _layer_copy(layer: Any) -> Any:
    if not _is_recurrent(layer):
        return copy.copy(layer)
    shared = [x for x in (getattr(layer, "keys", None), getattr(layer, "values", None)) if x is not None]
    return copy.deepcopy(layer, {id(x): x for x in shared})


# What holds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caching:
    """In which ways a model gives a row's logits in a batch, behind a cache, as it does for the row alone and whole."""

    padded: bool
    """Rows of several lengths, padded on the left."""
    steps: bool
    """Such rows, one token at a time behind a cache, while others leave the batch."""
    spans: bool
    """Such rows, several tokens at a time behind a cache."""


def caching_of(model: nn.Module, sites: Sites, quantised: bool) -> Caching:
    """What holds: measured on a long and a short row where the model carries a recurrent state.

    Attention sees a mask and gets its keys and values from the cache. A recurrent layer may take padding for tokens,
    keep its state in itself, or begin anew at each pass.
    """
    with torch.no_grad():
        cache = None
        try:
            cache = new_cache(model)
        except Exception as error:
            log.debug("%s makes no cache (%s)", type(model).__name__, error)
        recurrent = getattr(model, "_is_stateful", False) or (cache is not None and has_states(cache))
        if not recurrent:
            return Caching(True, cache is not None, cache is not None)
        trial = _Trial(model, sites, quantised)
        padded, cached = trial.holds(0), cache is not None
        return Caching(padded, cached and padded and trial.holds(1), cached and padded and trial.holds(3))


class _Trial:
    """Two rows of token ids, run whole and in other ways."""

    def __init__(self, model: nn.Module, sites: Sites, quantised: bool) -> None:
        self.model, self.sites = model, sites
        self.rows = [[7, 5, 11, 6, 9, 12, 8, 10, 4], [9, 4, 10, 6]]
        self.device = input_device(model, sites)
        padded = pad(self.rows, "right", 0, self.device)
        self.expected = self._logits(padded.ids, padded.mask, [3], row=1)
        exact = self.expected.dtype.itemsize > 2 and not quantised
        self.tolerance = 1e-3 if exact else 0.05  # of the spread of the logits

    def holds(self, behind: int) -> bool:
        """Whether the short row's last logits are the same, ``behind`` tokens run on a cache of those before them."""
        try:
            logits = self._behind(behind)
            off = (logits - self.expected).float().square().mean() / self.expected.float().var()
            return bool(off.sqrt() < self.tolerance)
        except Exception as error:  # whatever a model raises that cannot do it
            log.debug("%s, %d tokens behind a cache: %s", type(self.model).__name__, behind, error)
            return False

    def _behind(self, n: int) -> Tensor:
        padded = pad(self.rows, "left", 0, self.device)
        if not n:
            return self._logits(padded.ids, padded.mask, [-1], row=1)
        cache = new_cache(self.model)
        ids, mask = padded.ids, padded.mask
        self._logits(ids[:, :-n], mask[:, :-n], [-1], 0, cache)
        cache = cache_rows(cache, torch.tensor([1]))
        return self._logits(ids[1:, -n:], mask[1:], [-1], 0, cache)

    def _logits(self, ids: Tensor, mask: Tensor, columns: list[int], row: int, cache: Any = None) -> Tensor:
        at = torch.tensor(columns) % ids.shape[1]
        with gathered(self.model, self.sites, torch.full_like(at, row), at):
            return self.model(**inputs_of(self.model, ids, mask, cache)).logits[0]
