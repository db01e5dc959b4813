"""The search for the δ of a group of facts: a step against each one's gradient, a projection after it.

Each fact has its own loss, its own stop and its own projection; finished facts leave the batch. A target site of two
paths (PMET: down projection and attention) has a δ for each, side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from errata.methods.closed_form.objective import Entries, FactRows, TargetSettings
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.intervention import Pass
from errata.model.passes import at_least_float32

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, arXiv:1412.6980
FALL = 0.7  # a normalised step, in lengths of the one before
LEAST = 1 / 7  # the shortest, in lengths of the first, but for those behind a loss that rose
NEAR = 20  # a loss this many times the one that ends the search is, as a rule, below that one a normalised step later,
FAST = 0.5  # where the last step left no more than this share of it
STILL, CLOSE = 0.85, 2  # a loss less than so many times that one, of which a step leaves this share, will not get there
SURE = log(2)  # a loss below which the answer is more likely than all others together


@dataclass
class SearchResult:
    """For each fact ``delta`` (n, d), float32 or better, ``final_loss``, ``steps`` taken, and if it is ``finished``:
    because what is searched for was ``met``, for want of steps, or as its loss hardly fell any more near its end.

    ``adam_mean`` and ``adam_square`` (n, d) are Adam's moments, so that a search can be left and taken up again; (n, 0)
    where another optimizer steps. ``length`` is of the next normalised step, in lengths of the first. ``left`` is the
    share of its loss that the last step left.
    """

    delta: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    length: Tensor
    left: Tensor
    final_loss: Tensor
    steps: Tensor
    finished: Tensor
    met: Tensor

    @classmethod
    def start(cls, n: int, width: int, like: torch.dtype, optimizer: str = "adam") -> "SearchResult":
        """δ = 0 for ``n`` facts, in ``like`` or float32 where that is finer."""
        dtype = torch.promote_types(like, torch.float32)
        counts, moments = torch.zeros(n, dtype=dtype), torch.zeros(n, width if optimizer == "adam" else 0, dtype=dtype)
        zeros = torch.zeros(n, width, dtype=dtype)
        nothing = counts.bool()
        return cls(
            zeros,
            moments,
            moments.clone(),
            counts + 1,
            counts.clone(),
            counts,
            counts.clone(),
            nothing,
            nothing.clone(),
        )

    def of(self, facts: Sequence[int], device: torch.device) -> "SearchResult":
        """A copy of some facts' entries, on a device."""
        chosen = list(facts)
        return SearchResult(*(values[chosen].to(device) for values in vars(self).values()))

    def put(self, facts: Sequence[int], result: "SearchResult") -> None:
        """Takes over the entries of some facts."""
        for values, others in zip(vars(self).values(), vars(result).values(), strict=True):
            values[list(facts)] = others.to(values.device)

    def step(self, facts: Tensor, gradient: Tensor, settings: TargetSettings) -> None:
        """Moves δ of ``facts`` against their ``gradient`` (k, d): a shorter way where the loss has risen.

        ``steps`` have been counted already.
        """
        assert settings.lr is not None
        if settings.optimizer == "adam":
            moved = settings.lr * self._adam(facts, gradient)
        else:
            length = torch.where(self.left[facts] > 1, self.length[facts] / 2, self.length[facts])
            moved = settings.lr * gradient.shape[1] ** 0.5 * length[:, None] * _unit(gradient)
            self.length[facts] = torch.minimum(length, (length * FALL).clamp(min=LEAST))
        self.delta[facts] = self.delta[facts] - moved

    def _adam(self, facts: Tensor, gradient: Tensor) -> Tensor:
        m, v, t = self.adam_mean, self.adam_square, self.steps[facts, None]
        m[facts] = BETAS[0] * m[facts] + (1 - BETAS[0]) * gradient
        v[facts] = BETAS[1] * v[facts] + (1 - BETAS[1]) * gradient**2
        m_hat, v_hat = m[facts] / (1 - BETAS[0] ** t), v[facts] / (1 - BETAS[1] ** t)
        return m_hat / (v_hat.sqrt() + EPS)


