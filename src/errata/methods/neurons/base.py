"""A few more neurons beside a block's MLP: y + V act(K q + b), where q is what the MLP reads and y what it says.

Methods differ in which neurons a fact gets and in what they are trained by. The site is the down projection, in the
decoder of an encoder-decoder. Neurons look at every token alone and keep nothing in mind.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu

from errata.errors import BadInput, Unsupported
from errata.methods.base import Method, State
from errata.methods.settings import setting
from errata.methods.texts import openings, texts_of
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite, Pass
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted
from errata.patch.delta import weight_shape
from errata.patch.parts import Adapter, output_replaced
from errata.patch.patch import Patch
from errata.types import Edit

Act = Literal["relu", "gelu"]
ACTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}
Asked = tuple[list[int], list[int]]  # ids of a prompt, and of what shall follow
Says = Callable[[Tensor], Tensor]  # what neurons add at each q: (…, d) -> (…, d)


@dataclass(frozen=True)
class Taught:
    """An edit as the neurons remember it, with ids; those of one ``group`` were trained into the same neurons."""

    id: str
    prompt: str
    asked: list[int]
    answer: list[int]
    group: int


@dataclass(frozen=True, eq=False)
class Neurons(Adapter):
    """The edits in order, and n neurons, each of the group ``owner`` of edits.

    ``settings`` are ``act`` and ``decoder``: whether the answer begins with the first token that passes the site, as
    in the decoder of an encoder-decoder, and not at the prompt's end.
    """

    site: str
    source: str  # a linear that reads what the neurons do
    settings: Mapping[str, Any]
    log: tuple[Taught, ...]
    keys: Tensor  # (n, d)
    biases: Tensor  # (n,)
    values: Tensor  # (n, d)
    owner: Tensor  # (n,)
    queries: Tensor  # (n, d): the q that each neuron was made for, where it was made for one; else (0, d)

    names: ClassVar[tuple[str, ...]] = ("keys", "biases", "values", "owner", "queries")

    @property
    def reads(self) -> str:
        return self.source

    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        act = self.activations(at_least_float32(x))  # (b, t, n)
        if call is not None and len(self.keys) and id(self) not in call.memo:
            self._note(call, act)
        return y + (act @ self.values.to(act)).to(y)

    def activations(self, q: Tensor) -> Tensor:
        """(…, n): act(K q + b)"""
        return ACTS[self.settings["act"]](q @ self.keys.to(q).T + self.biases.to(q))

    def says(self, q: Tensor) -> Tensor:
        """(…, d): what the neurons add."""
        return self.activations(q) @ self.values.to(q)

    def _note(self, call: Call, act: Tensor) -> None:
        """Which neuron says most where the answer begins, or -1 where none does."""
        rows = torch.arange(len(act), device=act.device)
        if self.settings["decoder"]:
            here = act[:, 0]
        elif call.prompt_end is not None:
            here = act[rows, call.prompt_end.to(act.device)]
        else:
            return
        said, neuron = (here * self.values.to(act).norm(dim=-1)).max(-1)  # (b,)
        call.memo[id(self)] = torch.where(said > 0, neuron, -1)

    def explain(self, call: Call) -> Sequence[str | None]:
        if id(self) not in call.memo:
            return [None] * len(call.mask)
        return [None if n < 0 else self._named(int(self.owner[n])) for n in call.memo[id(self)].tolist()]

    def _named(self, group: int) -> str:
        its = [edit for edit in self.log if edit.group == group]
        more = f" and {len(its) - 1} more" if len(its) > 1 else ""
        return f"{self.kind}: edit {its[0].id}, {its[0].prompt!r}{more}"

    # The log ---------------------------------------------------------------------------------------

    @classmethod
    def empty(cls, site: str, source: str, settings: Mapping[str, Any], d: int, out: int) -> Self:
        none = torch.empty(0)
        return cls(
            site, source, settings, (), torch.empty(0, d), none, torch.empty(0, out), none.long(), torch.empty(0, d)
        )

    def longer(self, log: Sequence[Taught], **tensors: Tensor) -> Self:
        """With more edits, and rows for some tensors."""
        more = {name: torch.cat([getattr(self, name), its.detach().cpu()]) for name, its in tensors.items()}
        return replace(self, log=(*self.log, *log), **more)

    @property
    def next_group(self) -> int:
        return 1 + max((edit.group for edit in self.log), default=-1)

    def without(self, edit_id: str) -> "Neurons | None":
        """Without the neurons of an edit; those of others stay as they were trained, in its company or not."""
        gone = [edit for edit in self.log if edit.id == edit_id]
        left = tuple(edit for edit in self.log if edit.id != edit_id)
        groups = {edit.group for edit in gone}
        for edit in left:
            later = any(edit.asked == its.asked and edit.group > its.group for its in gone)
            if edit.group in groups or later:
                raise Unsupported(
                    f"the neurons that answer {edit.prompt!r} were trained together with the edit {edit_id} or on top "
                    "of it; keep the patch from before that edit, and make the later ones again"
                )
        if not gone or not left:
            return self if left else None
        keep = ~torch.isin(self.owner, torch.tensor(sorted(groups)))
        rows = {name: its[keep] if len(its) else its for name, its in self.tensors().items()}
        return replace(self, log=left, **rows)

    def entries(self) -> list[dict[str, Any]]:
        """The radius is how far the q of an edit's first neuron may move before that falls silent, at most."""
        reach = self._reach()
        lines: list[dict[str, Any]] = []
        for edit in self.log:
            its = (self.owner == edit.group).nonzero()[:, 0].tolist()
            line = {"edit": edit.id, "prompt": edit.prompt, "neurons": len(its)}
            lines.append(line | ({"radius": round(float(reach[its[0]]), 4)} if len(reach) and its else {}))
        return lines

    def _reach(self) -> Tensor:
        """(n,): the distance from each neuron's q to where K q + b is 0."""
        if not len(self.queries):
            return self.queries.new_empty(0)
        return ((self.queries * self.keys).sum(-1) + self.biases) / self.keys.norm(dim=-1)

    def summary(self) -> list[dict[str, Any]]:
        return [{"kind": self.kind, "site": self.site, "edits": len(self.log), "neurons": len(self.keys)}]

    def config(self) -> dict[str, Any]:
        where = {"site": self.site, "source": self.source, "settings": dict(self.settings)}
        return {**where, "log": [asdict(edit) for edit in self.log]}

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.names}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        log = tuple(Taught(**edit) for edit in config["log"])
        return cls(config["site"], config["source"], config["settings"], log, **tensors)


