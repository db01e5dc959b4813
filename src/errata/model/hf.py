"""A transformers model: the verbs of :class:`LM`, and the passes with tensors that methods need."""

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from errata.answers import complete
from errata.errors import BadInput, InForce
from errata.model import hooks, passes
from errata.model.detect import find_sites
from errata.model.fingerprint import fingerprint
from errata.model.resources import Resources
from errata.model.sites import Sites
from errata.model.tokens import Tokens, pad
from errata.types import Score

if TYPE_CHECKING:
    import numpy as np

from errata.model.decoding import CausalStep, Choose, Seq2SeqStep, Stop, TopK, decoder_start, greedy
from errata.model.lm import LM, Call

log = logging.getLogger(__name__)


NONE = Resources()
CHECKED = 16  # rows of the first batch in which the suffix pass is held against the full one


BUDGET = 4096  # tokens a batch may hold, padding included


@dataclass(eq=False)
class _Shared:
    """What all views of one model have in common."""

    order: Any = field(default_factory=lambda: count(1))
    in_force: list[int] = field(default_factory=lambda: [0])
    call: ContextVar[Call | None] = field(default_factory=lambda: ContextVar("call", default=None))
    lock: Any = field(default_factory=threading.RLock)
    fingerprint: str | None = None
    suffix: dict[passes.InterventionSite, bool] = field(default_factory=dict)  # whether the suffix pass agrees there


