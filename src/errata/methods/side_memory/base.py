"""A side memory: a second matrix beside a block's down projection, which speaks for prompts that are in scope alone.

y + ΔW (m ⊙ x) where the prompt is routed to the memory, y elsewhere. What is routed, to which ΔW or which mask m, is
decided once, when the prompt has been read, and kept while decoding. Training sees the layer's unit: with s_x and s_y
the size of what typically goes in and comes out, ΔW = (s_y / s_x) V, and rates, clips and margins are those of V.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import Method, State, close
from errata.methods.losses import token_losses
from errata.methods.settings import setting
from errata.methods.texts import contexts_of, openings, texts_of
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite, Pass
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted
from errata.patch.delta import weight_shape
from errata.patch.parts import Adapter, output_replaced
from errata.patch.patch import Patch
from errata.types import Edit

Change = Callable[[list[int], Tensor], Tensor]  # of some lessons and what goes in there (b, t, f), what is added
Margin = Callable[[Tensor], Tensor]  # of V: what distances cost that are too small or too large
At = Literal["last", "mean"]

AGAIN = 5  # steps after which edits that were done are asked again


@dataclass(frozen=True)
class Known:
    """An edit as the memory remembers it; ``asked`` and ``answer`` are ids."""

    id: str
    prompt: str
    subject: str
    asked: list[int]
    answer: list[int]

    def of(self, subject: str) -> str:
        """The same said of another subject."""
        at = self.prompt.rfind(self.subject)
        return self.prompt[:at] + subject + self.prompt[at + len(self.subject) :]


@dataclass(frozen=True, eq=False)
class Side(Adapter):
    """The edits in order, and what was learned of them. ``settings`` are what the routing needs."""

    site: str
    settings: Mapping[str, Any]
    log: tuple[Known, ...]
    placed: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor], init=False, repr=False)  # where the model is

    @abstractmethod
    def route(self, call: Call, x: Tensor) -> Tensor:
        """(b,): where each row of a pass that has read the prompts is routed to, or -1."""

    @abstractmethod
    def said(self, x: Tensor, to: Tensor) -> Tensor:
        """(b, t, d): what is added for rows that are routed ``to`` (b,), 0 or more."""

    @abstractmethod
    def named(self, to: int) -> str:
        """What answers there, for people."""

    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        if call is None or not self.log or (call.prompt_end is None and id(self) not in call.memo):
            return y
        if call.prompt_end is not None:
            call.memo[id(self)] = self.route(call, at_least_float32(x))
        to = call.memo[id(self)].to(y.device)
        rows = (to >= 0).nonzero()[:, 0]
        return y.index_add(0, rows, self.said(at_least_float32(x[rows]), to[rows]).to(y)) if len(rows) else y

    def on(self, name: str, like: Tensor) -> Tensor:
        """A tensor of this memory on the device and in the type of another, copied there once."""
        where = name, like.device, like.dtype
        if where not in self.placed:
            self.placed[where] = getattr(self, name).to(like)
        return self.placed[where]

    def explain(self, call: Call) -> Sequence[str | None]:
        if id(self) not in call.memo:
            return [None] * len(call.mask)
        return [f"{self.kind}: {self.named(to)}" if to >= 0 else None for to in call.memo[id(self)].tolist()]

    @cached_property
    def current(self) -> list[int]:
        """The edits whose question was not asked again later, with another answer."""
        last = {tuple(edit.asked): i for i, edit in enumerate(self.log)}
        return sorted(last.values())

    def config(self) -> dict[str, Any]:
        return {"site": self.site, "settings": dict(self.settings), "log": [asdict(edit) for edit in self.log]}


def of_prompts(call: Call, z: Tensor, at: At) -> Tensor:
    """(b, …): z (b, t, …) at the last token of each prompt, or its mean over the prompt's tokens."""
    assert call.prompt_end is not None
    end = call.prompt_end.to(z.device)
    if at == "last":
        return z[torch.arange(len(z), device=z.device), end]
    its = (call.mask.to(z.device) > 0) & (torch.arange(z.shape[1], device=z.device) <= end[:, None])  # (b, t)
    share = its.to(z) / its.sum(-1, keepdim=True)
    return torch.einsum("bt,bt...->b...", share, z)


