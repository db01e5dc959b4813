"""The search for the δ of a group of facts: Adam on each, a projection after each step.

Each fact has its own loss, its own stop and its own projection; finished facts leave the batch. A target site of two
paths (PMET: down projection and attention) has a δ for each, side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.methods.closed_form.objective import Entries, FactRows, TargetSettings
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite
from errata.model.passes import at_least_float32

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, arXiv:1412.6980


@dataclass
class SearchResult:
    """For each fact ``delta`` (n, d), float32 or better, ``final_loss``, ``steps`` taken, and if it is ``finished``:
    because what is searched for was ``met``, or for want of steps.

    ``adam_mean`` and ``adam_square`` (n, d) are Adam's moments, so that a search can be left and taken up again.
    """

    delta: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    final_loss: Tensor
    steps: Tensor
    finished: Tensor
    met: Tensor

    @classmethod
    def start(cls, n: int, width: int, like: torch.dtype) -> "SearchResult":
        """δ = 0 for ``n`` facts, in ``like`` or float32 where that is finer."""
        dtype = torch.promote_types(like, torch.float32)
        zeros, counts = torch.zeros(n, width, dtype=dtype), torch.zeros(n, dtype=dtype)
        return cls(zeros, zeros.clone(), zeros.clone(), counts, counts.clone(), counts.bool(), counts.bool())

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
            self.base = at_least_float32(logits[self.entries.anchored]).log_softmax(-1)

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
            missed = self._missed(losses.detach())
            running = missed & (state.steps[facts] < settings.steps)
            state.final_loss[facts], state.finished[facts] = losses.detach().to(state.final_loss), ~running
            state.met[facts] = ~missed & losses.detach().isfinite()
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
        """(n,): each fact's loss at its δ; ``units`` (n, paths) are the decay's ‖v‖."""
        logits = self.pass_.logits(delta[self.row_fact], self.columns)
        logp, anchored = at_least_float32(logits).log_softmax(-1), self.entries.anchored  # (entries, V)
        kl = self.entries.per_fact(anchored, self._divergence(logp[anchored]), len(delta))
        nll = self._answer_loss(logp[~anchored], kl.detach())
        return nll + kl + self.settings.decay * (self._parts(delta).norm(dim=-1) / units**2).sum(-1)

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
        assert self.base is not None
        kept, number = facts.tolist(), (facts.cumsum(0) - 1).tolist()
        rows = [row for row, fact in enumerate(self.row_fact) if kept[fact]]
        anchored = self.entries.anchored
        self.base = self.base[self.entries.keep(facts)[anchored]]
        self.columns = [self.columns[row] for row in rows]
        self.row_fact = [number[self.row_fact[row]] for row in rows]
        self.pass_ = self.pass_.select(rows)
