"""A codebook at one layer: questions as keys, what the layer shall say to them as values, and a rule of which answers.

The site is a block's down projection: its input gives the query, its output is what a value takes the place of (or is
added to). Which entry answers is decided once, when the prompt has been read, and kept while decoding. An
encoder-decoder has its codebook in the encoder.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.methods.base import Method, State, close
from errata.methods.losses import token_losses
from errata.methods.settings import setting
from errata.methods.texts import openings, texts_of
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted
from errata.patch.delta import weight_shape
from errata.patch.parts import Adapter, output_replaced
from errata.patch.patch import Patch
from errata.types import Edit

Replace = Literal["last", "prompt", "all"]


GRID = 10_001  # quantiles of a state


@dataclass(frozen=True)
class Logged:
    """An edit as the codebook remembers it; ``answer`` and ``asked`` are ids."""

    id: str
    prompt: str
    answer: list[int]
    asked: list[int]


@dataclass(frozen=True, eq=False)
class Codebook(Adapter):
    """The log of the edits in order, and what the rule has made of it.

    Edit i has an entry of its own, with its query as the key, or has joined the entry of edit ``owner[i]``, which
    has the same answer. ``values[i]`` is the value of its entry once trained on edit i: the last one answers, and an
    edit can be taken out exactly unless another's entry would then be of other edits than those it was trained on.
    Without a running call that has seen a prompt (reading keys, say), nothing is changed.
    """

    site: str
    settings: Mapping[str, Any]  # what the rule and the look-up need; ``replace`` is one
    log: tuple[Logged, ...]
    queries: Tensor  # (n, f)
    values: Tensor  # (n, d)
    radii: Tensor  # (n,): how far a key reaches; below 0 where an edit's query is no key (any more)
    owner: Tensor  # (n,)

    side: ClassVar[Literal["in", "out"]] = "in"  # whether queries are of what goes in at the site, or comes out

    # What differs between methods ------------------------------------------------------------------

    @abstractmethod
    def query(self, call: Call, h: Tensor) -> Tensor:
        """(b, f): what the keys are held against, of a pass (b, t, width) that has read the prompts."""

    @abstractmethod
    def look(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The entry nearest to each query (b, f), and whether it answers: (b,) and (b,)."""

    @abstractmethod
    def place(self, i: int) -> None:
        """Sets ``radii`` and ``owner`` of edit i, the newest, and of those that it changes, in place."""

    @staticmethod
    @abstractmethod
    def alike(q: Tensor) -> Tensor:
        """(n, n): how far queries (n, f) are apart, or how near."""

    def combine(self, y: Tensor, value: Tensor) -> Tensor:
        """What comes out where an entry answers: its value."""
        return value

    # The adapter -----------------------------------------------------------------------------------

    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        entry = self.decided(call, x, y)  # (b,)
        if call is None or entry is None:
            return y
        value = self.values[self.latest[entry.cpu().clamp(min=0)]]  # (b, d)
        return self.put(call, y, value, entry.to(y.device) >= 0)

    def decided(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor | None:
        """(b,): the entry that answers each row, or -1: found when the prompt has been read, and kept from then on.

        None where no prompt has been read.
        """
        if call is None:
            return None
        if call.prompt_end is not None:
            entry, near = self.look(self.query(call, at_least_float32(x if self.side == "in" else y)))
            call.memo[id(self)] = torch.where(near, entry, -1)
        return call.memo.get(id(self))

    def put(self, call: Call, y: Tensor, value: Tensor, rows: Tensor) -> Tensor:
        """``y`` with the values (b, d) at the tokens that ``replace`` names, in the wanted rows (b,).

        ``last`` and ``prompt`` touch the prompt alone: what is decoded sees it through the layers above.
        """
        t, how = y.shape[1], self.settings["replace"]
        past, real = call.offsets(t, y.device), call.mask[:, -t:].to(y.device) > 0
        where = past == 0 if how == "last" else (past <= 0) & real if how == "prompt" else real
        where = (where & rows[:, None])[..., None]  # (b, t, 1)
        return torch.where(where, self.combine(y, value.to(y)[:, None]), y)

    def explain(self, call: Call) -> Sequence[str | None]:
        if id(self) not in call.memo:
            return [None] * len(call.mask)
        edits = [self.log[self.latest[i]] if i >= 0 else None for i in call.memo[id(self)].tolist()]
        return [edit and f"{self.kind}: edit {edit.id}, {edit.prompt!r}" for edit in edits]

    # The log ---------------------------------------------------------------------------------------

    @classmethod
    def empty(cls, site: str, settings: Mapping[str, Any], f: int, d: int) -> Self:
        none = torch.empty(0)
        return cls(site, settings, (), torch.empty(0, f), torch.empty(0, d), none, none.long())

    def forget(self, i: int) -> None:
        """Edit i answers no more, in place."""
        self.radii[i] = -1.0

    @cached_property
    def latest(self) -> Tensor:
        """(n,): the last edit of the entry that each edit's key stands for."""
        order = torch.arange(len(self.log))
        return order.scatter_reduce(0, self.owner, order, "amax")

    def group(self, i: int) -> list[int]:
        """The edits that edit i's value was trained on: those of its entry up to itself."""
        return (self.owner[: i + 1] == self.owner[i]).nonzero()[:, 0].tolist()

    def longer(self, log: Sequence[Logged], queries: Tensor, values: Tensor) -> Self:
        """With more edits, placed one after another; their values are still to be trained."""
        n = len(self.log)
        book = replace(
            self,
            log=(*self.log, *log),
            queries=torch.cat([self.queries.to(queries), queries]),
            values=torch.cat([self.values.to(values), values]),
            radii=torch.cat([self.radii, torch.full((len(log),), -1.0)]),
            owner=torch.cat([self.owner, torch.arange(n, n + len(log))]),
        )
        for i in range(n, n + len(log)):
            for j in range(i):
                if book.log[j].asked == book.log[i].asked and book.log[j].answer != book.log[i].answer:
                    book.forget(j)  # the same question: from now on the new answer alone
            book.place(i)
        return book

    def without(self, edit_id: str) -> "Codebook | None":
        keep = [i for i, edit in enumerate(self.log) if edit.id != edit_id]
        if len(keep) == len(self.log) or not keep:
            return self if keep else None
        start = type(self).empty(self.site, self.settings, self.queries.shape[1], self.values.shape[1])
        book = start.longer([self.log[i] for i in keep], self.queries[keep], self.values[keep])
        for now, then in enumerate(keep):
            if [keep[j] for j in book.group(now)] != self.group(then):
                raise Unsupported(
                    f"the value that answers {self.log[then].prompt!r} was trained together with the edit {edit_id}; "
                    "make the later edits again on the patch before it"
                )
        return book

    def entries(self) -> list[dict[str, Any]]:
        return [
            {
                "edit": ", ".join(self.log[j].id for j in self.group(int(self.latest[i]))),
                "prompt": self.log[i].prompt,
                "radius": round(float(self.radii[i]), 4),
            }
            for i in range(len(self.log))
            if self.radii[i] >= 0
        ]

    def summary(self) -> list[dict[str, Any]]:
        keys = int((self.radii >= 0).sum())
        return [{"kind": self.kind, "site": self.site, "edits": len(self.log), "keys": keys}]

    def config(self) -> dict[str, Any]:
        return {"site": self.site, "settings": dict(self.settings), "log": [asdict(edit) for edit in self.log]}

    def tensors(self) -> dict[str, Tensor]:
        return {"queries": self.queries, "values": self.values, "radii": self.radii, "owner": self.owner}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(config["site"], config["settings"], tuple(Logged(**edit) for edit in config["log"]), **tensors)


@dataclass(frozen=True, kw_only=True)
class KeyedMethod(Method):
    """Places an edit in the codebook by the rule, and trains what shall answer for it; no weight changes."""

    family: ClassVar[str] = "codebook"
    needs_prepare: ClassVar[bool] = True
    book: ClassVar[type[Codebook]]

    layer: int | None = setting(None)
    stop: float = setting(0.02, "loss of a token of the answer below which an edit is done; released codes: none")
    texts: int = setting(512, "openings of texts that are told apart")
    share: float = setting(1e-3, "of pairs of different texts, that look like the same question")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1 or self.texts < 2:
            raise BadInput(f"{self.name} needs a share from 0 to 1 and two texts; found {self.share} and {self.texts}")

    @abstractmethod
    def reach(self, quantiles: Tensor) -> dict[str, float]:
        """What the rule needs of the model, from how far its queries of different texts are apart."""

    @abstractmethod
    def rule(self) -> dict[str, Any]:
        """The settings that go into the codebook."""

    @abstractmethod
    def default_layer(self, depth: int) -> int: ...

    def measured(self, lm: HFLM, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """More of what ``prepare`` is to find out, given its texts (ids)."""
        return {}

    @abstractmethod
    def _trained(
        self, lm: HFLM, old: Codebook, log: Sequence[Logged], queries: Tensor, outs: Tensor, state: State
    ) -> Codebook:
        """``old`` with more edits, placed and trained; ``queries`` (n, f) and ``outs`` (n, d) are of their prompts."""

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """How far queries of different texts are apart: openings of sentences of the texts given, else of the corpus
        that goes with the model, else of text sampled from it."""
        lm.check()
        at = self._layer(lm)
        texts = openings(lm, texts_of(lm, data, self.seed), self.texts, self.seed)
        prompts = [lm.tokens.prompt(text) for text in texts]
        if len(prompts) < 2:
            raise BadInput("fewer than two different texts to tell queries apart by; give more, of four tokens or more")
        book = self.book.empty(lm.sites.prompt_stack.mlp_out[at], self.rule(), 0, 0)
        queries, outs = read(lm, book, prompts)
        pairs = self.book.alike(queries.double())[*torch.triu_indices(len(prompts), len(prompts), 1)]
        order = pairs.sort().values
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": f"how far queries of {len(prompts)} texts are apart",
            "method": self.name,
            "layer": at,
            "size": float(outs.square().mean().sqrt()),
            **self.measured(lm, prompts),
        }
        return State({"apart": order[torch.linspace(0, len(order) - 1, GRID).long()].float()}, info)

    def resolve(self, lm: HFLM, state: State) -> Self:
        layer = self._layer(lm)
        state.check_for(method=self.name, layer=layer)
        rule = self.reach(state.tensors["apart"])
        reach = {name: value if getattr(self, name) is None else getattr(self, name) for name, value in rule.items()}
        return replace(self, layer=layer, **reach)

    def _layer(self, lm: HFLM) -> int:
        depth = lm.sites.prompt_stack.depth
        layer = max(0, min(self.default_layer(depth), depth - 2)) if self.layer is None else self.layer
        if layer >= depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {depth - 1}; found {layer}")
        return layer

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        old = self._before(lm, prior)
        log = [
            Logged(e.id, e.prompt, lm.tokens.target(e.prompt, e.target_new), lm.tokens.prompt(e.prompt)) for e in edits
        ]
        with prior.swap(old, None).without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            queries, outs = read(edited, old, [edit.asked for edit in log])
            book = self._trained(edited, old, log, queries, outs, state)
        return prior.swap(old, book)

    def _before(self, lm: HFLM, prior: Patch) -> Codebook:
        """The codebook in ``prior`` that these edits go into, or an empty one."""
        assert self.layer is not None
        site, rule = lm.sites.prompt_stack.mlp_out[self.layer], self.rule()
        for book in prior.of_kind(self.book):
            theirs = {"site": book.site, **book.settings}
            other = [name for name, value in {"site": site, **rule}.items() if not close(theirs[name], value)]
            if other:
                raise BadInput(
                    f"the codebook in prior has {other[0]} = {theirs[other[0]]}, and this {self.name} "
                    f"{({'site': site} | rule)[other[0]]}; go on with the same settings"
                )
            return book
        d, f = weight_shape(lm, f"{site}.weight")
        return self.book.empty(site, rule, f if self.book.side == "in" else d, d)


@dataclass(frozen=True, kw_only=True)
class CodebookMethod(KeyedMethod):
    """Trains a value for each edit, which the layer says in the place of its own or beside it."""

    replace: Replace = setting("last", "released code of HoReN; of GRACE: last, prompt or all")
    init: Literal["cold", "warm"] = setting(
        "cold", "both released codes: uniform noise; warm: as the layer is without the edit"
    )
    steps: int = setting(100, above=0)
    lr: float | None = setting(
        None, "what the layer says (root mean square); papers: 1.0, values uniform in [0, 1) at first", above=0
    )

    def start(self, outs: Tensor, noise: Tensor) -> Tensor:
        """Where values begin, (n, d), given what the layer said and noise as large as that is."""
        return noise if self.init == "cold" else outs

    def resolve(self, lm: HFLM, state: State) -> Self:
        method = super().resolve(lm, state)
        return method if method.lr is not None else replace(method, lr=state.info["size"])

    def _trained(
        self, lm: HFLM, old: Codebook, log: Sequence[Logged], queries: Tensor, outs: Tensor, state: State
    ) -> Codebook:
        noise = torch.stack([drawn(self.seed, edit, outs[0]) for edit in log])
        book = old.longer(log, queries, self.start(outs, state.info["size"] * noise))
        return replace(book, values=self._values(lm, book, len(old.log)))

    def _values(self, lm: HFLM, book: Codebook, first: int) -> Tensor:
        """(n, d): the values with those from ``first`` on trained, together where they are of different entries."""
        values, left = book.values.clone(), list(range(first, len(book.log)))
        groups = {i: book.group(i) for i in left}
        while left:
            now = [i for i in left if not set(groups[i][:-1]) & set(left)]
            begin = values[[groups[i][-2:][0] for i in now]]  # an entry's value so far, or its own start
            values[now] = self._descend(lm, book, [[book.log[j] for j in groups[i]] for i in now], begin)
            left = [i for i in left if i not in now]
        return values

    def _descend(self, lm: HFLM, book: Codebook, wanted: Sequence[Sequence[Logged]], start: Tensor) -> Tensor:
        """(k, d): for each row of ``start`` a value with which the layer gives the wanted answers."""
        assert self.lr is not None
        rows = [row.clone().requires_grad_() for row in start]
        lengths = [sum(len(edit.asked) + len(edit.answer) for edit in its) for its in wanted]

        def losses(running: list[int]) -> Tensor:
            return _losses(lm, book, [wanted[i] for i in running], [rows[i] for i in running])

        for running in budgeted(lengths, lm.budget):
            descend([[row] for row in rows], running, losses, self.steps, self.lr, self.stop)
        return torch.stack(rows).detach()


def descend(
    leaves: Sequence[Sequence[Tensor]],
    running: list[int],
    losses: Callable[[list[int]], Tensor],
    steps: int,
    lr: float,
    stop: float,
    halve: int = 0,
) -> None:
    """Moves the leaves of those that are running, in place and each by its own loss, until that is below ``stop``.

    ``losses`` gives it for those still running; every ``halve`` steps the rate is halved.
    """
    adam = torch.optim.Adam([leaf for i in running for leaf in leaves[i]], lr=lr)
    for step in range(1, steps + 1):
        each = losses(running)
        gradients = iter(torch.autograd.grad(each.sum(), [leaf for i in running for leaf in leaves[i]]))
        high = (each >= stop).tolist()
        for i, far in zip(running, high, strict=True):
            for leaf in leaves[i]:
                gradient = next(gradients)
                leaf.grad = gradient if far else None  # what is done stays where it is
        running = [i for i, far in zip(running, high, strict=True) if far]
        if not running:
            break
        adam.step()
        if halve and step % halve == 0:
            for group in adam.param_groups:
                group["lr"] /= 2


def _losses(lm: HFLM, book: Codebook, wanted: Sequence[Sequence[Logged]], rows: Sequence[Tensor]) -> Tensor:
    """(k,): what the answers cost, a token, where row i is the value for all of ``wanted[i]``."""
    values = torch.stack([row for row, its in zip(rows, wanted, strict=True) for _ in its])  # (b, d)

    def speak(call: Call, x: Tensor, y: Tensor) -> Tensor:
        return book.put(call, y, values, torch.ones(len(y), dtype=torch.bool, device=y.device))

    with output_replaced(lm, book.site, speak):
        return costs(lm, wanted)


def costs(lm: HFLM, wanted: Sequence[Sequence[Logged]]) -> Tensor:
    """(k,): what the answers of each group of edits cost, a token; in one pass, a row for each edit."""
    flat = [edit for its in wanted for edit in its]
    of = torch.tensor([i for i, its in enumerate(wanted) for _ in its])
    logits = lm.target_logits([(edit.asked, edit.answer) for edit in flat])
    targets = torch.tensor([token for edit in flat for token in edit.answer], device=logits.device)
    each = token_losses(logits, targets).split([len(edit.answer) for edit in flat])
    losses = torch.stack([its.mean() for its in each]).cpu()
    return torch.zeros(len(wanted), dtype=losses.dtype).scatter_reduce(0, of, losses, "mean", include_self=False)


@torch.no_grad()
def read(lm: HFLM, book: Codebook, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """(n, f) queries of prompts (ids), as the codebook will make them, and (n, d) what the layer says at their ends."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in budgeted([len(prompt) for prompt in prompts], lm.budget):

        def keep(call: Call, x: Tensor, y: Tensor, batch: list[int] = batch) -> Tensor:
            assert call.prompt_end is not None
            h = at_least_float32(x if book.side == "in" else y)
            said = y[torch.arange(len(y), device=y.device), call.prompt_end.to(y.device)]
            found.update(
                zip(batch, zip(book.query(call, h).cpu(), at_least_float32(said).cpu(), strict=True), strict=True)
            )
            raise hooks.Stop

        try:
            with output_replaced(lm, book.site, keep):
                lm.target_logits([(prompts[i], [lm.tokens.fill]) for i in batch])
        except hooks.Stop:
            pass
    queries, outs = zip(*(found[i] for i in range(len(prompts))), strict=True)
    return torch.stack(queries), torch.stack(outs)


def drawn(seed: int, edit: Logged, like: Tensor) -> Tensor:
    """Uniform in [0, 1), the same for an edit whatever else is edited."""
    digest = hashlib.sha256(f"{seed} {edit.id}".encode()).hexdigest()
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(int(digest[:12], 16)), dtype=like.dtype)
