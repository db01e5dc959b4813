"""The hidden states with which a model gives the new answers, for many facts at once.

For each fact, a vector δ added at the subject's last token (ROME, arXiv:2202.05262 eq. 4), to minimise

    mean over contexts of −log P[o* | x + p]  +  w_KL · KL(P_δ[· | "{s} is a"] ‖ P)  +  w_decay · ‖δ‖ / ‖v‖²

Each fact has its own loss, its own stop and its own projection; finished facts leave the batch. A target site of two
paths (PMET: down projection and attention) has a δ for each, side by side.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from errata.methods.base import Method
from errata.methods.settings import setting
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.passes import InterventionSite, exact
from errata.patch.delta import weight_shape
from errata.types import Edit

ESSENCE = "{} is a"  # ROME's prompt for what the subject is
LAST_PART = 4  # a group is left when only a quarter of it still runs; the rest of all groups is searched together
BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, arXiv:1412.6980


@dataclass(frozen=True, kw_only=True)
class TargetSettings(Method):
    """The hyper-parameters that the search reads; ``lr`` is None until resolved."""

    argmax_weight: ClassVar[float] = 1.0  # of an answer's loss once it is the arg-max (PMET)
    kl_stop: ClassVar[float | None] = None  # the KL below which the search then ends (PMET)

    steps: int = setting(25, "MEMIT, appendix B", key="v_num_grad_steps", above=0)
    lr: float | None = setting(None, "RATE x length / √d", key="v_lr", above=0)
    clamp: float = setting(0.75, "x length of the hidden state; MEMIT, released code", key="clamp_norm_factor")
    kl: float = setting(0.0625, "ROME, released code", key="kl_factor")
    decay: float = setting(0.5, "ROME, released code", key="v_weight_decay")
    stop: float = setting(0.05, "loss that ends the search; ROME, released code")
    preserve: float = setting(
        0.0, "weight of keeping what the model says of the bare subject (8 is a good one); not in the papers"
    )
    preserve_samples: int = setting(8, "continuations of the subject, sampled from the unedited model")
    preserve_tokens: int = setting(9, "of each continuation")
    plain: bool = setting(False, "the reference: one fact at a time, full passes")


# What a fact's loss is made of ---------------------------------------------------------------------


@dataclass
class FactRows:
    """The token rows of one fact, and its entries: the positions whose next-token distribution is in the loss.

    Per row: ``ids``, the subject's last token ``position`` and the ``columns`` of its entries, counted from there. Per
    entry: the ``target`` token, or −1 where the distribution is held to the unedited model's; its ``weight``; and
    whether that is by KL(P ‖ P_δ) (``forward``) instead of KL(P_δ ‖ P).
    """

    ids: list[list[int]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    forward: list[bool] = field(default_factory=list)

    def add(
        self,
        ids: list[int],
        position: int,
        columns: list[int],
        targets: list[int],
        weight: float,
        forward: bool = False,
    ) -> None:
        """Adds a row with an entry at each of its ``columns``, which share ``weight``."""
        self.ids.append(ids)
        self.positions.append(position)
        self.columns.append([column - position for column in columns])
        self.targets += targets
        self.weights += [weight / len(columns)] * len(columns)
        self.forward += [forward] * len(columns)

    @property
    def cost(self) -> int:
        """Tokens of the padded rows."""
        return len(self.ids) * max(map(len, self.ids))

    @property
    def suffix(self) -> int:
        """Tokens from the subject's last one on, in the row that has most of them."""
        return max(len(row) - position for row, position in zip(self.ids, self.positions, strict=True))


def rows_of(lm: HFLM, edit: Edit, contexts: Sequence[str], settings: TargetSettings) -> FactRows:
    """The rows of one fact: its prompt after each context, the essence prompt, continuations of the subject."""
    rows, tokens = FactRows(), lm.tokens
    for context in contexts:
        text = context + edit.prompt
        prompt, target = tokens.prompt(text), tokens.target(text, edit.target_new)
        columns = list(range(len(prompt) - 1, len(prompt) + len(target) - 1))
        position = tokens.last_of_subject(text, edit.subject)
        rows.add(prompt + target[:-1], position, columns, target, 1 / len(contexts))
    if settings.kl:
        text = ESSENCE.format(edit.subject)
        prompt = tokens.prompt(text)
        rows.add(prompt, tokens.last_of_subject(text, edit.subject), [len(prompt) - 1], [-1], settings.kl)
    if settings.preserve:
        _add_continuations(lm, edit, settings, rows)
    return rows


