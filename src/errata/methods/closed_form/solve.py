"""One least-squares problem for every closed-form editor.

    minimise  Σᵢ ‖Δ kᵢ − rᵢ‖² + λ tr(Δ C Δᵀ)        Δ = R (λ I + KᵀX)⁻¹ Xᵀ,   X = C⁻¹K

for n new keys K (f, n), residuals R (d, n) and the second moment C (f, f) of keys that shall keep their values.
λ → 0 interpolates (Δ K = R: ROME and EMMET, arXiv:2202.05262 eq. 2, 2403.14236 eq. 5); λ > 0 is MEMIT
(arXiv:2210.07229 eq. 14). With a projector P onto the null space of C in the place of C⁻¹ it is AlphaEdit
(arXiv:2410.02355 eq. 12). Keys of earlier edits K_p join C as ``C + K_p K_pᵀ / λ``, whichever it is. What is factorised
for a batch is n x n (Woodbury).
"""

import torch
from torch import Tensor

from errata.patch.delta import LowRank


def exact_place(device: torch.device) -> torch.device:
    """Where float64 can be had: the device itself, or the CPU."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


def inverse_of(c: Tensor, ridge: float = 0.0) -> Tensor:
    """(C + ridge x its mean eigenvalue)⁻¹ (f, f), float64; at least so much ridge that there is an inverse."""
    c = c.double()
    ridge = max(ridge, 1e-9) * max(float(c.diagonal().mean()), torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
    factor, failed = torch.linalg.cholesky_ex(c + ridge * eye)
    while failed:  # float32 sums over fewer tokens than dimensions leave eigenvalues just below zero
        ridge *= 10
        factor, failed = torch.linalg.cholesky_ex(c + ridge * eye)
    return torch.cholesky_inverse(factor)


def null_projector(c: Tensor, share: float) -> Tensor:
    """P (f, f), float64: onto the directions of C's smallest eigenvalues that together hold ``share`` of their sum."""
    values, vectors = torch.linalg.eigh(c.double())  # rising
    values = values.clamp(min=0)
    kept = vectors[:, values.cumsum(0) <= share * values.sum()]
    return kept @ kept.T


def with_keys(inverse: Tensor, keys: Tensor, lam: float) -> Tensor:
    """(C + K Kᵀ / λ)⁻¹ from C⁻¹ and more keys (f, n): what is factorised is n x n."""
    keys = keys.to(inverse)
    known = inverse @ keys  # (f, n)
    inner = lam * torch.eye(keys.shape[1]).to(inverse) + keys.T @ known
    values, vectors = torch.linalg.eigh(inner)  # keys may coincide
    held = values > values[-1].clamp(min=1e-300) * 1e-12
    half = known @ (vectors[:, held] / values[held].sqrt())
    return inverse - half @ half.T


class Running:
    """An inverse that takes in the keys of a sequence of edits as they come: each step costs the same."""

    def __init__(self, start: Tensor):
        self.start = start
        self._forget(0.0)

    def _forget(self, lam: float) -> None:
        self.now, self.lam = self.start, lam
        self.seen: Tensor | None = None  # the memory that ``now`` stands for

    def after(self, keys: Tensor | None, gram: Tensor | None, lam: float) -> Tensor:
        """The inverse with what a patch remembers: keys (m, f), or their second moment (f, f)."""
        memory = keys if gram is None else gram
        if memory is None:
            self._forget(lam)
            return self.start
        n = 0 if self.seen is None else len(self.seen)
        if lam != self.lam or (self.seen is not None and not torch.equal(memory[:n], self.seen)):
            self._forget(lam)
            n = 0
        if gram is not None and self.seen is None:
            self.now = with_keys(self.start, _root(gram), lam)
        elif gram is None and n < len(memory):
            self.now = with_keys(self.now, memory[n:].T, lam)
        self.seen = memory
        return self.now

    def learn(self, keys: Tensor, memory: Tensor, lam: float) -> None:
        """Takes in new keys (n, f), after which a patch remembers ``memory``."""
        self.now, self.seen, self.lam = with_keys(self.now, keys.T, lam), memory, lam


def _root(gram: Tensor) -> Tensor:
    """K (f, f) with K Kᵀ = gram."""
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors * values.clamp(min=0).sqrt()


def least_squares(inverse: Tensor, keys: Tensor, residuals: Tensor, lam: float, at: Tensor | None = None) -> LowRank:
    """Δ (d, f) of rank n, for C⁻¹ (f, f), keys (f, n) and residuals (d, n).

    ``at`` are the keys on which the residuals shall be met where they differ from those that give the direction (ROME's
    released code: direction of the averaged key, equation at the bare one).
    """
    k, r = keys.to(inverse), residuals.to(inverse)
    at = k if at is None else at.to(inverse)
    x = inverse @ k  # (f, n)
    inner = lam * torch.eye(k.shape[1]).to(inverse) + x.T @ at  # (n, n)
    return LowRank(_solved(inner, r).contiguous().cpu(), x.T.contiguous().cpu())


def _solved(inner: Tensor, r: Tensor) -> Tensor:
    """R inner⁻¹ (d, n); by least squares where keys coincide (two facts of one subject) and nothing else decides."""
    solved, info = torch.linalg.solve_ex(inner.T, r.T)
    if info or not torch.isfinite(solved).all():
        solved = torch.linalg.lstsq(inner.T.cpu(), r.T.cpu(), driver="gelsd").solution.to(r)
    return solved.T