def _unit(gradient: Tensor) -> Tensor:
    """(k, d), each of length 1, or 0 where the gradient is."""
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / gradient.abs().amax(1, keepdim=True).clamp(min=tiny)  # squares of small numbers vanish
    return scaled / scaled.norm(dim=1, keepdim=True).clamp(min=tiny)


@dataclass
class Batch:
    """Rows of a group's facts: the ``pass_`` over them, their ``columns``, whose each is, and their entries.

    ``base`` (anchored entries, V) are log-probabilities of the unedited model; None where no entry is held to them.
    """

    pass_: Pass
    columns: list[list[int]]
    row_fact: list[int]
    entries: Entries
    base: Tensor | None = None

    def logp(self, delta: Tensor | None) -> Tensor:
        """(entries, V): log-probabilities, with each row's δ of ``delta`` (n, d)."""
        logits = self.pass_.logits(None if delta is None else delta[self.row_fact], self.columns)
        return at_least_float32(logits).log_softmax(-1)

    def select(self, rows: Sequence[int]) -> "Batch":
        """Some of the rows, in their order; facts keep their numbers."""
        columns, row_fact = [self.columns[row] for row in rows], [self.row_fact[row] for row in rows]
        kept = self.entries.kept(rows)[self.entries.anchored]
        base = None if self.base is None or not kept.any() else self.base[kept]
        return Batch(self.pass_.select(rows), columns, row_fact, self.entries.of_rows(rows), base)

    def of_facts(self, facts: Tensor) -> "Batch":
        """The rows of facts that are True in ``facts`` (n,), which are then numbered from 0."""
        kept, number = facts.tolist(), (facts.cumsum(0) - 1).tolist()
        batch = self.select([row for row, fact in enumerate(self.row_fact) if kept[fact]])
        batch.row_fact = [number[fact] for fact in batch.row_fact]
        batch.entries.fact = (facts.cumsum(0) - 1)[batch.entries.fact]
        return batch

    def continuations(self) -> dict[int, list[int]]:
        """Fact -> its rows of continuations of the subject."""
        rows: dict[int, list[int]] = {}
        for row in sorted(set(self.entries.row[self.entries.forward].tolist())):
            rows.setdefault(self.row_fact[row], []).append(row)
        return rows

    @property
    def anchored(self) -> list[bool]:
        """Of each row, if it is held to the unedited model."""
        held = set(self.entries.row[self.entries.anchored].tolist())
        return [row in held for row in range(len(self.columns))]