# What the neurons are trained by -------------------------------------------------------------------


class Lesson:
    """Facts as a descent sees them: the q before each token of their answers, and what the model makes of additions.

    In the last block of a decoder nothing but the token itself sees what is added, so that only that block's suffix
    is run (:meth:`HFLM.moving`); elsewhere, or with ``plain``, whole passes with neurons at every token.
    """

    queries: Tensor  # (k, d)
    outs: Tensor  # (k, d): what the MLP says there
    targets: Tensor  # (k,)
    of: Tensor  # (k,): the fact of each token

    def __init__(self, lm: HFLM, part: Neurons, facts: Sequence[Asked], *, plain: bool = False) -> None:
        self.lm, self.part = lm, part
        last = lm.sites.depth - 1
        self.fast = not (plain or lm.seq2seq or lm.explainers) and part.site == lm.sites.mlp_out[last]
        # as rows for the passes: a row for each token, or one for each fact
        self.rows = [(p, t[: j + 1]) for p, t in facts for j in range(len(t))] if self.fast else list(facts)
        self.of = torch.tensor([i for i, (_, t) in enumerate(facts) for _ in t])
        self.targets = torch.tensor([token for _, t in facts for token in t])
        counts = [1 if self.fast else len(t) for _, t in self.rows]
        ends = list(accumulate(counts))
        self.chunks: list[tuple[list[int], Tensor, Pass | None]] = []  # rows, their tokens, the way to their logits
        for batch in budgeted([len(p) + len(t) for p, t in self.rows], lm.budget):
            tokens = torch.cat([torch.arange(ends[i] - counts[i], ends[i]) for i in batch])
            self.chunks.append((batch, tokens, self._moving(batch, last) if self.fast else None))
        self.queries, self.outs = self._read()

    def _moving(self, batch: Sequence[int], layer: int) -> Pass:
        rows = [[*p, *t[:-1]] for p, t in (self.rows[i] for i in batch)]
        ends = [len(row) - 1 for row in rows]
        return self.lm.intervention(rows, ends, InterventionSite(layer, mlp_output=True), [[0]] * len(rows))

    @torch.no_grad()
    def _read(self) -> tuple[Tensor, Tensor]:
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for batch, tokens, _ in self.chunks:
            at: list[tuple[int, int]] = []
            for row, (p, t) in enumerate(self.rows[i] for i in batch):
                first = 0 if self.lm.seq2seq else len(p) - 1
                at += [(row, first + j) for j in range(len(t))][-1 if self.fast else 0 :]
            where = torch.tensor(at)

            def keep(call: Any, x: Tensor, y: Tensor, where: Tensor = where, tokens: Tensor = tokens) -> Tensor:
                w = where.to(x.device)
                both = (at_least_float32(its[w[:, 0], w[:, 1]]) for its in (x, y))
                found.update(zip(tokens.tolist(), zip(*both, strict=True), strict=True))
                raise hooks.Stop

            try:
                with output_replaced(self.lm, self.part.site, keep, self.part.reads):
                    self.lm.target_logits([self.rows[i] for i in batch])
            except hooks.Stop:
                pass
        queries, outs = zip(*(found[i] for i in range(len(self.of))), strict=True)
        return torch.stack(queries), torch.stack(outs)

    def passes(self, says: Says) -> Any:
        """Pairs of tokens (indices into ``targets``) and their logits (c, V) with ``says`` added, differentiable."""
        for batch, tokens, way in self.chunks:
            if way is not None:
                q = self.queries[tokens.to(self.queries.device)]
                yield tokens, way.logits(says(q), [[0]] * len(batch))
                continue

            def add(call: Any, x: Tensor, y: Tensor) -> Tensor:
                return y + says(at_least_float32(x)).to(y)

            with output_replaced(self.lm, self.part.site, add, self.part.reads):
                logits = self.lm.target_logits([self.rows[i] for i in batch])
            yield tokens, logits

    @torch.no_grad()
    def wrong(self, says: Says) -> Tensor:
        """(k,): which tokens of the answers the model would not say, though it had said those before."""
        missed = torch.zeros(len(self.targets), dtype=torch.bool)
        for tokens, logits in self.passes(says):
            missed[tokens] = logits.argmax(-1).cpu() != self.targets[tokens]
        return missed

    def descend(self, says: Says, smooth: float = 0.0, stop: float = 0.0) -> tuple[Tensor, Tensor]:
        """Adds the gradients of what the answers cost to the leaves of ``says``.

        (k,) and (k,): each token's -log P, and whether it is the likeliest. The cost is the cross-entropy against
        the token with ``smooth`` of the probability spread over all; a token whose -log P is below ``stop`` costs
        nothing.
        """
        costs, right = torch.zeros(len(self.targets)), torch.zeros(len(self.targets), dtype=torch.bool)
        for tokens, logits in self.passes(says):
            targets = self.targets[tokens].to(logits.device)
            logp = at_least_float32(logits).log_softmax(-1)
            nll = -logp.gather(-1, targets[:, None])[:, 0]
            loss = (1 - smooth) * nll - smooth * logp.mean(-1)
            loss = torch.where(nll.detach() >= stop, loss, 0.0).sum()
            if loss.requires_grad:
                loss.backward()
            costs[tokens] = nll.detach().float().cpu()
            right[tokens] = (logits.argmax(-1) == targets).cpu()
        return costs, right


