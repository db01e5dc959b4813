"""The passes with tensors that methods need: logits of targets, hidden states, and interventions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from errata.errors import ErrataError
from errata.model import hooks, passes
from errata.model.added import Held, InterventionSite
from errata.model.intervention import FullPass, Pass
from errata.model.lm import Call
from errata.model.packed import PackedPass
from errata.model.packing import can_pack
from errata.model.padding import pad
from errata.model.prefixes import PrefixGroup, packed_prefixes, shared_lengths, shared_prefixes
from errata.model.projection import KEY, Projection, WeightKeys
from errata.model.resumed import Beginnings, SuffixPass
from errata.model.view import ModelView

log = logging.getLogger(__name__)

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of a target
Site = tuple[str, str]  # path of a module, and "in" (its input), "out" (its output) or KEY (see projection.py)
Sharing = Callable[..., list[PrefixGroup] | None]  # shared_prefixes, or packed_prefixes
CHECKED = 16  # rows of a first batch on which the suffix pass is compared with the full one


class TensorPasses(ModelView):
    """A model that can be run on token ids: logits, hidden states, and passes with a changed hidden state."""

    def target_logits(self, pairs: Sequence[Pair], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The logits that predict each target token of each (prompt ids, target ids), in order. (k, V).

        One pass, differentiable. ``weights`` replace the parameters of these names inside the graph.
        """
        if self.seq2seq:
            return self._seq2seq_logits(pairs, weights)
        rows = pad([[*p, *t[:-1]] for p, t in pairs], "right", self.tokens.fill, self.device)
        index = torch.tensor([(i, len(p) - 1 + j) for i, (p, t) in enumerate(pairs) for j in range(len(t))])
        ends = torch.tensor([len(p) - 1 for p, _ in pairs], device=self.device)
        with (
            self.calling(Call(rows.mask, ends, ids=rows.ids)),
            passes.gathered(self.model, self.sites, index[:, 0], index[:, 1]),
        ):
            return self.run(passes.inputs_of(self.model, rows.ids, rows.mask), weights).logits[0]

    def _seq2seq_logits(self, pairs: Sequence[Pair], weights: Mapping[str, Tensor] | None) -> Tensor:
        source = pad([p for p, _ in pairs], "right", self.tokens.fill, self.device)
        start = passes.decoder_start(self.config, self.tokens.fill)
        target = pad([[start, *t[:-1]] for _, t in pairs], "right", self.tokens.fill, self.device)
        index = torch.tensor([(i, j) for i, (_, t) in enumerate(pairs) for j in range(len(t))])
        ends = torch.tensor([n - 1 for n in source.lengths], device=self.device)
        with (
            self.calling(Call(source.mask, ends, ids=source.ids)),
            passes.gathered(self.model, self.sites, index[:, 0], index[:, 1]),
        ):
            inputs = {
                "input_ids": source.ids,
                "attention_mask": source.mask,
                "decoder_input_ids": target.ids,
                "use_cache": False,
            }
            return self.run(inputs, weights).logits[0]

    def run(self, inputs: dict[str, Any], weights: Mapping[str, Tensor] | None = None) -> Any:
        """The transformers output for keyword arguments ``inputs``; ``weights`` replace parameters inside the graph."""
        with self.alone():
            self._use.check(self._inside)
            return passes.with_weights(self.model, weights, inputs)

    def head_logits(self, hidden: Tensor) -> Tensor:
        """What the final norm and ``lm_head`` alone make of the last block's outputs (k, d). (k, V). Differentiable.

        A model may do more between the two and behind them (a scale, a soft cap): hold these against the logits of a
        whole pass (:func:`errata.model.passes.same_logits`) before they are used in their place.
        """
        with self.alone():
            self._use.check(self._inside)
            flow: Any = hidden[None]
            for path in (self.sites.final_norm, self.sites.lm_head):
                flow = flow if path is None else self.model.get_submodule(path)(flow)
            return flow[0]

    @torch.no_grad()
    def read(self, rows: passes.Rows, columns: Sequence[Sequence[int]], sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Inputs or outputs of modules at the given columns of each row of token ids: site -> (k, width).

        A site is (module path, "in" or "out"), or a down projection's (path, KEY), for which there is an entry (name,
        KEY) of each weight that saw a token: of several in a mixture of experts. Batched; beginnings that rows share
        are run once, and a pass ends at the deepest site. float32 or more precise, on the CPU. Shared beginnings are
        compared with whole rows the first time (see :meth:`intervention`); where they differ, whole rows are read from
        then on, with a warning in the log.
        """
        self.check()
        starts = [0]
        for some in columns:
            starts.append(starts[-1] + len(some))
        values: dict[Site, Tensor] = {}
        last = max((self._block_of(path) for path, _ in sites), default=-1)

        def keep(site: Site, members: list[int], group: PrefixGroup, read: Tensor | WeightKeys) -> None:
            flat = group.places([columns[i] for i in members])
            if isinstance(read, Tensor):
                where = torch.tensor(flat, device=read.device).view(-1, 2)
                chosen = read[where[:, 0], where[:, 1]]
            else:
                b, t = group.ids.shape
                where = torch.tensor([at * t + c for at, c in flat], dtype=torch.long, device=read.keys.device)
                if read.tokens is not None and not torch.isin(where, read.tokens).any():
                    return
                site, chosen = (read.weight, KEY), read.at(where, b * t)
            chosen = passes.at_least_float32(chosen).cpu()
            if site not in values:
                values[site] = torch.zeros(starts[-1], chosen.shape[-1], dtype=chosen.dtype)
            values[site][[k for i in members for k in range(starts[i], starts[i + 1])]] = chosen

        way, lengths = self._sharing(rows, [min(some, default=0) for some in columns])
        side_by_side = way is packed_prefixes  # what a row shares is not held for it
        sizes = [len(row) - (n if side_by_side else 0) for row, n in zip(rows, lengths, strict=True)]
        for batch in passes.budgeted(sizes, self.budget):
            some, shared = [rows[i] for i in batch], [lengths[i] for i in batch]
            groups = way(self.model, self.sites, some, shared, last) if way and any(shared) else None
            for group in groups or self._whole(some):
                members = [batch[j] for j in group.rows]
                with self.calling(Call(group.mask)):
                    callbacks = {site: partial(keep, site, members, group) for site in sites}
                    self.watch(group.ids, group.mask, callbacks, group.cache, group.positions)
        return values

    def _block_of(self, path: str) -> int:
        """The block that a module belongs to; the last one for any other module."""
        within = (i for i, block in enumerate(self.sites.layer) if f"{path}.".startswith(f"{block}."))
        return next(within, self.sites.depth - 1)

    def _sharing(self, rows: passes.Rows, first: Sequence[int]) -> tuple[Sharing | None, list[int]]:
        """How rows are run that share beginnings, None for whole, and the tokens of each one's beginning.

        Nothing before ``first`` will be read.
        """
        lengths = [0] * len(rows) if self.seq2seq else shared_lengths(rows, first)  # an encoder reads both ways
        if any(lengths) and self.caching.spans:
            for way in (packed_prefixes, shared_prefixes):
                if self._sharing_holds(way, rows, lengths):
                    return way, lengths
        return None, lengths

    def _whole(self, rows: passes.Rows) -> list[PrefixGroup]:
        """The rows in one group, in which nothing is shared."""
        padded = pad(rows, "right", self.tokens.fill, self.device)
        every = range(len(rows))
        return [PrefixGroup([*every], [(i, 0) for i in every], None, padded.mask, padded.ids)]

    def _sharing_holds(self, way: Sharing, rows: passes.Rows, lengths: Sequence[int]) -> bool:
        """Whether rows with shared beginnings give the logits of whole rows, compared at the last token of some rows.

        Once for beginnings of one length, and once for those of several, which are padded. Side by side they are not
        run while an adapter is in force, which counts rows.
        """
        holds, kind = self._shared.sharing_holds, (way, _padded(lengths))
        side_by_side = way is packed_prefixes
        if side_by_side and self.explainers:
            return False
        if kind not in holds:
            with_beginning = [i for i, n in enumerate(lengths) if n]
            chosen = [with_beginning[j] for j in _checked([lengths[i] for i in with_beginning])]
            some = [rows[i] for i in chosen]
            try:
                groups = way(self.model, self.sites, some, [lengths[i] for i in chosen])
                if groups is None or (side_by_side and len({at for at, _ in groups[0].first}) == len(some)):
                    return False  # not known from rows that stand alone
                fast, whole = (self._last_logits(some, one) for one in (groups, self._whole(some)))
                holds[kind] = passes.same_logits(fast, whole, self.quantised)
            except Exception as error:
                if not side_by_side or isinstance(error, ErrataError):
                    raise
                log.debug("%s, rows side by side: %s", self.name, error)
                holds[kind] = False
            if not holds[kind] and not side_by_side:
                log.warning("%s gives other hidden states behind shared beginnings; whole rows are read", self.name)
        return holds[kind]

    def _last_logits(self, rows: passes.Rows, groups: Sequence[PrefixGroup]) -> Tensor:
        """The logits at each row's last token. (b, V)."""
        logits: list[Any] = [None] * len(rows)
        for group in groups:
            at, last = torch.tensor(group.places([[len(rows[i]) - 1] for i in group.rows])).unbind(1)
            gathered = passes.gathered(self.model, self.sites, at, last)
            with self.calling(Call(group.mask)), gathered:
                inputs = passes.inputs_of(self.model, group.ids, group.mask, group.cache, group.positions)
                for i, row in zip(group.rows, self.run(inputs).logits[0], strict=True):
                    logits[i] = row
        return torch.stack(logits)

    def watch(
        self,
        ids: Tensor,
        mask: Tensor,
        callbacks: Mapping[Site, Callable[[Any], None]],
        cache: Any = None,
        positions: Tensor | None = None,
    ) -> None:
        """Runs one pass and calls ``callbacks[site]`` with the input or output (b, t, width) of each site.

        For a site of KEY, with the :class:`WeightKeys` of one weight after another. Ends as soon as every site has
        run. ``ids`` are (b, t); ``mask``, which covers what ``cache`` holds too, and ``positions`` are those of
        :func:`errata.model.passes.inputs_of`.
        """
        left = set(callbacks)

        def done(site: Site) -> None:
            left.discard(site)
            if not left:
                raise hooks.Stop

        def show(site: Site, hidden: Any) -> None:
            callbacks[site](passes.unflattened(passes.hidden_of(hidden), len(ids)))
            done(site)

        def hook(site: Site) -> Any:
            path, side = site
            if side == KEY:
                return Projection.at(self.sites, path).watched(self.model, callbacks[site], partial(done, site))
            module = self.model.get_submodule(path)
            if side == "in":
                return hooks.before(module, lambda args, kwargs: show(site, args[0]))
            return hooks.after(module, lambda args, kwargs, output: show(site, output))

        try:
            with self.alone(), hooks.all_of(hook(site) for site in callbacks):
                self._use.check(self._inside)
                self.model(**passes.inputs_of(self.model, ids, mask, cache, positions))
        except hooks.Stop:
            pass

    def intervention(
        self,
        rows: passes.Rows,
        positions: Sequence[int],
        site: InterventionSite,
        columns: Sequence[Sequence[int]],
        *,
        plain: bool = False,
        held: Sequence[Held] = (),
        packed: bool = False,
        begins: Beginnings | None = None,
        of: Sequence[int] = (),
    ) -> Pass:
        """A pass over rows of token ids whose hidden state can be changed at ``site``, at one position of each row.

        ``held`` are, for each row, vectors that are added there all the time, by their columns before that position.
        With ``begins`` what is before the position of a row is the beginning of their text ``of``, and does not run.
        It runs the suffix only (:class:`SuffixPass`), or everything where ``plain``. The first suffix pass of a model
        at a site is compared with the full pass, at ``columns`` (counted from the changed position); where they differ,
        full passes are used there from then on, with a warning in the log. So are the first one that needs a cache, and
        the first one in which rows are padded before their first token: a model may break the rules there alone.
        With ``packed`` rows stand side by side behind what they share (:class:`PackedPass`), where that holds.
        """
        inputs = (self.model, self.sites, rows, positions, site, self.tokens.fill)
        shared = shared_lengths([row[:position] for row, position in zip(rows, positions, strict=True)])
        key = site, any(positions), len(set(positions)) > 1 or _padded(shared), any(held)
        sizes, holds = list(zip(positions, shared, strict=True)), self._shared.suffix_holds
        if plain or not self.caching.spans:
            return FullPass(*inputs, held)
        if packed and not any(held) and (side_by_side := self._packed(inputs, columns, sizes, key)):
            return side_by_side
        kind = SuffixPass, *key, begins is not None
        if holds.get(kind) is False:
            return FullPass(*inputs, held)
        fast = SuffixPass(*inputs, held, begins, of)
        if kind not in holds:
            full = FullPass(*inputs, held)
            holds[kind] = self._same(fast, full, columns, sizes)
            if not holds[kind]:
                log.warning("%s gives other logits in the suffix pass; full passes are used, slower", self.name)
                return full
        return fast

    def beginnings(self, texts: passes.Rows, site: InterventionSite) -> Beginnings | None:
        """Texts (ids) that rows may begin with, each run once; None where no suffix pass holds at ``site``.

        The last ones are kept while the model stays as it is and nothing is in force.
        """
        key = site, [tuple(text) for text in texts], self.fingerprint, self.dtype, self.device
        if self.bare and self._shared.begun is not None and self._shared.begun[0] == key:
            return self._shared.begun[1]
        run = self.intervention(texts, [0] * len(texts), site, [[0]] * len(texts))
        found = Beginnings.read(run) if isinstance(run, SuffixPass) else None
        if self.bare:
            self._shared.begun = key, found
        return found

    def _packed(
        self, inputs: Any, columns: Sequence[Sequence[int]], sizes: Sequence[Any], key: Any
    ) -> PackedPass | None:
        """The rows side by side; None where that does not hold, or an adapter is in force, which counts rows.

        It is not known from rows that stand alone.
        """
        holds, kind = self._shared.suffix_holds, (PackedPass, *key, False)
        if holds.get(kind) is False or self.explainers or not can_pack(self.model):
            return None
        if kind in holds:
            return PackedPass(*inputs)
        try:
            fast = PackedPass(*inputs)
            if not fast.select(_checked(sizes)).placed.packing.side_by_side:
                return None
            holds[kind] = self._same(fast, FullPass(*inputs), columns, sizes)
        except ErrataError:
            raise
        except Exception as error:  # whatever a model raises that takes no mask of four dimensions
            log.debug("%s, rows side by side: %s", self.name, error)
            holds[kind], fast = False, None
        return fast if holds[kind] else None

    def _same(self, fast: Pass, full: Pass, columns: Sequence[Sequence[int]], sizes: Sequence[Any]) -> bool:
        """Whether two passes give the same logits, in some rows of all ``sizes``."""
        some = _checked(sizes)
        few = [columns[i] for i in some]
        with torch.no_grad():
            a, b = (one.select(some).logits(None, few) for one in (fast, full))
        return passes.same_logits(a, b, self.quantised)


def _padded(lengths: Sequence[int]) -> bool:
    """Whether beginnings of these lengths (0: none) are padded when they are run together."""
    return len({n for n in lengths if n}) > 1


def _checked(sizes: Sequence[Any]) -> list[int]:
    """Indices of the rows that a check compares: of all sizes, the smallest and the largest among them."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    return sorted({*order[:: max(1, len(order) // CHECKED)], *order[-1:]})
