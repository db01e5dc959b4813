"""The nearest of many keys to a query, as if all were compared: nearly all are ruled out by short vectors.

    seen = Nearest(keys).seen(queries)              # keys (n, f), read once; queries (b, f)
    seen.nearest(radii)                             # (b,): -1 where the nearest key does not reach the query

Each key k is kept as its coordinates in a few orthonormal directions P, and the length of the rest of it,

    k̃ = (P k, ‖k − Pᵀ P k‖),    ‖q̃ − k̃‖ ≤ ‖q − k‖    (Cauchy and Schwarz)

so that a key whose k̃ is farther than a radius is farther itself: one product of matrices tells which. Of the keys that
are left longer vectors of the same kind are compared, and of what those leave the keys themselves, in float64. Of keys
that are equally near the first is the nearest.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

DIRECTIONS = 47  # with the rest 48 numbers: a 32nd of what a key of the bundled model holds
MORE = 191  # of the longer vectors
SAMPLE = 1024  # keys by which the directions are chosen, at most
GROWTH = 4  # times as many keys as the directions were chosen for, before they are chosen anew
BLOCK = 4096  # keys that are made short or compared at a time, so that those of a file need not be in memory together
PAIRS = 256  # keys that are compared together
MANY = 4096  # keys of a block that may reach a query, from which on the likeliest of them are compared at once
PASSES = 64  # queries of a product
CELLS = 2**18  # products of keys and queries that are computed at a time, and stay in the processor's cache
SLACK = 1e-5  # of ‖q‖² + ‖k‖²: above what rounding to float32 adds to ‖q̃ − k̃‖²
ROUNDED = 1e-3  # of ‖q − k‖²: above what computing it in float32 changes


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


class Reach(NamedTuple):
    """How far keys reach, and what that asks of a look-up."""

    radii: Tensor  # (n,); below 0 of keys that are none
    least: Tensor  # (n,): a key's product with a query, less a term of the query's, at the radius
    smallest: float  # of the radii of keys

    def everywhere(self) -> "Reach":
        """The same keys, reaching everywhere."""
        live = self.radii >= 0
        far = torch.full_like(self.radii, torch.inf)
        return Reach(far.where(live, -1.0), (-far).where(live, torch.inf).float(), torch.inf)


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

    def reach(self, radii: Tensor) -> "Reach":
        """What radii (n,) ask of a look-up; below 0 of keys that are none."""
        live = radii >= 0
        least = self.halves - (1 + SLACK) / 2 * radii.float().square()
        smallest = float(radii.where(live, torch.inf).min()) if len(radii) else torch.inf
        return Reach(radii, least.where(live, torch.inf), smallest)

    def farthest(self, q: Tensor) -> float:
        """What no key, nor the query (f,), is longer than."""
        middle = float(self.axes.middle.norm())
        return 1.001 * max(float(q.norm()), middle + float(self.squares.amax().clamp(min=0).sqrt()))

    def distances(self, q: Tensor, some: Tensor) -> Tensor:
        """How far a query (f,) is from some keys (k,), computed in float64, in the type of the keys. (k,)"""
        return torch.cat([self._distances(q, block) for block in some.split(BLOCK)])

    def apart(self, q: Tensor, some: Tensor) -> Tensor:
        """The same of a query (k, f) each. (k,)"""
        blocks = [self._distances(x, block) for x, block in zip(q.split(PAIRS), some.split(PAIRS), strict=True)]
        return torch.cat(blocks)

    def rough(self, q: Tensor, some: Tensor) -> Tensor:
        """The squares of these, computed in the type of the keys, float32 or float64. (k,)"""
        pairs = zip(q.split(PAIRS), some.split(PAIRS), strict=True)
        return torch.cat([(self._keys(block) - x).square_().sum(1) for x, block in pairs]).float()

    def _distances(self, q: Tensor, some: Tensor) -> Tensor:
        return (self._keys(some).double() - q.double()).norm(dim=-1).to(self.rows)

    def _keys(self, some: Tensor) -> Tensor:
        keys = self.rows.index_select(0, some)
        for at, i in enumerate(some.tolist() if self.moved else ()):
            if i in self.moved:
                keys[at] = self.moved[i]
        return keys

    def seen(self, q: Tensor) -> "Seen":
        """The keys as seen from queries (b, f)."""
        return Seen(self, q.detach().cpu())


class Seen:
    """Keys as seen from queries (b, f), on the CPU."""

    def __init__(self, index: Nearest, q: Tensor) -> None:
        self.index, self.q = index, q
        self.shorts, self.longs = index.axes.vectors(q)  # (b, r + 1) each
        self.squares = self.shorts.square().sum(1)

    def nearest(self, radii: Tensor, reach: "Reach | None" = None) -> tuple[Tensor, Tensor]:
        """The nearest key to each query, and its distance; -1 and infinity where that key's radius (n,) is smaller.

        A key whose radius is below 0 is none, and an infinite one reaches everywhere. ``reach`` is
        :meth:`Nearest.reach` of the radii, where that is known. (b,) and (b,)
        """
        reach = self.index.reach(radii) if reach is None else reach
        distances = torch.full((len(self.q),), torch.inf, dtype=self.index.rows.dtype)
        entries = torch.full((len(self.q),), -1)
        for some in torch.arange(len(self.q)).split(PASSES) if len(radii) else ():
            distances[some], entries[some] = self._nearest(some, reach)
        return entries, distances.to(self.q)

    def within(self, limits: Tensor | float, row: int = 0) -> tuple[Tensor, Tensor]:
        """The keys no farther from query ``row`` than their limits (n,), or one for all, in order; and how far each is.

        (k,) and (k,)
        """
        limits = torch.as_tensor(limits)
        lower = self._lower(row, self.index.shorts @ self.shorts[row], self.index.squares)
        some = ((lower <= (1 + SLACK) * limits.square()) & (limits >= 0)).nonzero()[:, 0]
        least = (1 + SLACK) * (limits[some] if limits.ndim else limits).square()
        some = some[self._closer(torch.full_like(some, row), some) <= least]
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

    def _closer(self, rows: Tensor, keys: Tensor) -> Tensor:
        """What the squared distances of queries and keys (m,) are at least, by their longer vectors. (m,)"""
        apart = [
            (self.index.longs.index_select(0, k) - self.longs.index_select(0, i)).square_().sum(1)
            for i, k in zip(rows.split(BLOCK), keys.split(BLOCK), strict=True)
        ]
        return torch.cat(apart) - SLACK * (self.index.squares[keys] + self.squares[rows])

    def _rough(self, rows: Tensor, keys: Tensor) -> Tensor:
        """The same by the keys themselves, in their type: a difference is rounded by a share of itself. (m,)"""
        return (1 - ROUNDED) * self.index.rough(self.q[rows], keys)

    def _nearest(self, some: Tensor, reach: "Reach") -> tuple[Tensor, Tensor]:
        """The distance and number of the nearest key to each of some queries (k,); infinity and -1 of none. (k,) each

        A key that reaches no query may be nearer than the one that was found, if its radius is smaller.
        """
        distances, entries = self._best(some, reach, torch.full((len(some),), torch.inf))
        missed = distances > reach.radii[entries]  # that of -1 is any
        distances[missed], entries[missed] = torch.inf, -1
        unsure = ((entries >= 0) & (distances > reach.smallest)).nonzero()[:, 0]
        if len(unsure):
            _, nearer = self._best(some[unsure], reach.everywhere(), distances[unsure].float())
            other = unsure[nearer != entries[unsure]]
            distances[other], entries[other] = torch.inf, -1
        return distances, entries

    def _best(self, some: Tensor, reach: "Reach", caps: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest of the keys that may reach some queries (k,), and are no farther than ``caps`` (k,). (k,) each"""
        of, keys, lower, caps = self._screened(some, reach, caps)
        for bound in (self._closer, self._rough):
            least = bound(some[of], keys) if len(keys) else lower
            left = least <= (1 + SLACK) * torch.minimum(caps[of], reach.radii[keys].float()).square()
            of, keys, lower = of[left], keys[left], least[left]
        distances = self.index.apart(self.q[some[of]], keys)
        best = distances.new_full((len(some),), torch.inf).scatter_reduce(0, of, distances, "amin")
        first = distances == best[of]
        numbers = torch.full((len(some),), len(self.index.rows)).scatter_reduce(0, of[first], keys[first], "amin")
        return best, numbers.where(best < torch.inf, -1)

    def _screened(self, some: Tensor, reach: "Reach", caps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs of queries and keys that short vectors do not rule out: which of ``some`` (m,), which key (m,), what
        their squared distance is at least (m,); and ``caps`` (k,), as small as the likeliest keys have made them."""
        q, squares = self.shorts[some].T.contiguous(), self.squares[some]
        floor = (1 - SLACK) / 2 * squares  # (k,)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        step = max(BLOCK, CELLS // len(some))
        products, bounds = torch.empty(2, min(step, len(self.index.rows)), len(some))  # once, as the system clears them
        for at in range(0, len(self.index.rows), step):
            block = slice(at, at + step)
            least, halves = reach.least[block, None], self.index.halves[block, None]
            product, bound = products[: len(least)], bounds[: len(least)]
            torch.mm(self.index.shorts[block], q, out=product)
            near = product >= torch.add(least, floor, out=bound)
            if bool((caps < torch.inf).any()):
                near &= product >= torch.add(halves, floor - (1 + SLACK) / 2 * caps.square(), out=bound)
            hits = torch.from_numpy(np.flatnonzero(near.numpy()))
            of, keys = hits % len(some), hits // len(some)
            lower = (1 - SLACK) * (self.index.squares[at + keys] + squares[of]) - 2 * product.view(-1)[hits]
            found.append((of, at + keys, lower))
            if len(hits) > MANY * len(some):
                found[-1], caps = self._tightened(some, found[-1], caps)
        whole: Any = [torch.cat(columns) for columns in zip(*found, strict=True)] if found else [some[:0]] * 3
        (of, keys, lower), caps = self._tightened(some, tuple(whole), caps)
        return of, keys, lower, caps

    def _tightened(
        self, some: Tensor, pairs: tuple[Tensor, Tensor, Tensor], caps: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Pairs that may be as near as the likeliest key of their query is; and ``caps`` (k,), no larger than that."""
        of, keys, lower = pairs
        if not len(of):
            return pairs, caps
        least = torch.full((len(some),), torch.inf).scatter_reduce(0, of, lower.float(), "amin")
        first = (lower == least[of]).nonzero()[:, 0]
        likeliest = torch.full((len(some),), -1)
        likeliest[of[first]] = keys[first]
        had = (likeliest >= 0).nonzero()[:, 0]
        apart = self.index.apart(self.q[some[had]], likeliest[had]).float()
        caps = caps.clone()
        caps[had] = torch.minimum(caps[had], (1 + SLACK) * apart)
        left = lower <= (1 + SLACK) * caps[of].square()
        return (of[left], keys[left], lower[left]), caps