class HFLM(LM):
    """A transformers model: the verbs of :class:`LM`, and the passes that methods need.

    ``resources`` is what goes with the model: texts, cases, templates. Everything runs in evaluation mode; batches hold
    at most ``budget`` tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        sites: Sites | None = None,
        resources: Resources = NONE,
        name: str = "",
        budget: int = BUDGET,
    ) -> None:
        self.model, self.tokenizer, self.name, self.budget = model, tokenizer, name, budget
        self.resources = resources
        self.config: Any = model.config
        self.seq2seq = bool(getattr(self.config, "is_encoder_decoder", False))
        self.sites = sites or find_sites(model)
        self.tokens = Tokens(tokenizer, _limit(self.config), self.seq2seq)
        self._shared, self._view = _Shared(), 0
        self.reporters: list[Callable[[Call], Sequence[str | None]]] = []  # of the adapters in force
        model.eval()

    # Who may speak ---------------------------------------------------------------------------------

    @contextmanager
    def changed(self) -> Iterator["HFLM"]:
        """A view of the model that alone may be asked while the block lasts (see ``Patch.applied``)."""
        self.check()
        view = copy.copy(self)
        view._view = next(self._shared.order)
        view.reporters = list(self.reporters)
        self.fingerprint  # noqa: B018  taken before anything changes
        self._shared.in_force.append(view._view)
        try:
            yield view
        finally:
            self._shared.in_force.remove(view._view)

    def check(self) -> None:
        """Raises :class:`InForce` if a patch is in force that this object does not speak for."""
        if self._shared.in_force[-1] != self._view:
            raise InForce(
                "a patch is in force on this model; ask what `with patch.applied(lm) as edited` gave, "
                "or leave that block first"
            )

    @property
    def bare(self) -> bool:
        """Whether this is the model itself, with no patch in force."""
        return self._view == 0

    @property
    def fingerprint(self) -> str:
        """Of the unedited model: configuration, shapes, sampled entries."""
        if self._shared.fingerprint is None:
            self._shared.fingerprint = fingerprint(self.model)
        return self._shared.fingerprint

    def forget_fingerprint(self) -> None:
        """After a permanent change the model is another one."""
        self._shared.fingerprint = None

    @property
    def call(self) -> Call | None:
        """The call that is running in this thread."""
        return self._shared.call.get()

    @contextmanager
    def calling(self, call: Call) -> Iterator[None]:
        """One pass of ``call``, alone on the model."""
        with self._shared.lock:
            token = self._shared.call.set(call)
            try:
                yield
            finally:
                self._shared.call.reset(token)

    @property
    def device(self) -> torch.device:
        return passes.input_device(self.model, self.sites)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_submodule(self.sites.embed).weight.dtype  # pyright: ignore[reportReturnType]

    # The verbs -------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        """The greedy continuation of each prompt, as raw text without the prompt.

        Ends at the end token or after ``max_new_tokens``; with ``until_answer`` as soon as the answer is complete, and
        as soon as it holds one of the texts in ``until``.
        """

        def ended(text: str) -> bool:
            return (until_answer and complete(text)) or any(stop in text for stop in until)

        watched = ended if until_answer or until else None
        said = self._continue(prompts, [max_new_tokens] * len(prompts), watched, greedy)
        return [self.tokens.decode(ids) for ids in said]

    @torch.no_grad()
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> list[str]:
        """What continues each prompt until both together hold ``totals`` tokens, as text without the prompt.

        Greedy up to an end token; with ``top_k`` above 1 drawn among the k likeliest tokens and on past end tokens, as
        ROME's generator does. A row's draws depend on its seed alone, not on what is in its batch.
        """
        lengths = [len(self.tokens.prompt(_text(prompt))) for prompt in prompts]
        limits = [max(0, total - length) for total, length in zip(totals, lengths, strict=True)]
        some = [i for i, limit in enumerate(limits) if limit]
        chosen = [prompts[i] for i in some]
        if top_k == 1:
            said = self._continue(chosen, [limits[i] for i in some], None, greedy)
        else:
            draw = TopK(top_k, [(seeds or range(len(prompts)))[i] for i in some], max(limits, default=0))
            said = self._continue(chosen, [limits[i] for i in some], None, draw, past_end=True)
        texts = [""] * len(prompts)
        for i, ids in zip(some, said, strict=True):
            texts[i] = self.tokens.decode(ids)
        return texts

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], max_new_tokens: int = 32, *, seed: int = 0) -> list[list[int]]:
        """Token ids that continue each prompt, drawn at temperature 1; an empty prompt begins a text."""
        generator = torch.Generator().manual_seed(seed)

        def draw(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
            return torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator)[:, 0]

        return self._continue(prompts, [max_new_tokens] * len(prompts), None, draw)

    def _continue(
        self,
        prompts: Sequence[str],
        limits: Sequence[int],
        ended: Callable[[str], bool] | None,
        choose: "Choose",
        past_end: bool = False,
    ) -> list[list[int]]:
        """The new ids of each prompt, at most its limit of them."""
        self.check()
        if min(limits, default=1) < 1:
            raise BadInput(f"max_new_tokens must be at least 1, found {min(limits)}")
        rows = [self.tokens.prompt(_text(prompt)) for prompt in prompts]
        said: list[list[int]] = [[] for _ in rows]
        lengths = [len(row) + n for row, n in zip(rows, limits, strict=True)]
        for batch in passes.budgeted(lengths, self.budget, [len(row) for row in rows]):
            stop = Stop(self.tokens, [limits[i] for i in batch], ended, past_end)
            its = self._decode([rows[i] for i in batch], batch, stop, choose)
            for i, ids in zip(batch, its, strict=True):
                said[i] = ids
        return said

    def _decode(self, rows: list[list[int]], numbers: Sequence[int], stop: "Stop", choose: "Choose") -> list[list[int]]:
        """The new ids of the rows of one batch; ``numbers`` are the rows' places among all prompts."""
        step = Seq2SeqStep(self, rows) if self.seq2seq else CausalStep(self, rows)
        said: list[list[int]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        while True:
            chosen = choose(step.logits(), [numbers[i] for i in alive], step.call.step).tolist()
            going = [i for i, token in enumerate(chosen) if stop.goes_on(alive[i], said[alive[i]], token)]
            if not going:
                return said
            step.advance([chosen[i] for i in going], going)
            alive = [alive[i] for i in going]

    @torch.no_grad()
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        """What the model thinks of each target behind its prompt (fed token by token)."""
        self.check()
        if len(prompts) != len(targets):
            raise BadInput(f"score needs a target for each prompt: {len(prompts)} prompts, {len(targets)} targets")
        return self.score_ids(
            [(self.tokens.prompt(_text(p)), self.tokens.target(p, _text(t))) for p, t in zip(prompts, targets)]
        )

    @torch.no_grad()
    def score_ids(self, asked: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """:meth:`score` of token ids, (prompt, target), whatever texts they are of.

        A prompt that has several targets is read once, unless an adapter is in force, which wants to see whole rows.
        """
        self.check()
        of_prompt: dict[tuple[int, ...], list[int]] = {}
        for i, (prompt, _) in enumerate(asked):
            of_prompt.setdefault(tuple(prompt), []).append(i)
        several = [its for its in of_prompt.values() if len(its) > 1]
        if self.seq2seq or self.reporters or not passes.accepts(self.model, "past_key_values"):
            several = []
        shared = {i for its in several for i in its}
        alone = [i for i in range(len(asked)) if i not in shared]
        scores: dict[int, Score] = {}
        lengths = [len(asked[i][0]) + len(asked[i][1]) for i in alone]
        for batch in passes.budgeted(lengths, self.budget, lengths):
            logits = self.target_logits([asked[alone[j]] for j in batch])
            counts = [len(asked[alone[j]][1]) for j in batch]
            scores |= {alone[j]: _score(asked[alone[j]][1], its) for j, its in zip(batch, logits.split(counts))}
        sizes = [sum(len(asked[i][0]) + len(asked[i][1]) for i in its) for its in several]
        for batch in passes.budgeted(sizes, self.budget, [len(asked[its[0]][0]) for its in several]):
            scores |= self._score_several(asked, [several[j] for j in batch])
        return [scores[i] for i in range(len(asked))]

    def _score_several(
        self, asked: Sequence[tuple[Sequence[int], Sequence[int]]], several: Sequence[Sequence[int]]
    ) -> dict[int, Score]:
        """place in ``asked`` -> score, of prompts with several targets each: prompts are run once, then the targets."""
        step = CausalStep(self, [list(asked[its[0]][0]) for its in several])
        first = step.logits()  # (b, V)
        places = [(row, i) for row, its in enumerate(several) for i in its]
        going = [(row, i) for row, i in places if len(asked[i][1]) > 1]
        rest: dict[int, Tensor] = {}
        if going:
            fed = [list(asked[i][1][:-1]) for _, i in going]
            logits = step.branched([row for row, _ in going], fed).split([len(ids) for ids in fed])
            rest = {i: its for (_, i), its in zip(going, logits, strict=True)}
        return {i: _score(asked[i][1], torch.cat([first[row][None], rest.get(i, first[:0])])) for row, i in places}

    @torch.no_grad()
    def next_logprobs(self, prompts: Sequence[str]) -> "np.ndarray":
        """(b, V): natural log-probabilities of the token after each prompt, float32."""
        self.check()
        rows = [self.tokens.prompt(_text(prompt)) for prompt in prompts]
        out = torch.empty(len(rows), 0)
        for batch in passes.budgeted([len(row) for row in rows], self.budget):
            logprobs = self.target_logits([(rows[i], [self.tokens.fill]) for i in batch]).float().log_softmax(-1)
            if not out.shape[1]:
                out = torch.empty(len(rows), logprobs.shape[-1])
            out[batch] = logprobs.cpu()
        return out.numpy()

    @torch.no_grad()
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        """What in the patch in force acts on each prompt: a line for each entry of a memory that fires there.

        Changes of weights act everywhere and say nothing.
        """
        self.check()
        rows = [self.tokens.prompt(_text(prompt)) for prompt in prompts]
        said: list[list[str]] = [[] for _ in rows]
        for batch in passes.budgeted([len(row) for row in rows], self.budget) if self.reporters else ():
            its = [rows[i] for i in batch]
            step = Seq2SeqStep(self, its) if self.seq2seq else CausalStep(self, its)
            step.logits()
            for report in self.reporters:
                for i, line in zip(batch, report(step.call), strict=True):
                    said[i] += [line] if line else []
        return said

    # Passes with tensors ---------------------------------------------------------------------------

    def target_logits(
        self,
        asked: Sequence[tuple[Sequence[int], Sequence[int]]],
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """(k, V): the logits that predict each target token of each (prompt ids, target ids), in order.

        One pass, differentiable; ``weights`` stand in for parameters of these names inside the graph.
        """
        if self.seq2seq:
            return self._seq2seq_logits(asked, weights)
        rows = pad([[*p, *t[:-1]] for p, t in asked], "right", self.tokens.fill, self.device)
        keep = [(i, len(p) - 1 + j) for i, (p, t) in enumerate(asked) for j in range(len(t))]
        ends = torch.tensor([len(p) - 1 for p, _ in asked], device=self.device)
        index = torch.tensor(keep)
        with (
            self.calling(Call(rows.mask, ends)),
            passes.gathered(self.model, self.sites, index[:, 0], index[:, 1]),
        ):
            return self.run(passes.inputs_of(self.model, rows.ids, rows.mask), weights).logits[0]

    def _seq2seq_logits(
        self, asked: Sequence[tuple[Sequence[int], Sequence[int]]], weights: Mapping[str, Tensor] | None
    ) -> Tensor:
        source = pad([p for p, _ in asked], "right", self.tokens.fill, self.device)
        start = decoder_start(self.config, self.tokens.fill)
        target = pad([[start, *t[:-1]] for _, t in asked], "right", self.tokens.fill, self.device)
        index = torch.tensor([(i, j) for i, (_, t) in enumerate(asked) for j in range(len(t))])
        ends = torch.tensor([n - 1 for n in source.lengths], device=self.device)
        with (
            self.calling(Call(source.mask, ends)),
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
        """The model's own output for ``inputs``; ``weights`` stand in for its parameters inside the graph."""
        if weights:
            typed = {name: w.to(self.model.get_parameter(name).dtype) for name, w in weights.items()}
            return torch.func.functional_call(self.model, typed, (), inputs)
        return self.model(**inputs)

    @torch.no_grad()
    def read(
        self, rows: passes.Rows, columns: Sequence[Sequence[int]], sites: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Tensor]:
        """site -> (k, width): what goes ``in`` or comes ``out`` at module paths, at the wanted columns of each row.

        A site is (path, "in" or "out"). Batched; a pass stops at the deepest site. float32 or better, on the CPU.
        """
        self.check()
        starts = [0]
        for its in columns:
            starts.append(starts[-1] + len(its))
        kept: dict[tuple[str, str], Tensor] = {}

        def keep(site: tuple[str, str], batch: list[int], skipped: list[int], hidden: Tensor) -> None:
            flat = [(j, c - skipped[j]) for j, i in enumerate(batch) for c in columns[i]]
            where = torch.tensor(flat, device=hidden.device).view(-1, 2)
            its = passes.exact(hidden[where[:, 0], where[:, 1]]).cpu()
            if site not in kept:
                kept[site] = torch.empty(starts[-1], its.shape[-1], dtype=its.dtype)
            kept[site][[k for i in batch for k in range(starts[i], starts[i + 1])]] = its

        for batch in passes.budgeted([len(row) for row in rows], self.budget):
            its = [rows[i] for i in batch]
            first = [min(columns[i], default=0) for i in batch]
            groups = passes.shared_groups(self.model, self.sites, its, first)
            if groups is None:
                padded = pad(its, "right", self.tokens.fill, self.device)
                groups = [passes.Group(list(range(len(its))), [0] * len(its), None, padded.mask, padded.ids)]
            for group in groups:
                members = [batch[j] for j in group.rows]
                with self.calling(Call(group.mask)):
                    seen = {site: partial(keep, site, members, group.skipped) for site in sites}
                    self.watch(group.ids, group.mask, seen, group.cache)
        return kept

    def watch(
        self, ids: Tensor, mask: Tensor, sites: Mapping[tuple[str, str], Callable[[Tensor], None]], cache: Any = None
    ) -> None:
        """One pass that shows what flows at each site (path, "in" or "out") and stops when all were seen."""
        left = set(sites)

        def seen(site: tuple[str, str], hidden: Any) -> None:
            sites[site](passes.rowwise(passes.part_of(hidden), len(ids)))
            left.discard(site)
            if not left:
                raise hooks.Stop

        def at(site: tuple[str, str]) -> Any:
            path, end = site
            module = self.model.get_submodule(path)
            if end == "in":
                return hooks.before(module, lambda args, kwargs: seen(site, args[0]))
            return hooks.after(module, lambda args, kwargs, out: seen(site, out))

        try:
            with hooks.all_of(at(site) for site in sites):
                self.model(**passes.inputs_of(self.model, ids, mask, cache))
        except hooks.Stop:
            pass

    def intervention(
        self,
        rows: passes.Rows,
        at: Sequence[int],
        place: passes.InterventionSite,
        columns: Sequence[Sequence[int]],
        *,
        plain: bool = False,
    ) -> passes.Pass:
        """The pass of rows whose hidden state shall change at one token each: suffix only, or ``plain``.

        The first suffix pass of a model at a place is held against the full pass (at ``columns``, counted from the
        changed token); where they differ, the full pass is used from then on, and that is logged.
        """
        inputs = (self.model, self.sites, rows, at, place, self.tokens.fill)
        if plain or self._shared.suffix.get(place) is False or not passes.accepts(self.model, "past_key_values"):
            return passes.FullPass(*inputs)
        fast = passes.SuffixPass(*inputs)
        if place not in self._shared.suffix:
            some = list(range(0, len(rows), max(1, len(rows) // CHECKED)))
            with torch.no_grad():
                one, two = (
                    kind.select(some).logits(None, [columns[i] for i in some])
                    for kind in (fast, passes.FullPass(*inputs))
                )
            self._shared.suffix[place] = passes.agree(one, two)
            if not self._shared.suffix[place]:
                log.warning("%s bends the rules of the suffix pass; full passes are used, slower", self.name)
                return passes.FullPass(*inputs)
        return fast


def _score(target: Sequence[int], logits: Tensor) -> Score:
    """Of a target's ids and the logits (t, V) that predict them."""
    logprobs = logits.float().log_softmax(-1)
    given = logprobs[torch.arange(len(target)), torch.tensor(target)]
    return Score(tuple(target), tuple(given.tolist()), tuple(logprobs.argmax(-1).tolist()))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput(f"expected text, found {type(value).__name__}: {value!r}")
    return value


def _limit(config: Any) -> int | None:
    """How many tokens the model reads at most, where its configuration says so."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