class GroupSearch:
    """The search for one group of facts: steps on each δ, a projection after each.

    At δ = 0 nothing has moved yet, so that the answers alone count. A first step need not be exact either: normalised
    ones look there at the bare prompts (each fact's first row), and no search ends before all rows were asked.
    """

    def __init__(
        self, lm: HFLM, rows: Sequence[FactRows], site: InterventionSite, settings: TargetSettings, plain: bool
    ) -> None:
        self.settings, self.paths = settings, len(site.paths(lm.sites))
        columns = [columns for row in rows for columns in row.columns]
        ids, positions = [i for row in rows for i in row.ids], [p for row in rows for p in row.positions]
        held = [h for row in rows for h in row.held]
        pass_ = lm.intervention(ids, positions, site, columns, plain=plain, held=held, packed=True)
        self.batch = Batch(
            pass_, columns, [fact for fact, row in enumerate(rows) for _ in row.ids], Entries.of(rows, lm.device)
        )
        self.reached: Tensor | None = None  # (n,): whose answer is the arg-max and whose KL is small (PMET)
        held = [row for row, anchored in enumerate(self.batch.anchored) if anchored]
        with torch.no_grad():
            self.batch.base = self.batch.select(held).logp(None) if held else None

    def run(self, state: SearchResult, limits: Tensor, units: Tensor, leave: int) -> SearchResult:
        """Goes on with ``state``, until all facts are finished or no more than ``leave`` of them run."""
        settings = self.settings
        limits, units = limits.to(state.delta), units.to(state.delta)
        facts = torch.arange(len(state.delta), device=state.delta.device)  # that still run
        while True:
            first = not state.steps.any() and settings.steps > 1
            batch = self._first() if first else self._some(state.steps[facts].int().tolist())
            some = first and len(batch.columns) < self.batch.anchored.count(False)
            if not first:
                facts, batch = self._without_met(state, facts, units, batch)
                if not len(facts):
                    break
            delta = state.delta[facts].requires_grad_()
            losses = self.losses(delta, units[facts], batch)
            missed = self._missed(losses.detach())
            running = self._look(state, facts, losses.detach(), missed, missed | some)
            if not running.any():
                break
            (gradient,) = torch.autograd.grad(losses.sum(), delta)
            if not running.all():
                facts, gradient, missed = (x[running] for x in (facts, gradient, missed))
                self._keep(running)
            if missed.any():
                moving = facts[missed]
                state.step(moving, gradient[missed], settings)
                state.delta[moving] = self._within(state.delta[moving], limits[moving])
            if len(facts) <= leave:
                break
        return state

    def _look(self, state: SearchResult, facts: Tensor, losses: Tensor, missed: Tensor, go_on: Tensor | bool) -> Tensor:
        """(k,): which of ``facts`` run still, after a look that found these ``losses`` (k,) has been counted."""
        counted = state.steps[facts] > 1  # the first look is of fewer rows
        state.left[facts] = torch.where(counted, losses.to(state.left) / state.final_loss[facts], 0.0)
        state.steps[facts] += 1
        running = (state.steps[facts] < self.settings.steps) & go_on & ~self._still(state.left[facts], losses)
        state.final_loss[facts], state.finished[facts] = losses.to(state.final_loss), ~running
        state.met[facts] = ~missed & losses.isfinite()
        return running

    def _still(self, left: Tensor, losses: Tensor) -> Tensor:
        """(k,): which ``losses`` are near the one that ends the search, and hardly fell: a ``left`` share stayed.

        Of answers that are sure: where ``stop`` is large, a search may rest for a step long before its end.
        """
        if self.settings.optimizer != "normalised":
            return torch.zeros_like(losses, dtype=torch.bool)
        return (left > STILL) & (left <= 1) & (losses < min(CLOSE * self.settings.stop, SURE))

    def _without_met(self, state: SearchResult, facts: Tensor, units: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """The facts and rows of a look, without those that it ends: found without a graph, where that is likely."""
        last = state.steps[facts] + 1 >= self.settings.steps
        left, loss = state.left[facts], state.final_loss[facts]
        near = (loss < NEAR * self.settings.stop) & ((left < FAST) | (left * loss < self.settings.stop))
        likely = last | near if self.settings.optimizer == "normalised" else last
        if not likely.any():
            return facts, batch
        asked = facts[likely]
        with torch.no_grad():
            losses = self.losses(state.delta[asked], units[asked], batch if likely.all() else batch.of_facts(likely))
        missed = self._missed(losses)
        ended = ~missed | last[likely]
        if not ended.any():
            return facts, batch
        self._look(state, asked[ended], losses[ended], missed[ended], False)
        left = torch.ones_like(likely)
        left[likely] = ~ended
        whole = batch is self.batch
        self._keep(left)
        return facts[left], self.batch if whole else batch.of_facts(left)

    def _first(self) -> Batch:
        """The rows that the first step looks at: of answers, and of those the bare prompts where that is enough."""
        answers = [row for row, anchored in enumerate(self.batch.anchored) if not anchored]
        if self.settings.optimizer == "adam":
            return self.batch.select(answers)
        firsts = {self.batch.row_fact[row]: row for row in reversed(answers)}
        batch = self.batch.select(sorted(firsts.values()))
        entries = batch.entries
        whole = entries.per_fact(~entries.anchored, torch.ones_like(entries.weight), max(firsts) + 1)
        entries.weight = entries.weight / whole[entries.fact]
        return batch

    def _some(self, steps: Sequence[int]) -> Batch:
        """All rows, but of each fact's continuations only those whose turn it is, which weigh as much as all.

        ``steps`` (n) are those that each fact has taken, so that whose turn it is does not depend on the group.
        """
        at_once, rows = self.settings.preserve_at_once, self.batch.continuations()
        if all(len(some) <= at_once for some in rows.values()):
            return self.batch
        left_out = {row for some in rows.values() for row in some}
        for fact, some in rows.items():
            left_out -= {some[(steps[fact] * at_once + i) % len(some)] for i in range(at_once)}
        batch = self.batch.select([row for row in range(len(self.batch.columns)) if row not in left_out])
        entries, scale = batch.entries, torch.ones(max(self.batch.row_fact) + 1)
        scale[list(rows)] = torch.tensor([max(1.0, len(some) / at_once) for some in rows.values()])
        entries.weight = torch.where(
            entries.forward, entries.weight * scale.to(entries.weight)[entries.fact], entries.weight
        )
        return batch

    def losses(self, delta: Tensor, units: Tensor, batch: Batch | None = None) -> Tensor:
        """(n,): each fact's loss at its δ, by all rows or a ``batch``; ``units`` (n, paths) are the decay's ‖v‖."""
        batch = batch or self.batch
        logp, anchored = batch.logp(delta), batch.entries.anchored  # (entries, V)
        kl = batch.entries.per_fact(anchored, self._divergence(logp[anchored], batch), len(delta))
        nll = self._answer_loss(logp[~anchored], kl.detach(), batch.entries)
        return nll + kl + self.settings.decay * (self._parts(delta).norm(dim=-1) / units**2).sum(-1)

    def _answer_loss(self, logp: Tensor, kl: Tensor, entries: Entries) -> Tensor:
        """(n,): −log P of the answers; ``logp`` (entries with a target, V). PMET's weight and stop are decided here."""
        with_target, n = ~entries.anchored, len(kl)
        target = entries.target[with_target, None]
        nll = entries.per_fact(with_target, -logp.gather(1, target)[:, 0], n)
        if self.settings.kl_stop is None:
            return nll
        wrong = (logp.detach().argmax(-1) != target[:, 0]).to(logp)
        is_argmax = entries.per_fact(with_target, wrong, n) == 0
        self.reached = is_argmax & (kl <= self.settings.kl_stop)
        return torch.where(is_argmax, self.settings.argmax_weight * nll, nll)

    def _divergence(self, logp: Tensor, batch: Batch) -> Tensor:
        """(k,): the KL between the anchored entries and the unedited model."""
        base, entries = batch.base, batch.entries
        if base is None or not len(logp):
            return logp.new_zeros(len(logp))
        forward = entries.forward[entries.anchored, None]
        p, q = torch.where(forward, base, logp), torch.where(forward, logp, base)
        return (p.exp() * (p - q)).sum(-1)

    def _parts(self, delta: Tensor) -> Tensor:
        """(n, paths of the site, d)"""
        return delta.view(len(delta), self.paths, -1)

    def _within(self, delta: Tensor, limits: Tensor) -> Tensor:
        """δ with each of its parts no longer than its entry of ``limits`` (n, paths)."""
        length = self._parts(delta).norm(dim=-1, keepdim=True)
        factor = (limits[..., None] / length.clamp(min=1e-12)).clamp(max=1.0)
        return (self._parts(delta) * factor).view_as(delta)

    def _missed(self, losses: Tensor) -> Tensor:
        """(n,): whose loss is too high still, unless (PMET) the answer is the arg-max and the KL is small."""
        high = losses >= self.settings.stop
        return high if self.reached is None else high & ~self.reached

    def _keep(self, facts: Tensor) -> None:
        """Keeps the rows and entries of the facts that are True in ``facts`` (n,)."""
        self.batch = self.batch.of_facts(facts)
