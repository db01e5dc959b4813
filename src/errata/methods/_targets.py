"""The hidden states that make a model say the new answers: those of many facts optimised at once.

For each fact, a vector δ added at the subject's last token (ROME, arXiv:2202.05262 eq. 4), to minimise

    mean over contexts of −log P[o* | x + p]  +  w_KL · KL(P_δ[· | "{s} is a"] ‖ P)  +  w_decay · ‖δ‖ / ‖v‖²

Each fact has its own loss, its own stop and its own projection; facts that are done leave the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from errata import hooks, passes
from errata.lm import HFLM
from errata.passes import exact
from errata.types import Edit

ESSENCE = "{} is a"  # ROME's prompt for what the subject is
BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, arXiv:1412.6980


class Objective(Protocol):
    """The settings that the search reads; ``lr`` is resolved."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float | None: ...
    @property
    def kl(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def stop(self) -> float: ...
    @property
    def preserve(self) -> float: ...
    @property
    def preserve_samples(self) -> int: ...
    @property
    def preserve_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass
class Rows:
    """What is asked about one fact. An entry is a column of a row whose next token matters."""

    ids: list[list[int]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)  # the subject's last token in each row
    columns: list[list[int]] = field(default_factory=list)  # counted from there
    targets: list[int] = field(default_factory=list)  # per entry: the token to say, or -1
    weights: list[float] = field(default_factory=list)  # per entry
    forward: list[bool] = field(default_factory=list)  # per entry: KL(P ‖ P_δ) instead of KL(P_δ ‖ P)

    def add(
        self,
        ids: list[int],
        at: int,
        columns: list[int],
        targets: list[int],
        weight: float,
        forward: bool = False,
    ) -> None:
        self.ids.append(ids)
        self.at.append(at)
        self.columns.append([c - at for c in columns])
        self.targets += targets
        self.weights += [weight / len(columns)] * len(columns)
        self.forward += [forward] * len(columns)

    @property
    def cost(self) -> int:
        return len(self.ids) * max(map(len, self.ids))

    @property
    def suffix(self) -> int:
        return max(len(row) - a for row, a in zip(self.ids, self.at, strict=True))


@dataclass(frozen=True)
class Found:
    """``delta`` (n, d), float32 or better, on the CPU; per fact the last ``loss`` and the ``steps`` it took."""

    delta: Tensor
    loss: Tensor
    steps: Tensor


def find_deltas(
    lm: HFLM,
    edits: Sequence[Edit],
    place: passes.Place,
    contexts: Sequence[str],
    goal: Objective,
    limits: Tensor,
    units: Tensor,
    *,
    plain: bool = False,
) -> Found:
    """δ for every edit at ``place``, no longer than its entry of ``limits`` (n,); ``units`` (n,) are the decay's ‖v‖.

    ``plain`` is the reference: a fact at a time, full passes.
    """
    rows = [rows_of(lm, edit, contexts, goal) for edit in edits]
    n = len(edits)
    found = Found(exact(torch.zeros(n, _width(lm), dtype=lm.dtype)), torch.zeros(n), torch.zeros(n))
    groups = ([i] for i in range(len(rows))) if plain else _groups(rows, lm.budget)
    with hooks.frozen(lm.model):
        for group in groups:
            its = _Search(lm, [rows[i] for i in group], place, goal, plain).run(limits[group], units[group])
            found.delta[group], found.loss[group], found.steps[group] = its.delta, its.loss, its.steps
    return found


def rows_of(lm: HFLM, edit: Edit, contexts: Sequence[str], goal: Objective) -> Rows:
    """The rows of one fact: its prompt after each context, the essence prompt, and what is said of the subject."""
    rows, tokens = Rows(), lm.tokens
    for context in contexts:
        text = context + edit.prompt
        prompt, target = tokens.prompt(text), tokens.target(text, edit.target_new)
        columns = list(range(len(prompt) - 1, len(prompt) + len(target) - 1))
        at = tokens.last_of_subject(text, edit.subject)
        rows.add(prompt + target[:-1], at, columns, target, 1 / len(contexts))
    if goal.kl:
        text = ESSENCE.format(edit.subject)
        prompt = tokens.prompt(text)
        rows.add(prompt, tokens.last_of_subject(text, edit.subject), [len(prompt) - 1], [-1], goal.kl)
    if goal.preserve:
        _preserve(lm, edit, goal, rows)
    return rows


def _preserve(lm: HFLM, edit: Edit, goal: Objective, rows: Rows) -> None:
    """Continuations of the bare subject, without those that state the old answer."""
    start = lm.tokens.prompt(edit.subject)
    said = lm.sample([edit.subject] * goal.preserve_samples, goal.preserve_tokens, seed=goal.seed)
    old = edit.target_true or lm.generate([edit.prompt], 8, until_answer=True)[0].strip(" .\n")
    kept = [ids for ids in said if ids and not (old and old.lower() in lm.tokens.decode(ids).lower())]
    at = len(start) - 1
    for ids in kept:
        columns = list(range(at, at + len(ids)))
        rows.add(start + ids[:-1], at, columns, [-1] * len(ids), goal.preserve / len(kept), forward=True)


def _groups(rows: Sequence[Rows], budget: int) -> Iterator[list[int]]:
    """Facts whose rows fit the token budget together, those with suffixes of like length side by side."""
    group: list[int] = []
    spent = 0
    for i in sorted(range(len(rows)), key=lambda i: rows[i].suffix):
        if group and spent + rows[i].cost > budget:
            yield group
            group, spent = [], 0
        group.append(i)
        spent += rows[i].cost
    if group:
        yield group


def _width(lm: HFLM) -> int:
    from errata.patch import weight_shape

    return weight_shape(lm, f"{lm.sites.mlp_out[0]}.weight")[0]


class _Search:
    """The search for one group of facts: Adam on each δ, a projection after each step. It begins at δ = 0."""

    def __init__(self, lm: HFLM, rows: Sequence[Rows], place: passes.Place, goal: Objective, plain: bool) -> None:
        self.goal, self.n, self.width = goal, len(rows), _width(lm)
        self.device, self.dtype = lm.device, torch.promote_types(lm.dtype, torch.float32)
        self.row_fact = [f for f, its in enumerate(rows) for _ in its.ids]
        self.columns = [columns for its in rows for columns in its.columns]
        entry_fact = [f for f, its in enumerate(rows) for _ in its.targets]
        self.entry_fact = torch.tensor(entry_fact, device=self.device)
        self.entry_target = torch.tensor([t for its in rows for t in its.targets], device=self.device)
        self.entry_weight = torch.tensor([w for its in rows for w in its.weights], device=self.device)
        self.entry_forward = torch.tensor([f for its in rows for f in its.forward], device=self.device)
        ids, at = [row for its in rows for row in its.ids], [a for its in rows for a in its.at]
        self.pass_ = lm.moving(ids, at, place, self.columns, plain=plain)
        self.base: Tensor | None = None  # what the unedited model says, (entries without target, V): seen at δ = 0

    def losses(self, delta: Tensor, units: Tensor) -> Tensor:
        """(n,): each fact's loss at its δ."""
        logits = self.pass_.logits(delta[self.row_fact], self.columns)
        logp = exact(logits).log_softmax(-1)  # (entries, V)
        states = self.entry_target < 0
        each = torch.zeros(len(logp), dtype=logp.dtype, device=logp.device)
        said = -logp[~states].gather(1, self.entry_target[~states, None])[:, 0]
        if self.base is None:
            self.base = logp[states].detach()
        p, q = self.base, logp[states]  # unedited, edited
        forward = self.entry_forward[states, None]
        from_, to = torch.where(forward, p, q), torch.where(forward, q, p)
        kl = (from_.exp() * (from_ - to)).sum(-1)
        each = each.masked_scatter(~states, said).masked_scatter(states, kl) * self.entry_weight
        total = torch.zeros(len(delta), dtype=logp.dtype, device=logp.device).index_add(0, self.entry_fact, each)
        return total + self.goal.decay * delta.norm(dim=-1) / units**2

    def run(self, limits: Tensor, units: Tensor) -> Found:
        goal, n = self.goal, self.n
        assert goal.lr is not None
        delta, m, v = (torch.zeros(n, self.width, dtype=self.dtype, device=self.device) for _ in range(3))
        limits, units = limits.to(delta), units.to(delta)
        loss_of, steps_of = torch.zeros(n), torch.zeros(n)
        facts = torch.arange(n, device=self.device)  # that still run
        for step in range(1, goal.steps + 1):
            its = delta[facts].requires_grad_()
            losses = self.losses(its, units[facts])
            loss_of[facts.cpu()], steps_of[facts.cpu()] = losses.detach().float().cpu(), float(step)
            running = losses.detach() >= goal.stop
            if step == goal.steps or not running.any():
                break
            grad = torch.autograd.grad(losses.sum(), its)[0]
            if not running.all():
                facts, grad = facts[running], grad[running]
                self._leave(running)
            m[facts] = BETAS[0] * m[facts] + (1 - BETAS[0]) * grad
            v[facts] = BETAS[1] * v[facts] + (1 - BETAS[1]) * grad**2
            mean, square = m[facts] / (1 - BETAS[0] ** step), v[facts] / (1 - BETAS[1] ** step)
            moved = delta[facts] - goal.lr * mean / (square.sqrt() + EPS)
            length = moved.norm(dim=-1, keepdim=True)
            delta[facts] = moved * (limits[facts, None] / length.clamp(min=1e-12)).clamp(max=1.0)
        return Found(delta.cpu(), loss_of, steps_of)

    def _leave(self, running: Tensor) -> None:
        """Keeps the rows and entries of the facts that run on."""
        keep = running.tolist()
        rows = [r for r, f in enumerate(self.row_fact) if keep[f]]
        number = (running.cumsum(0) - 1).tolist()
        entries = running[self.entry_fact]
        assert self.base is not None
        self.base = self.base[entries[self.entry_target < 0]]
        self.entry_target, self.entry_weight = self.entry_target[entries], self.entry_weight[entries]
        self.entry_forward = self.entry_forward[entries]
        self.entry_fact = torch.tensor([number[f] for f in self.entry_fact[entries].tolist()], device=self.device)
        self.columns = [self.columns[r] for r in rows]
        self.row_fact = [number[self.row_fact[r]] for r in rows]
        self.pass_ = self.pass_.select(rows)