def _add_continuations(lm: HFLM, edit: Edit, settings: TargetSettings, rows: FactRows) -> None:
    """Adds sampled continuations of the bare subject, without those that state the old answer."""
    subject = lm.tokens.prompt(edit.subject)
    sampled = lm.sample([edit.subject] * settings.preserve_samples, settings.preserve_tokens, seed=settings.seed)
    old = edit.target_true or lm.generate([edit.prompt], 8, until_answer=True)[0].strip(" .\n")
    kept = [ids for ids in sampled if ids and not (old and old.lower() in lm.tokens.decode(ids).lower())]
    position = len(subject) - 1
    for ids in kept:
        columns = list(range(position, position + len(ids)))
        weight = settings.preserve / len(kept)
        rows.add(subject + ids[:-1], position, columns, [-1] * len(ids), weight, forward=True)


# The search over all facts -------------------------------------------------------------------------


@dataclass
class SearchResult:
    """For each fact ``delta`` (n, d), float32 or better, ``final_loss``, ``steps`` taken, and if it is ``finished``.

    ``adam_mean`` and ``adam_square`` (n, d) are Adam's moments, so that a search can be left and taken up again.
    """

    delta: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    final_loss: Tensor
    steps: Tensor
    finished: Tensor

    @classmethod
    def start(cls, n: int, width: int, like: torch.dtype) -> "SearchResult":
        """δ = 0 for ``n`` facts, in ``like`` or float32 where that is finer."""
        dtype = torch.promote_types(like, torch.float32)
        zeros, counts = torch.zeros(n, width, dtype=dtype), torch.zeros(n, dtype=dtype)
        return cls(zeros, zeros.clone(), zeros.clone(), counts, counts.clone(), counts.bool())

    def of(self, facts: Sequence[int], device: torch.device) -> "SearchResult":
        """A copy of some facts' entries, on a device."""
        chosen = list(facts)
        return SearchResult(*(values[chosen].to(device) for values in vars(self).values()))

    def put(self, facts: Sequence[int], result: "SearchResult") -> None:
        """Takes over the entries of some facts."""
        for values, others in zip(vars(self).values(), vars(result).values(), strict=True):
            values[list(facts)] = others.to(values.device)

    def adam_step(self, facts: Tensor, gradient: Tensor, lr: float) -> None:
        """Moves δ of ``facts`` against their ``gradient`` (k, d); ``steps`` have been counted already."""
        m, v, t = self.adam_mean, self.adam_square, self.steps[facts, None]
        m[facts] = BETAS[0] * m[facts] + (1 - BETAS[0]) * gradient
        v[facts] = BETAS[1] * v[facts] + (1 - BETAS[1]) * gradient**2
        m_hat, v_hat = m[facts] / (1 - BETAS[0] ** t), v[facts] / (1 - BETAS[1] ** t)
        self.delta[facts] = self.delta[facts] - lr * m_hat / (v_hat.sqrt() + EPS)


