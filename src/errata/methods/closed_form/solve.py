"""One least-squares problem for every closed-form editor.

    minimise  Σᵢ ‖Δ kᵢ − rᵢ‖² + λ tr(Δ C Δᵀ)        Δ = R (λ I + KᵀX)⁻¹ Xᵀ,   X = C⁻¹K

for n new keys K (f, n), residuals R (d, n) and the second moment C (f, f) of keys whose values are to stay.
λ → 0 interpolates (Δ K = R: ROME and EMMET, arXiv:2202.05262 eq. 2, 2403.14236 eq. 5); λ > 0 is MEMIT
(arXiv:2210.07229 eq. 14). With a projector P onto the null space of C in the place of C⁻¹ it is AlphaEdit
(arXiv:2410.02355 eq. 12). Keys K_p of earlier edits join either as ``C + K_p K_pᵀ / λ``. What is factorised for a batch
is n x n (Woodbury). All of it is float64 on the CPU; only the large matrix C is factorised on the model's device, where
that has float64.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.methods.closed_form.symmetric import Symmetric
from errata.patch.low_rank import LowRank

log = logging.getLogger(__name__)


PORTION = 8  # of f: so many keys are taken in at a time
MOST_RIDGE = 100.0  # times the mean eigenvalue: what rounding of sums leaves below zero is far nearer to it


@dataclass(frozen=True)
class Keeping:
    """(C + K_p K_pᵀ / λ)⁻¹ for keys K_p (f, m) whose values are to stay, as its product with other keys.

    No second matrix (f, f) is made: X − X_p (λ I + K_pᵀX_p)⁻¹ K_pᵀX (Woodbury); ``x`` is X_p, ``inner`` the inverse.
    """

    inverse: "Tensor | Symmetric"
    keys: Tensor
    x: Tensor
    inner: Tensor

    @classmethod
    def of(cls, inverse: "Tensor | Symmetric", keys: Tensor, lam: float) -> "Keeping":
        """From C⁻¹ (f, f), or a projector in its place, and the keys (f, m)."""
        keys = keys.to("cpu", torch.float64)
        x = inverse @ keys  # (f, m)
        inner = lam * torch.eye(keys.shape[1]).to(x) + keys.T.to(x) @ x
        return cls(inverse, keys.to(x), x, torch.linalg.pinv(inner, hermitian=True))

    def __matmul__(self, keys: Tensor) -> Tensor:
        found = self.inverse @ keys
        return found - self.x @ (self.inner @ (self.keys.T @ found))


Metric = Tensor | Symmetric | Keeping  # (f, f): what measures keys, an inverse of C or a projector


def inverse_of(c: Tensor, ridge: float = 0.0) -> Tensor:
    """(C + ridge x its mean eigenvalue)⁻¹ (f, f), float64; the ridge grows until there is one, which is logged.

    One matrix of float64 is made beside C, 8 f² bytes, which is factorised and inverted where it stands (on a GPU the
    library may take as much again for a moment). Raises :class:`BadInput` where C is not finite, or has none with a
    ridge of MOST_RIDGE.
    """
    _check_finite(c)
    mean = max(float(c.diagonal().double().mean()), torch.finfo(torch.float64).tiny)
    asked = raised = max(ridge, 1e-9)
    inverse = c.to(torch.float64, copy=True)
    columns = inverse.mT  # symmetric: its columns are its rows, and in this order LAPACK works in place
    while _factorise(columns, raised * mean):  # too few tokens leave eigenvalues just below zero in float32
        if raised >= MOST_RIDGE:
            raise BadInput("the statistics of keys are no second moments: they have eigenvalues below 0; prepare anew")
        raised *= 10
        inverse.copy_(c)
    if raised > asked:
        log.warning(
            "the statistics of keys have no inverse with ridge=%g, so %g is taken: they come from too few tokens for "
            "keys of %d dimensions; give prepare more text",
            *(asked, raised, len(c)),
        )
    return torch.cholesky_inverse(columns, out=columns).mT


def _factorise(c: Tensor, ridge: float) -> bool:
    """Puts the Cholesky factor of C + ridge I in the place of C; True where it has none, and C is lost."""
    c.diagonal().add_(ridge)
    failed = torch.zeros((), dtype=torch.int32, device=c.device)
    torch.linalg.cholesky_ex(c, out=(c, failed))
    return bool(failed)


def _check_finite(c: Tensor) -> None:
    """Raises :class:`BadInput` for a number that is not finite: with it no inverse is ever found."""
    if not all(bool(extreme.isfinite()) for extreme in c.aminmax()):  # NaN is either of them; makes no copy
        raise BadInput("the statistics of keys hold a number that is not finite; prepare anew, in float32")


def null_projector(c: Tensor, share: float) -> Tensor:
    """P (f, f), float64: onto the directions of C's smallest eigenvalues that together hold ``share`` of their sum.

    Raises :class:`BadInput` where C is not finite.
    """
    _check_finite(c)
    values, vectors = torch.linalg.eigh(c.double())  # rising
    values = values.clamp(min=0)
    kept = vectors[:, : int((values.cumsum(0) <= share * values.sum()).sum())]
    return kept @ kept.T


def scaled_null_projector(c: Tensor, share: float) -> Tensor:
    """:func:`null_projector`, scaled so that E[kᵀPk] = f as with C⁻¹: λ is then in MEMIT's units."""
    projector = null_projector(c, share)
    log.info("%.0f of %d directions are free", projector.trace(), len(c))
    return projector.mul_(len(c) / (projector * c).sum().clamp(min=1e-12))