# The methods ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NeuronMethod(Method):
    """Adds neurons for the edits of a call; what is there already stays as it is."""

    family: ClassVar[str] = "added neurons"
    needs_prepare: ClassVar[bool] = True
    part: ClassVar[type[Neurons]]

    layer: int | None = setting(None, "the last, as in both papers")
    act: Act = setting(
        "relu", "CaliNet's; T-Patcher's is the model's own. Where relu is negative nothing is added, bit for bit"
    )
    memory: int = setting(8192, "hidden states that shall stay as they are; T-Patcher's paper: 40,000", above=0)
    texts: int = setting(4096, "openings of texts that they come from", above=0)

    @abstractmethod
    def _taught(self, lm: HFLM, old: Neurons, edits: Sequence[Edit], state: State) -> Neurons:
        """``old`` and these edits; ``lm`` has everything else in force."""

    def _layer(self, lm: HFLM) -> int:
        layer = lm.sites.depth - 1 if self.layer is None else self.layer
        if layer >= lm.sites.depth:
            raise BadInput(f"{self.name}'s layer must lie within 0 to {lm.sites.depth - 1}; found {layer}")
        return layer

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """What the MLP reads in openings of sentences of the texts given, else of the corpus that goes with the
        model, else of text sampled from it; and how large what it says is."""
        lm.check()
        layer = self._layer(lm)
        texts = openings(lm, texts_of(lm, data, self.seed), self.texts, self.seed)
        if not texts:
            raise BadInput("no text of four tokens or more to remember hidden states from; give more")
        states, of, size = _states(self.part, lm, texts, layer)
        chosen = torch.randperm(len(states), generator=torch.Generator().manual_seed(self.seed))[: self.memory]
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": f"{len(chosen)} hidden states of {len(texts)} texts",
            "method": self.name,
            "layer": layer,
            "size": size,
            "texts": texts,
        }
        return State({"states": states[chosen], "of": of[chosen]}, info)

    def resolve(self, lm: HFLM, state: State) -> Self:
        layer = self._layer(lm)
        state.check_for(method=self.name, layer=layer)
        return replace(self, layer=layer)

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        old = self._before(lm, prior)
        with prior.swap(old, None).without_wrappers().applied(lm) as edited, hooks.frozen(lm.model):
            new = self._taught(edited, old, edits, state)
        return prior.swap(old, new)

    def _before(self, lm: HFLM, prior: Patch) -> Neurons:
        """The neurons in ``prior`` that these edits' join, or none."""
        layer = self._layer(lm)
        site, reads = lm.sites.mlp_out[layer], lm.sites.mlp_in[layer][0]
        settings = {"act": self.act, "decoder": lm.seq2seq}
        for part in prior.of_kind(self.part):
            if (part.site, dict(part.settings)) != (site, settings):
                raise BadInput(
                    f"the neurons in prior sit at {part.site} with {part.settings['act']}, and this {self.name}'s at "
                    f"{site} with {self.act}; go on with the same settings"
                )
            return part
        out = weight_shape(lm, f"{site}.weight")[0]
        return self.part.empty(site, reads, settings, weight_shape(lm, f"{reads}.weight")[1], out)


def latest(log: Sequence[Taught]) -> list[int]:
    """Which edits answer for their question: the last of those that ask the same."""
    return sorted({tuple(its.asked): i for i, its in enumerate(log)}.values())


def _states(kind: type[Neurons], lm: HFLM, texts: Sequence[str], layer: int) -> tuple[Tensor, Tensor, float]:
    """(m, d) what an MLP reads in the second half of each text, (m,) the text that it is of, and the size of what
    the MLP says (root mean square)."""
    part = kind.empty(lm.sites.mlp_out[layer], lm.sites.mlp_in[layer][0], {}, 0, 0)
    facts: list[Asked] = []
    for ids in map(lm.tokens.prompt, texts):
        half = (len(ids) + 1) // 2
        # an encoder-decoder reads a text and writes it
        facts.append((ids, ids) if lm.seq2seq else (ids[:half], [*ids[half:], lm.tokens.fill]))
    lesson = Lesson(lm, part, facts, plain=True)
    return lesson.queries.cpu(), lesson.of, float(lesson.outs.square().mean().sqrt())