def find_deltas(
    lm: HFLM,
    edits: Sequence[Edit],
    site: InterventionSite,
    contexts: Sequence[str],
    settings: TargetSettings,
    limits: Tensor,
    units: Tensor,
    *,
    plain: bool = False,
) -> SearchResult:
    """δ for every edit at ``site``, no longer than its entry of ``limits`` (n,); ``units`` (n,) are the decay's ‖v‖.

    ``plain`` is the reference: a fact at a time, full passes.
    """
    rows = [rows_of(lm, edit, contexts, settings) for edit in edits]
    result = SearchResult.start(len(edits), _hidden_width(lm) * len(site.paths(lm.sites)), lm.dtype)

    def search(facts: list[int], leave: int) -> None:
        resumed = bool(result.steps[facts].any())
        group = GroupSearch(lm, [rows[i] for i in facts], site, settings, plain, resumed=resumed)
        result.put(facts, group.run(result.of(facts, lm.device), limits[facts], units[facts], leave))

    with hooks.frozen(lm.model):
        if plain:
            for i in range(len(rows)):
                search([i], 0)
            return result
        for group in _groups(rows, range(len(rows)), lm.budget):
            search(group, 0 if len(group) == len(rows) else len(group) // LAST_PART)
        unfinished = [i for i in range(len(rows)) if not result.finished[i]]
        for group in _groups(rows, unfinished, lm.budget):  # those that groups were left with, together
            search(group, 0)
    return result


def _groups(rows: Sequence[FactRows], facts: Iterable[int], budget: int) -> Iterator[list[int]]:
    """Groups of facts whose rows fit the token budget together, those with suffixes of like length side by side."""
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


def _hidden_width(lm: HFLM) -> int:
    return weight_shape(lm, f"{lm.sites.mlp_out[0]}.weight")[0]


# The search of one group ---------------------------------------------------------------------------


@dataclass
class Entries:
    """The entries of a group's facts (see :class:`FactRows`), each (entries,): whose they are, and what they count."""

    fact: Tensor
    target: Tensor
    weight: Tensor
    forward: Tensor

    @classmethod
    def of(cls, rows: Sequence[FactRows], device: torch.device) -> "Entries":
        """All entries of the facts, in the order of their rows."""
        return cls(
            torch.tensor([fact for fact, row in enumerate(rows) for _ in row.targets], device=device),
            torch.tensor([target for row in rows for target in row.targets], device=device),
            torch.tensor([weight for row in rows for weight in row.weights], device=device),
            torch.tensor([forward for row in rows for forward in row.forward], device=device),
        )

    @property
    def anchored(self) -> Tensor:
        """(entries,): which have no target and are held to the unedited model."""
        return self.target < 0

    def per_fact(self, chosen: Tensor, values: Tensor, n: int) -> Tensor:
        """(n,): for each fact the weighted sum of the values of its ``chosen`` entries."""
        sums = torch.zeros(n, dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.fact[chosen], values * self.weight[chosen])

    def keep(self, facts: Tensor) -> Tensor:
        """Drops the entries of facts that are False in ``facts`` (n,), numbers the others anew; which were kept."""
        kept = facts[self.fact]
        number = facts.cumsum(0) - 1
        self.fact, self.target = number[self.fact[kept]], self.target[kept]
        self.weight, self.forward = self.weight[kept], self.forward[kept]
        return kept


class GroupSearch:
    """The search for one group of facts: Adam on each δ, a projection after each step.

    The first loss must be asked for at δ = 0, where the unedited model is seen, unless the search is ``resumed``.
    """

    def __init__(
        self,
        lm: HFLM,
        rows: Sequence[FactRows],
        site: InterventionSite,
        settings: TargetSettings,
        plain: bool,
        resumed: bool = False,
    ) -> None:
        self.settings, self.paths = settings, len(site.paths(lm.sites))
        self.row_fact = [fact for fact, row in enumerate(rows) for _ in row.ids]
        self.columns = [columns for row in rows for columns in row.columns]
        self.entries = Entries.of(rows, lm.device)
        ids, positions = [i for row in rows for i in row.ids], [p for row in rows for p in row.positions]
        self.pass_ = lm.intervention(ids, positions, site, self.columns, plain=plain)
        self.reached: Tensor | None = None  # (n,): whose answer is the arg-max and whose KL is small (PMET)
        self.base: Tensor | None = None  # (anchored entries, V): log-probabilities of the unedited model
        if resumed:
            with torch.no_grad():
                logits = self.pass_.logits(None, self.columns)
            self.base = exact(logits[self.entries.anchored]).log_softmax(-1)

    def run(self, state: SearchResult, limits: Tensor, units: Tensor, leave: int) -> SearchResult:
        """Goes on with ``state``, until all facts are finished or no more than ``leave`` of them run."""
        settings = self.settings
        assert settings.lr is not None
        limits, units = limits.to(state.delta), units.to(state.delta)
        facts = torch.arange(len(state.delta), device=state.delta.device)  # that still run
        while True:
            delta = state.delta[facts].requires_grad_()
            losses = self.losses(delta, units[facts])
            state.steps[facts] += 1
            running = self._missed(losses.detach()) & (state.steps[facts] < settings.steps)
            state.final_loss[facts], state.finished[facts] = losses.detach().to(state.final_loss), ~running
            if not running.any():
                break
            (gradient,) = torch.autograd.grad(losses.sum(), delta)
            if not running.all():
                facts, gradient = facts[running], gradient[running]
                self._keep(running)
            state.adam_step(facts, gradient, settings.lr)
            state.delta[facts] = self._within(state.delta[facts], limits[facts])
            if len(facts) <= leave:
                break
        return state

    def losses(self, delta: Tensor, units: Tensor) -> Tensor:
        """(n,): each fact's loss at its δ."""
        logits = self.pass_.logits(delta[self.row_fact], self.columns)
        logp, anchored = exact(logits).log_softmax(-1), self.entries.anchored  # (entries, V)
        kl = self.entries.per_fact(anchored, self._divergence(logp[anchored]), len(delta))
        nll = self._answer_loss(logp[~anchored], kl.detach())
        return nll + kl + self.settings.decay * self._parts(delta).norm(dim=-1).sum(-1) / units**2

    def _answer_loss(self, logp: Tensor, kl: Tensor) -> Tensor:
        """(n,): −log P of the answers; ``logp`` (entries with a target, V). PMET's weight and stop are decided here."""
        with_target, n = ~self.entries.anchored, len(kl)
        target = self.entries.target[with_target, None]
        nll = self.entries.per_fact(with_target, -logp.gather(1, target)[:, 0], n)
        if self.settings.kl_stop is None:
            return nll
        wrong = (logp.detach().argmax(-1) != target[:, 0]).to(logp)
        is_argmax = self.entries.per_fact(with_target, wrong, n) == 0
        self.reached = is_argmax & (kl <= self.settings.kl_stop)
        return torch.where(is_argmax, self.settings.argmax_weight * nll, nll)

    def _divergence(self, logp: Tensor) -> Tensor:
        """(k,): the KL between the anchored entries and the unedited model."""
        if self.base is None:
            self.base = logp.detach()
        forward = self.entries.forward[self.entries.anchored, None]
        p, q = torch.where(forward, self.base, logp), torch.where(forward, logp, self.base)
        return (p.exp() * (p - q)).sum(-1)

    def _parts(self, delta: Tensor) -> Tensor:
        """(n, paths of the site, d)"""
        return delta.view(len(delta), self.paths, -1)

    def _within(self, delta: Tensor, limits: Tensor) -> Tensor:
        """δ with each of its parts no longer than the fact's limit."""
        length = self._parts(delta).norm(dim=-1, keepdim=True)
        factor = (limits[:, None, None] / length.clamp(min=1e-12)).clamp(max=1.0)
        return (self._parts(delta) * factor).view_as(delta)

    def _missed(self, losses: Tensor) -> Tensor:
        """(n,): whose loss is too high still, unless (PMET) the answer is the arg-max and the KL is small."""
        high = losses >= self.settings.stop
        return high if self.reached is None else high & ~self.reached

    def _keep(self, facts: Tensor) -> None:
        """Keeps the rows and entries of the facts that are True in ``facts`` (n,)."""
        assert self.base is not None
        kept, number = facts.tolist(), (facts.cumsum(0) - 1).tolist()
        rows = [row for row, fact in enumerate(self.row_fact) if kept[fact]]
        anchored = self.entries.anchored
        self.base = self.base[self.entries.keep(facts)[anchored]]
        self.columns = [self.columns[row] for row in rows]
        self.row_fact = [number[self.row_fact[row]] for row in rows]
        self.pass_ = self.pass_.select(rows)