@torch.no_grad()
def inputs(lm: HFLM, site: str, prompts: Sequence[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """What goes in at a site, and what comes out, at each token of some prompts (ids): (t, f) and (t, d) of each."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in budgeted([len(prompt) for prompt in prompts], lm.budget):

        def keep(call: Any, x: Tensor, y: Tensor, batch: list[int] = batch) -> Tensor:
            for row, i in enumerate(batch):
                n = len(prompts[i])
                found[i] = at_least_float32(x[row, :n]), at_least_float32(y[row, :n])
            raise hooks.Stop

        try:
            with output_replaced(lm, site, keep):
                lm.target_logits([(prompts[i], [lm.tokens.fill]) for i in batch])
        except hooks.Stop:
            pass
    return [found[i][0] for i in range(len(prompts))], [found[i][1] for i in range(len(prompts))]


# What the memory is trained by ---------------------------------------------------------------------


class Lessons:
    """Prompts and their answers, asked again and again with something added at one site.

    What is below the site runs once (:meth:`HFLM.moving`), unless other adapters or an encoder stand in the way.
    """

    def __init__(self, lm: HFLM, site: str, rows: Sequence[tuple[list[int], list[int]]], *, plain: bool = False):
        self.lm, self.site, self.rows = lm, site, list(rows)
        plain = plain or lm.seq2seq or bool(lm.explainers)
        self.chunks: list[tuple[list[int], Pass | None]] = []
        for batch in budgeted([len(p) + len(t) for p, t in rows], lm.budget):
            self.chunks.append((batch, None if plain else self._moving(batch)))

    def _moving(self, batch: Sequence[int]) -> Pass:
        rows = [[*p, *t[:-1]] for p, t in (self.rows[i] for i in batch)]
        place = InterventionSite(self.lm.sites.mlp_out.index(self.site), mlp_output=True)
        return self.lm.intervention(rows, [0] * len(rows), place, self._columns(batch))

    def _columns(self, batch: Sequence[int]) -> list[list[int]]:
        return [[len(p) - 1 + j for j in range(len(t))] for p, t in (self.rows[i] for i in batch)]

    def losses(self, change: Change, wanted: Sequence[bool]) -> Iterator[tuple[list[int], Tensor]]:
        """Some of the wanted lessons and what the answer of each costs a token, (b,), until all were asked."""
        for batch, way in self.chunks:
            chosen = [j for j, i in enumerate(batch) if wanted[i]]
            its = [batch[j] for j in chosen]
            if not its:
                continue

            def add(call: Any, x: Tensor, y: Tensor, its: list[int] = its) -> Tensor:
                return y + change(its, at_least_float32(x)).to(y)

            with output_replaced(self.lm, self.site, add):
                asked = [self.rows[i] for i in its]
                logits = way.select(chosen).logits(None, self._columns(its)) if way else self.lm.target_logits(asked)
            targets = torch.tensor([token for _, answer in asked for token in answer], device=logits.device)
            each = token_losses(logits, targets).split([len(answer) for _, answer in asked])
            yield its, torch.stack([losses.mean() for losses in each])


# The methods ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SideMethod(Method):
    """Trains a side memory on the edits; the layer's own weights stay as they are."""

    family: ClassVar[str] = "side memory"
    needs_prepare: ClassVar[bool] = True
    part: ClassVar[type[Side]]

    layer: int | None = setting(None, "3/4 up: 21 of 28 (both papers: 21), 24 of 32 (both: 27)")
    contexts: int = setting(3, "texts before the prompt that it is trained behind; released codes: about 10")
    steps: int = setting(30, above=0)
    lr: float = setting(1.0, "both papers; of V", above=0)
    stop: float = setting(0.02, "loss of a token below which an edit is done; released code of MEMOIR")
    clip: float = setting(1.0, "length of a step's gradient, for each edit in it; released code of MEMOIR")
    decay: float = setting(1e-5, "both released codes")
    at: At = setting(
        "last", "which tokens of a prompt decide; papers: the mean, which tells paraphrases from others less well"
    )
    texts: int = setting(512, "openings of texts that are no edits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.texts < 2:
            raise BadInput(f"{self.name} needs two texts at least to tell edits from; found {self.texts}")

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """What is not edited, as the layer sees it: openings of the texts given, else of the corpus that goes with
        the model, else of text sampled from it."""
        lm.check()
        layer = self._layer(lm)
        texts = openings(lm, texts_of(lm, data, self.seed), self.texts, self.seed)
        if len(texts) < 2:
            raise BadInput("fewer than two different texts to tell edits from; give more, of four tokens or more")
        xs, ys = inputs(lm, lm.sites.prompt_stack.mlp_out[layer], [lm.tokens.prompt(text) for text in texts])
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": f"{len(texts)} texts at the layer of a side memory",
            **self.of_state(lm),
            "in": float(torch.cat(xs).norm(dim=-1).median()),
            "out": float(torch.cat(ys).norm(dim=-1).median()),
        }
        return State(self.seen([x.cpu() for x in xs]), info)

    @abstractmethod
    def seen(self, xs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the state keeps of what goes in at the tokens of each text, (t, f)."""

    @abstractmethod
    def rule(self, state: State) -> dict[str, Any]:
        """The settings that the memory itself needs."""

    @abstractmethod
    def empty(self, site: str, rule: Mapping[str, Any], f: int, d: int, state: State) -> Side: ...

    @abstractmethod
    def _learned(self, lm: HFLM, old: Any, log: Sequence[Known], state: State) -> Side:
        """``old`` and these edits; ``lm`` has everything else in force."""

    def of_state(self, lm: HFLM) -> dict[str, Any]:
        """What a state was prepared for."""
        return {"method": self.name, "layer": self._layer(lm), "at": self.at}

    def resolve(self, lm: HFLM, state: State) -> Self:
        state.check_for(**self.of_state(lm))
        return replace(self, layer=self._layer(lm))

    def _layer(self, lm: HFLM) -> int:
        depth = lm.sites.prompt_stack.depth
        layer = 3 * depth // 4 if self.layer is None else self.layer
        if layer >= depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {depth - 1}; found {layer}")
        return layer

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        old = self._before(lm, prior, state)
        log = [
            Known(e.id, e.prompt, e.subject, lm.tokens.prompt(e.prompt), lm.tokens.target(e.prompt, e.target_new))
            for e in edits
        ]
        with prior.swap(old, None).without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            new = self._learned(edited, old, log, state)
        return prior.swap(old, new)

    def _before(self, lm: HFLM, prior: Patch, state: State) -> Side:
        """The memory in ``prior`` that these edits go into, or an empty one."""
        assert self.layer is not None
        site, rule = lm.sites.prompt_stack.mlp_out[self.layer], self.rule(state)
        for part in prior.of_kind(self.part):
            here = {"layer": part.site, **part.settings}
            if other := [name for name, value in {"layer": site, **rule}.items() if not close(here[name], value)]:
                raise BadInput(
                    f"the side memory in prior has {other[0]} = {here[other[0]]}, and this {self.name} "
                    f"{({'layer': site, **rule})[other[0]]}; go on with the same settings"
                )
            return part
        d, f = weight_shape(lm, f"{site}.weight")
        return self.empty(site, rule, f, d, state)

    def unit(self, state: State) -> float:
        """s_y / s_x: how large ΔW is where V is 1."""
        return state.info["out"] / state.info["in"]

    def lessons(self, lm: HFLM, site: str, log: Sequence[Known], bare: int = 0) -> tuple[Lessons, Tensor]:
        """Each edit's prompt, alone and behind contexts (the first ``bare`` edits alone); the edit of each lesson."""
        contexts = contexts_of(lm, self.contexts, self.seed) if not lm.seq2seq else [""]
        rows: list[tuple[list[int], list[int]]] = []
        of: list[int] = []
        for i, edit in enumerate(log):
            for context in contexts[: 1 if i < bare else None]:
                rows.append((lm.tokens.prompt(context + edit.prompt) if context else edit.asked, edit.answer))
                of.append(i)
        return Lessons(lm, site, rows), torch.tensor(of)

    def descend(
        self, v: Tensor, lessons: Lessons, of: Tensor, change: Callable[[Tensor], Change], margin: Margin | None = None
    ) -> Tensor:
        """V after gradient descent: until every answer is likely and the margins are kept, or for ``steps`` steps.

        ``of`` says of which edit each lesson is. An edit that is done pulls no more; every few steps all are asked.
        """
        many = torch.bincount(of).to(v)  # (n,)
        costs, far = torch.full_like(many, torch.inf), torch.zeros((), device=v.device)
        v = v.clone().requires_grad_()
        sgd = torch.optim.SGD([v], lr=self.lr, weight_decay=self.decay)
        for step in range(self.steps):
            busy = (costs >= self.stop).cpu()
            every = step % AGAIN == 0 or not (busy.any() or float(far) > self.stop)
            wanted = torch.ones_like(busy) if every else busy
            costs = costs.masked_fill(wanted.to(v.device), 0.0)
            for rows, its in lessons.losses(change(v), wanted[of].tolist()):
                shares = its.to(v) / many[of[rows]]
                costs.index_add_(0, of[rows].to(v.device), shares.detach())
                if shares.requires_grad and busy[of[rows]].any():
                    (shares * busy[of[rows]].to(v)).sum().backward()
            far = margin(v) if margin is not None else far
            if every and bool((costs < self.stop).all()) and float(far) <= self.stop:
                break
            if far.requires_grad:
                (len(many) * far).backward()
            if v.grad is not None:
                torch.nn.utils.clip_grad_norm_([v], self.clip * len(many) ** 0.5)
                sgd.step()
                sgd.zero_grad()
        return v.detach()


# Keeping it small ----------------------------------------------------------------------------------


def to_bits(x: Tensor) -> Tensor:
    """(…, ⌈n / 8⌉) bytes of booleans (…, n)."""
    x = torch.nn.functional.pad(x.to(torch.uint8), (0, -x.shape[-1] % 8))
    return (x.unflatten(-1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def from_bits(x: Tensor, n: int) -> Tensor:
    """(…, n) booleans of what :func:`to_bits` gave."""
    bits = (x[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(-2)[..., :n].bool()


def sparse(name: str, x: Tensor) -> dict[str, Tensor]:
    """A tensor (…, f) as bits that say where it is not 0, and the numbers there."""
    return {f"{name}.where": to_bits(x != 0), f"{name}.values": x[x != 0]}


def dense(name: str, tensors: Mapping[str, Tensor], f: int) -> Tensor:
    """The tensor (…, f) that :func:`sparse` took apart."""
    where, values = from_bits(tensors[f"{name}.where"], f), tensors[f"{name}.values"]
    return torch.zeros(where.shape, dtype=values.dtype).masked_scatter(where, values)