def with_keys(inverse: Symmetric, keys: Tensor, lam: float, *, in_place: bool = False) -> Symmetric:
    """(C + K Kᵀ / λ)⁻¹ (f, f) from C⁻¹ and more keys K (f, n); ``in_place`` C⁻¹ is overwritten by it."""
    x = inverse @ keys  # (f, n)
    inner = lam * torch.eye(keys.shape[1]).to(x) + keys.to(x).T @ x  # (n, n)
    values, vectors = torch.linalg.eigh(inner)
    positive = values > values[-1].clamp(min=1e-300) * 1e-12  # not all are where keys coincide
    return inverse.less(x @ (vectors[:, positive] / values[positive].sqrt()), in_place=in_place)


class RunningInverse:
    """An inverse that takes in the keys of a sequence of edits as they come: each step costs the same.

    ``initial`` is the one without keys, ``current`` the one with those that ``memory`` holds until the next come in.
    """

    def __init__(self, initial: Symmetric):
        self.initial = initial
        self._reset(0.0)

    def _reset(self, lam: float) -> None:
        self.current, self.lam = self.initial, lam
        self.memory: Tensor | None = None

    def after(self, keys: Tensor | None, gram: Tensor | None, lam: float) -> Symmetric:
        """The inverse with the keys that a patch remembers: themselves (m, f), or their second moment (f, f).

        It is ``current``, which the next keys change.
        """
        memory = keys if gram is None else gram
        if memory is None:
            self._reset(lam)
            return self.initial
        n = 0 if self.memory is None else len(self.memory)
        if lam != self.lam or (self.memory is not None and not torch.equal(memory[:n], self.memory)):
            self._reset(lam)
            n = 0
        if gram is not None and self.memory is None:
            self._take_in(_root(gram), lam)
        elif gram is None and n < len(memory):
            self._take_in(memory[n:].T, lam)
        self.memory, self.lam = memory, lam
        return self.current

    def add(self, keys: Tensor, memory: Tensor, lam: float) -> None:
        """Takes in new keys (n, f), with which a patch remembers ``memory``."""
        self._take_in(keys.T, lam)
        self.memory, self.lam = memory, lam

    def _take_in(self, keys: Tensor, lam: float) -> None:
        """Keys (f, n) into ``current``, in place unless that is ``initial``: no more than two inverses are held.

        Until ``memory`` says so too, λ is none: what is interrupted here is made anew.
        """
        self.lam = nan
        for some in keys.split(max(1, len(keys) // PORTION), 1):  # so that no matrix is as wide as all of them
            self.current = with_keys(self.current, some, lam, in_place=self.current is not self.initial)


def _root(gram: Tensor) -> Tensor:
    """K (f, f) with K Kᵀ = gram."""
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors * values.clamp(min=0).sqrt()


def least_squares(
    inverses: Iterable[Metric],
    keys: Sequence[Tensor],
    residuals: Tensor,
    lam: float,
    met_at: Sequence[Tensor] | None = None,
    in_turn: bool = False,
) -> list[LowRank]:
    """Δ (d, f) of rank n for each weight, from C⁻¹ (f, f) and keys (f, n) of each, and residuals (d, n) of their sum.

    A single linear has one weight. In a mixture of experts K is their keys one below the other, and C is taken as zero
    between two experts; a weight's rank is the number of facts that it saw. ``met_at`` are the keys at which Δ gives
    the residuals where they are others than those of the direction (ROME's released code: direction of the averaged
    key, equation at the bare one). The inverses are taken one at a time.

    ``in_turn`` (ROME) each fact is met when its turn comes, by a change of rank one that takes what those before it did
    to its value into account, and that those behind it may spoil: K'ᵀX without what is below its diagonal.
    """
    r = residuals.to("cpu", torch.float64)
    inner = lam * torch.eye(r.shape[1]).to(r)  # (n, n)
    found: list[tuple[Tensor, Tensor]] = []
    for inverse, k, met in zip(inverses, keys, met_at or keys, strict=True):
        facts = (k.any(0) | met.any(0)).nonzero()[:, 0]  # that the weight saw
        x = inverse @ k[:, facts].to(r)  # (f, those)
        product = x.T @ met[:, facts].to(x)
        inner[facts[:, None], facts] += product.triu() if in_turn else product
        found.append((facts, x))
    a = _divided(r, inner)  # (d, n)
    return [LowRank(a[:, facts].contiguous().cpu(), x.T.contiguous().cpu()) for facts, x in found]


def _divided(r: Tensor, inner: Tensor) -> Tensor:
    """R inner⁻¹ (d, n); by least squares where keys coincide (two facts of one subject) and nothing else decides."""
    solution, info = torch.linalg.solve_ex(inner.T, r.T)
    if info or not torch.isfinite(solution).all():
        solution = torch.linalg.lstsq(inner.T.cpu(), r.T.cpu(), driver="gelsd").solution.to(r)
    return solution.T
