"""The nearest of many keys to a query, as if all were compared: nearly all are ruled out by short vectors.

    seen = Nearest(keys).seen(queries)              # keys (n, f), read once; queries (b, f)
    seen.nearest(radii)                             # (b,): -1 where the nearest key does not reach the query

Each key k is kept as its coordinates in a few orthonormal directions P, and the length of the rest of it,

    k̃ = (P k, ‖k − Pᵀ P k‖),    ‖q̃ − k̃‖ ≤ ‖q − k‖    (Cauchy and Schwarz)

so that a key whose k̃ is farther than a radius is farther itself: one product of matrices tells which. Of the keys that
are left longer vectors of the same kind are compared, and of what those leave the keys themselves, in float64. Of keys
that are equally near the first is the nearest.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

DIRECTIONS = 47  # with the rest 48 numbers: a 32nd of what a key of the bundled model holds
MORE = 191  # of the longer vectors
SAMPLE = 512  # keys by which the directions are chosen, at most
GROWTH = 4  # times as many keys as the directions were chosen for, before they are chosen anew
BLOCK = 4096  # keys that are made short or compared at a time, so that those of a file need not be in memory together
SOME = 32  # keys that are compared together, the likeliest first
MANY = 1024  # keys that may reach a query, from which on the likeliest of them are compared first
PASSES = 64  # queries of a product
SLACK = 1e-5  # of ‖q‖² + ‖k‖²: above what rounding to float32 adds to ‖q̃ − k̃‖²


class Axes(NamedTuple):
    """Where short vectors come from: x -> (P (x − middle), the length of the rest)."""

    middle: Tensor  # (f,)
    basis: Tensor  # P (r, f)
    keys: int  # how many there were

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """The principal directions of some of the rows (n, f)."""
        some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).long()].double()
        if not len(some):
            return cls(some.new_zeros(rows.shape[1]), some, 0)
        centred = some - some.mean(0)
        squares, vectors = torch.linalg.eigh(centred @ centred.T)
        chosen = (squares > 1e-9 * squares[-1]).nonzero()[-MORE:, 0].flip(0)
        return cls(some.mean(0), torch.linalg.qr(centred.T @ vectors[:, chosen]).Q.T, len(rows))

    def vectors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The short and the longer vectors of x (n, f), in float32. (n, r + 1) each"""
        x = x.double() - self.middle
        inside, squares = x @ self.basis.T, x.square().sum(-1, keepdim=True)

        def cut(r: int) -> Tensor:
            rest = (squares - inside[:, :r].square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
            return torch.cat([inside[:, :r], rest], 1).float()

        return cut(DIRECTIONS), cut(MORE)


class Nearest:
    """Keys (n, f) on the CPU, and a short vector of each: read in blocks, and afterwards as far as needed."""

    def __init__(self, rows: Tensor, old: "Nearest | None" = None) -> None:
        """The index of the rows; ``old`` is that of the first of them, whose short vectors are kept."""
        moved = {} if old is None else old.moved
        if old is not None and len(rows) > GROWTH * old.axes.keys:
            old = None
        self.rows, self.moved = rows, dict[int, Tensor]()
        self.axes = Axes.of(rows) if old is None else old.axes
        made = [self.axes.vectors(rows[:0]) if old is None else (old.shorts, old.longs)]
        made += [self.axes.vectors(rows[at : at + BLOCK]) for at in range(len(made[0][0]), len(rows), BLOCK)]
        self.shorts, self.longs = map(torch.cat, zip(*made, strict=True))  # (n, r + 1) each
        self.squares = self.shorts.square().sum(1)
        self.halves = (1 - SLACK) / 2 * self.squares
        for i, row in moved.items():
            self.put(i, row)

    def put(self, i: int, row: Tensor) -> None:
        """Another key (f,) in the place of key i, in place."""
        self.moved[i] = row
        (self.shorts[i],), (self.longs[i],) = self.axes.vectors(row[None])
        self.squares[i] = self.shorts[i].square().sum()
        self.halves[i] = (1 - SLACK) / 2 * self.squares[i]

    def back(self, i: int) -> None:
        """Key i in its place again."""
        if i in self.moved:
            self.put(i, self.rows[i])
            del self.moved[i]

    def least(self, radii: Tensor) -> Tensor:
        """What a key's product with a query is at least, less a term of the query's, where it may reach it. (n,)"""
        least = (1 - SLACK) / 2 * self.squares - (1 + SLACK) / 2 * radii.float().square()
        return least.where(radii >= 0, torch.inf)

    def farthest(self, q: Tensor) -> float:
        """What no key, nor the query (f,), is longer than."""
        middle = float(self.axes.middle.norm())
        return 1.001 * max(float(q.norm()), middle + float(self.squares.amax().clamp(min=0).sqrt()))

    def distances(self, q: Tensor, some: Tensor) -> Tensor:
        """How far a query (f,) is from some keys (k,), computed in float64, in the type of the keys. (k,)"""
        return torch.cat([self._distances(q, block) for block in some.split(BLOCK)])

    def _distances(self, q: Tensor, some: Tensor) -> Tensor:
        keys = self.rows[some].double()
        for at, i in enumerate(some.tolist() if self.moved else ()):
            if i in self.moved:
                keys[at] = self.moved[i].double()
        return (keys - q.double()).norm(dim=-1).to(self.rows)

    def seen(self, q: Tensor) -> "Seen":
        """The keys as seen from queries (b, f)."""
        return Seen(self, q.detach().cpu())


class Seen:
    """Keys as seen from queries (b, f), on the CPU."""

    def __init__(self, index: Nearest, q: Tensor) -> None:
        self.index, self.q = index, q
        self.shorts, self.longs = index.axes.vectors(q)  # (b, r + 1) each
        self.squares = self.shorts.square().sum(1)

    def nearest(self, radii: Tensor, least: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The nearest key to each query, and its distance; -1 and infinity where that key's radius (n,) is smaller.

        A key whose radius is below 0 is none, and an infinite one reaches everywhere. ``least`` is what
        :meth:`Nearest.least` makes of the radii, where that is known. (b,) and (b,)
        """
        found: list[tuple[float, int]] = []
        least = self.index.least(radii) if least is None else least
        for at in range(0, len(self.q), PASSES):
            products = self.shorts[at : at + PASSES] @ self.index.shorts.T  # (b, n)
            found += [self._nearest(at + i, product, radii, least) for i, product in enumerate(products)]
        distances, entries = zip(*found, strict=True) if found else ((), ())
        return torch.tensor(entries, dtype=torch.long), torch.tensor(distances, dtype=self.q.dtype)

    def within(self, limits: Tensor | float, row: int = 0) -> tuple[Tensor, Tensor]:
        """The keys no farther from query ``row`` than their limits (n,), or one for all, in order; and how far each is.

        (k,) and (k,)
        """
        limits = torch.as_tensor(limits)
        lower = self._lower(row, self.index.shorts @ self.shorts[row], self.index.squares)
        some = ((lower <= (1 + SLACK) * limits.square()) & (limits >= 0)).nonzero()[:, 0]
        least = (1 + SLACK) * (limits[some] if limits.ndim else limits).square()
        some = some[self._closer(row, some) <= least]
        distances = self.index.distances(self.q[row], some)
        near = distances <= (limits[some] if limits.ndim else limits)
        return some[near], distances[near]

    def each_within(self, limits: Tensor) -> list[Tensor]:
        """For each query, with a limit (b,) each, the keys no farther from it, in order."""
        found: list[Tensor] = []
        for at in range(0, len(self.q), PASSES):
            rows = slice(at, at + PASSES)
            apart = torch.addmm((1 - SLACK) * self.index.squares, self.shorts[rows], self.index.shorts.T, alpha=-2)
            least = (1 + SLACK) * limits[rows].square() - (1 - SLACK) * self.squares[rows]
            some = (apart <= least[:, None]).nonzero()
            counts = torch.bincount(some[:, 0], minlength=len(apart)).tolist()
            for row, keys in enumerate(some[:, 1].split(counts), at):
                found.append(keys[self.index.distances(self.q[row], keys) <= limits[row]])
        return found

    def _lower(self, row: int, product: Tensor, squares: Tensor) -> Tensor:
        """What the squared distances of keys are at least, by their product with a query, and their squares. (k,)"""
        return (1 - SLACK) * (squares + self.squares[row]) - 2 * product

    def _closer(self, row: int, some: Tensor) -> Tensor:
        """The same by their longer vectors. (k,)"""
        apart = torch.cat([(self.index.longs[keys] - self.longs[row]).square().sum(1) for keys in some.split(BLOCK)])
        return apart - SLACK * (self.index.squares[some] + self.squares[row])

    def _nearest(self, row: int, product: Tensor, radii: Tensor, least: Tensor) -> tuple[float, int]:
        """The distance and number of the nearest key, by the product of all with a query (n,)."""
        reaching = (product - least >= (1 - SLACK) / 2 * self.squares[row]).nonzero()[:, 0]
        if len(reaching) > MANY:
            lower = self._lower(row, product[reaching], self.index.squares[reaching])
            likeliest = lower.topk(SOME, largest=False).indices
            distance, _ = self._best(row, reaching[likeliest], lower[likeliest])
            reaching = reaching[lower <= (1 + SLACK) * distance**2]
        closer = self._closer(row, reaching)
        left = closer <= (1 + SLACK) * radii[reaching].square()
        distance, entry = self._best(row, reaching[left], closer[left])
        if entry < 0 or distance > float(radii[entry]):
            return torch.inf, -1
        most = (1 - SLACK) / 2 * self.squares[row] - (1 + SLACK) / 2 * distance**2
        nearer = (product - self.index.halves >= most).nonzero()[:, 0]
        nearer = nearer[radii[nearer] >= 0]
        if self._best(row, nearer, self._closer(row, nearer))[1] != entry:
            return torch.inf, -1  # what is nearer reaches less far
        return distance, entry

    def _best(self, row: int, some: Tensor, lower: Tensor) -> tuple[float, int]:
        """The distance and number of the nearest of some keys (k,), the likeliest first; of none: infinity and -1."""
        lower, order = lower.sort()
        best: tuple[float, int] = (torch.inf, -1)
        for at in range(0, len(some), SOME):
            if float(lower[at]) > (1 + SLACK) * best[0] ** 2:
                break
            keys = some[order[at : at + SOME]]
            distances = self.index.distances(self.q[row], keys)
            best = min(best, (float(distances.min()), int(keys[distances == distances.min()].min())))
        return best
