"""The hidden states that make a model say the new answers: those of many facts optimised at once.

For each fact, a vector δ added at the subject's last token (ROME, arXiv:2202.05262 eq. 4), to minimise

    mean over contexts of −log P[o* | x + p]  +  w_KL · KL(P_δ[· | "{s} is a"] ‖ P)  +  w_decay · ‖δ‖ / ‖v‖²

Each fact has its own loss, its own stop and its own projection; facts that are done leave the batch. A place of two
paths (PMET: down projection and attention) has a δ for each, side by side.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from errata.model import hooks, passes
from errata.model.hf import HFLM
from errata.model.passes import exact
from errata.types import Edit

ESSENCE = "{} is a"  # ROME's prompt for what the subject is
STUBBORN = 4  # a group is left when only this part of it still runs; what is left is gathered from all groups
BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, arXiv:1412.6980


class Objective(Protocol):
    """The settings that the search reads; ``lr`` is resolved."""

    eased: ClassVar[float]
    kl_stop: ClassVar[float | None]

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


@dataclass
class Found:
    """``delta`` (n, d), float32 or better; per fact the last ``loss``, the ``steps`` it took, whether it is ``done``.

    ``mean`` and ``square`` (n, d) are Adam's, so that a search can be left and taken up again.
    """

    delta: Tensor
    mean: Tensor
    square: Tensor
    loss: Tensor
    steps: Tensor
    done: Tensor

    @classmethod
    def nothing(cls, n: int, width: int, like: torch.dtype) -> "Found":
        zeros = torch.zeros(n, width, dtype=torch.promote_types(like, torch.float32))
        counts = torch.zeros(n)
        return cls(zeros, zeros.clone(), zeros.clone(), counts, counts.clone(), counts.bool())


def find_deltas(
    lm: HFLM,
    edits: Sequence[Edit],
    place: passes.InterventionSite,
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
    found = Found.nothing(len(edits), _width(lm) * len(place.paths(lm.sites)), lm.dtype)

    def search(facts: list[int], leave: int) -> None:
        its = _Search(lm, [rows[i] for i in facts], place, goal, plain, begun=bool(found.steps[facts].any()))
        its.run(found, facts, limits, units, leave)

    with hooks.frozen(lm.model):
        if plain:
            for i in range(len(rows)):
                search([i], 0)
            return found
        for group in _groups(rows, range(len(rows)), lm.budget):
            search(group, 0 if len(group) == len(rows) else len(group) // STUBBORN)
        left = [i for i in range(len(rows)) if not found.done[i]]
        for group in _groups(rows, left, lm.budget):  # the stubborn ones of all groups, together
            search(group, 0)
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


def _groups(rows: Sequence[Rows], facts: Iterable[int], budget: int) -> Iterator[list[int]]:
    """Those of the facts whose rows fit the token budget together, those with suffixes of like length side by side."""
    group: list[int] = []
    spent = 0
    for i in sorted(facts, key=lambda i: rows[i].suffix):
        if group and spent + rows[i].cost > budget:
            yield group
            group, spent = [], 0
        group.append(i)
        spent += rows[i].cost
    if group:
        yield group


def _width(lm: HFLM) -> int:
    from errata.patch.delta import weight_shape

    return weight_shape(lm, f"{lm.sites.mlp_out[0]}.weight")[0]


class _Search:
    """The search for one group of facts: Adam on each δ, a projection after each step.

    Its first loss is asked for at δ = 0, unless it was ``begun`` before.
    """

    def __init__(
        self,
        lm: HFLM,
        rows: Sequence[Rows],
        place: passes.InterventionSite,
        goal: Objective,
        plain: bool,
        begun: bool = False,
    ) -> None:
        self.goal, self.device, self.paths = goal, lm.device, len(place.paths(lm.sites))
        self.row_fact = [f for f, its in enumerate(rows) for _ in its.ids]
        self.columns = [columns for its in rows for columns in its.columns]
        entry_fact = [f for f, its in enumerate(rows) for _ in its.targets]
        self.entry_fact = torch.tensor(entry_fact, device=self.device)
        self.entry_target = torch.tensor([t for its in rows for t in its.targets], device=self.device)
        self.entry_weight = torch.tensor([w for its in rows for w in its.weights], device=self.device)
        self.entry_forward = torch.tensor([f for its in rows for f in its.forward], device=self.device)
        ids, at = [row for its in rows for row in its.ids], [a for its in rows for a in its.at]
        self.pass_ = lm.intervention(ids, at, place, self.columns, plain=plain)
        self.settled: Tensor | None = None  # (n,): whose answer is the arg-max and whose KL is small
        self.base: Tensor | None = None  # what the unedited model says, (entries without target, V): seen at δ = 0
        if begun:
            with torch.no_grad():
                logits = self.pass_.logits(None, self.columns)
            self.base = exact(logits[self.entry_target < 0]).log_softmax(-1)

    def losses(self, delta: Tensor, units: Tensor) -> Tensor:
        """(n,): each fact's loss at its δ."""
        logits = self.pass_.logits(delta[self.row_fact], self.columns)
        logp = exact(logits).log_softmax(-1)  # (entries, V)
        states = self.entry_target < 0
        kl = self._per_fact(states, self._divergence(logp[states]), len(delta))
        said = logp[~states]
        target = self.entry_target[~states, None]
        told = self._per_fact(~states, -said.gather(1, target)[:, 0], len(delta))
        if self.goal.kl_stop is not None:
            wrong = (said.detach().argmax(-1) != target[:, 0]).to(logp)
            right = self._per_fact(~states, wrong, len(delta)) == 0
            told = torch.where(right, self.goal.eased * told, told)
            self.settled = right & (kl.detach() <= self.goal.kl_stop)
        return told + kl + self.goal.decay * self._parts(delta).norm(dim=-1).sum(-1) / units**2

    def _divergence(self, logp: Tensor) -> Tensor:
        """(k,): how far the entries without a target are from what the unedited model says there."""
        if self.base is None:
            self.base = logp.detach()
        forward = self.entry_forward[self.entry_target < 0, None]
        from_, to = torch.where(forward, self.base, logp), torch.where(forward, logp, self.base)
        return (from_.exp() * (from_ - to)).sum(-1)

    def _per_fact(self, chosen: Tensor, each: Tensor, n: int) -> Tensor:
        """(n,): the weighted sum of some entries' values for each fact."""
        weighted = each * self.entry_weight[chosen]
        return torch.zeros(n, dtype=each.dtype, device=each.device).index_add(0, self.entry_fact[chosen], weighted)

    def _parts(self, delta: Tensor) -> Tensor:
        """(n, paths of the place, d)"""
        return delta.view(len(delta), self.paths, -1)

    def run(self, found: Found, group: Sequence[int], limits: Tensor, units: Tensor, leave: int) -> None:
        """Goes on with the facts of the group, until all are done or no more than ``leave`` of them run."""
        goal = self.goal
        assert goal.lr is not None
        delta, m, v = (x[list(group)].to(self.device) for x in (found.delta, found.mean, found.square))
        steps = found.steps[list(group)].to(delta)
        limits, units = limits[list(group)].to(delta), units[list(group)].to(delta)
        facts = torch.arange(len(group), device=self.device)  # that still run
        while True:
            its = delta[facts].requires_grad_()
            losses = self.losses(its, units[facts])
            steps[facts] += 1
            running = self._unmet(losses.detach()) & (steps[facts] < goal.steps)
            here = [group[f] for f in facts.tolist()]
            found.loss[here], found.done[here] = losses.detach().float().cpu(), ~running.cpu()
            if not running.any():
                break
            grad = torch.autograd.grad(losses.sum(), its)[0]
            if not running.all():
                facts, grad = facts[running], grad[running]
                self._leave(running)
            m[facts] = BETAS[0] * m[facts] + (1 - BETAS[0]) * grad
            v[facts] = BETAS[1] * v[facts] + (1 - BETAS[1]) * grad**2
            t = steps[facts, None]
            mean, square = m[facts] / (1 - BETAS[0] ** t), v[facts] / (1 - BETAS[1] ** t)
            moved = delta[facts] - goal.lr * mean / (square.sqrt() + EPS)
            length = self._parts(moved).norm(dim=-1, keepdim=True)
            within = (limits[facts, None, None] / length.clamp(min=1e-12)).clamp(max=1.0)
            delta[facts] = (self._parts(moved) * within).view_as(moved)
            if len(facts) <= leave:
                break
        found.delta[list(group)], found.mean[list(group)], found.square[list(group)] = delta.cpu(), m.cpu(), v.cpu()
        found.steps[list(group)] = steps.float().cpu()

    def _unmet(self, losses: Tensor) -> Tensor:
        """(n,): whose loss is too high still, unless (PMET) the answer is there and little else has moved."""
        high = losses >= self.goal.stop
        return high if self.settled is None else high & ~self.settled

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
