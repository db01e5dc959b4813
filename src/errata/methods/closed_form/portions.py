"""More facts in one call than keys have directions: the same least-squares problem, a portion of the facts at a time.

For n facts :mod:`solve` factorises a matrix (n, n), of which n > f / 2 make more than the inverse of C itself holds.
Here M = C⁻¹ takes in the keys of each portion before the next one is met (recursive least squares):

    E = R − Δ K      L Lᵀ = λ I + Kᵀ M K      H = M K L⁻ᵀ      Δ += E L⁻ᵀ Hᵀ      M −= H Hᵀ

At the end Δ is that of all facts together, and no more is held than Δ, a second M and what a portion needs.
"""

import torch
from torch import Tensor

from errata.methods.closed_form import solve
from errata.methods.closed_form.symmetric import Symmetric
from errata.patch.low_rank import Weight


def pays(keys: Tensor, lam: float) -> bool:
    """Whether keys (f, n) are so many that portions are held in less room; λ = 0 has no portions."""
    return lam > 0 and keys.shape[1] > len(keys) // 2


def least_squares(metric: solve.Metric, keys: Tensor, residuals: Tensor, lam: float) -> Weight:
    """Δ (d, f), dense, for keys (f, n) and residuals (d, n): :func:`solve.least_squares` in one linear.

    That does it all at once where M is no half of a matrix, or where rounding leaves a portion without a factor.
    """
    if not isinstance(metric, Symmetric):
        return solve.least_squares([metric], [keys], residuals, lam)[0]
    f, n = keys.shape
    delta = torch.zeros(len(residuals), f, dtype=torch.float64)
    m: Symmetric = metric
    for start in range(0, n, portion := max(1, f // solve.PORTION)):
        k, r = (part[:, start : start + portion].to(delta) for part in (keys, residuals))
        x = m @ k  # (f, portion)
        inner = k.T @ x
        inner.diagonal().add_(lam)
        factor, failed = torch.linalg.cholesky_ex(inner)
        if failed:
            return solve.least_squares([metric], [keys], residuals, lam)[0]
        half = torch.linalg.solve_triangular(factor, x.T, upper=False)  # Hᵀ (portion, f)
        error = torch.linalg.solve_triangular(factor, (r - delta @ k).T, upper=False)  # (portion, d)
        torch.addmm(delta, error.T, half, out=delta)
        if start + portion < n:
            m = m.less(half.T, in_place=m is not metric)
    return delta
