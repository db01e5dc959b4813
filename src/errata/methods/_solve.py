"""One least-squares problem for every closed-form editor.

    minimise  Σᵢ ‖Δ kᵢ − rᵢ‖² + λ tr(Δ C Δᵀ)        Δ = R (λ I + KᵀX)⁻¹ Xᵀ,   X = C⁻¹K

for n new keys K (f, n), residuals R (d, n) and the second moment C (f, f) of keys that shall keep their values.
λ → 0 interpolates (Δ K = R: ROME and EMMET, arXiv:2202.05262 eq. 2, 2403.14236 eq. 5); λ > 0 is MEMIT
(arXiv:2210.07229 eq. 14). C is factorised once; what is solved for a batch is n x n (Woodbury). Keys of earlier edits
K_p join C as ``C + K_p K_pᵀ / λ``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from errata.patch import LowRank

RIDGE = 1e-6  # of C's mean eigenvalue, added to its diagonal

Inverse = Callable[[Tensor], Tensor]


def inverse_of(c: Tensor) -> Inverse:
    """K -> C⁻¹K, with C factorised once in float64 on the CPU."""
    c = c.double().cpu()
    ridge = RIDGE * max(float(c.diagonal().mean()), torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(c), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(c + ridge * eye)  # (f, f)
    while failed:  # float32 sums over fewer tokens than dimensions leave eigenvalues just below zero
        ridge *= 10
        factor, failed = torch.linalg.cholesky_ex(c + ridge * eye)
    return lambda k: torch.cholesky_solve(k, factor)


def with_keys(inverse: Inverse, past: Tensor, lam: float) -> Inverse:
    """K -> (C + K_p K_pᵀ / λ)⁻¹K for past keys (f, m), by Woodbury: what is factorised is m x m."""
    known = inverse(past)  # (f, m)
    inner = torch.linalg.cholesky(lam * torch.eye(past.shape[1], dtype=torch.float64) + past.T @ known)

    def solve(k: Tensor) -> Tensor:
        x = inverse(k)  # (f, n)
        return x - known @ torch.cholesky_solve(past.T @ x, inner)

    return solve


def least_squares(inverse: Inverse, keys: Tensor, residuals: Tensor, lam: float, at: Tensor | None = None) -> LowRank:
    """Δ (d, f) of rank n, for keys (f, n) and residuals (d, n).

    ``at`` are the keys on which the residuals shall be met where they differ from those that give the direction (ROME's
    released code: direction of the averaged key, equation at the bare one).
    """
    k, r = keys.double().cpu(), residuals.double().cpu()
    at = k if at is None else at.double().cpu()
    x = inverse(k)  # (f, n)
    inner = lam * torch.eye(k.shape[1], dtype=torch.float64) + x.T @ at  # (n, n)
    return LowRank(_solved(inner, r).contiguous(), x.T.contiguous())


def _solved(inner: Tensor, r: Tensor) -> Tensor:
    """R inner⁻¹ (d, n); by least squares where keys coincide (two facts of one subject) and nothing else decides."""
    solved, info = torch.linalg.solve_ex(inner.T, r.T)
    if info or not torch.isfinite(solved).all():
        solved = torch.linalg.lstsq(inner.T, r.T, driver="gelsd").solution
    return solved.T
