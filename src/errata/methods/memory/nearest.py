"""The nearest of many keys to a query, as if all were compared: nearly all are ruled out by short vectors.

    seen = Nearest(keys).seen(queries)              # keys (n, f), read once; queries (b, f)
    seen.nearest(radii)                             # (b,): -1 where the nearest key does not reach the query

Each key k is kept as its coordinates in a few orthonormal directions P, and the length of the rest of it,

    k̃ = (P k, ‖k − Pᵀ P k‖),    ‖q̃ − k̃‖ ≤ ‖q − k‖    (Cauchy and Schwarz)

so that a key whose k̃ is farther than a radius is farther itself: one product of matrices tells which. So is a key that
is farther than another one: the likeliest by its k̃ is looked at itself, at once. Of the keys that are left longer
vectors of the same kind are compared, and of what those leave the keys themselves, in float64. Of keys that are equally
near the first is the nearest.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

DIRECTIONS = 23  # with the rest 24 numbers: a 64th of what a key of the bundled model holds
SOME = 48  # numbers of the longer vectors that are compared first
MORE = 191  # of the longer vectors
SAMPLE = 1024  # keys by which the directions are chosen, at most
GROWTH = 4  # times as many keys as the directions were chosen for, before they are chosen anew
BLOCK = 4096  # keys that are made short or compared at a time, so that those of a file need not be in memory together
PAIRS = 256  # keys that are compared together
FEW = 4  # keys of a query that are compared as they are
PASSES = 64  # queries of a product
CELLS = 2**18  # products of keys and queries that are computed at a time, and stay in the processor's cache
SLACK = 1e-5  # of ‖q‖² + ‖k‖²: above what float32 adds to ‖q̃ − k̃‖² (1.6e-6 at most, widths of 1,536 to 16,384)
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
            return cls(some.new_zeros(rows.shape[1]), some.float(), 0)
        centred = some - some.mean(0)
        squares, vectors = torch.linalg.eigh(centred @ centred.T)
        chosen = (squares > 1e-9 * squares[-1]).nonzero()[-MORE:, 0].flip(0)
        return cls(some.mean(0), torch.linalg.qr(centred.T @ vectors[:, chosen]).Q.T.float().contiguous(), len(rows))

    def vectors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The short and the longer vectors of x (n, f), in float32. (n, r + 1) each"""
        x = x.double() - self.middle
        inside, squares = x.float() @ self.basis.T, x.square().sum(-1, keepdim=True)

        def cut(r: int) -> Tensor:
            rest = (squares - inside[:, :r].square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
            return torch.cat([inside[:, :r], rest], 1).float()

        return cut(DIRECTIONS), cut(MORE)


class Reach(NamedTuple):
    """How far keys reach, and what that asks of a look-up."""

    radii: Tensor  # (n,); below 0 of keys that are none
    halves: Tensor  # of their short vectors' squares; infinite of keys that are none. (n,)
    largest: float  # of the radii


class Nearest:
    """Keys (n, f) on the CPU, and a short vector of each: read in blocks, and afterwards as far as needed."""

    def __init__(self, rows: Tensor, old: "Nearest | None" = None) -> None:
        """The index of the rows; ``old`` is that of the first of them, whose short vectors are kept."""
        moved = {} if old is None else old.moved
        if old is not None and len(rows) > GROWTH * old.axes.keys:
            old = None
        self.rows, self.moved = rows, dict[int, Tensor]()
        self.axes = Axes.of(rows) if old is None else old.axes
        made = [self.axes.vectors(rows[:0]) if old is None else (old.shorts.T, old.longs)]
        made += [self.axes.vectors(rows[at : at + BLOCK]) for at in range(len(made[0][0]), len(rows), BLOCK)]
        shorts, self.longs = map(torch.cat, zip(*made, strict=True))  # (n, r + 1) each
        self.shorts = shorts.T.contiguous()  # (r + 1, n): as products read them fastest
        self.squares = shorts.square().sum(1)
        self.halves = (1 - SLACK) / 2 * self.squares
        for i, row in moved.items():
            self.put(i, row)

    def put(self, i: int, row: Tensor) -> None:
        """Another key (f,) in the place of key i, in place."""
        self.moved[i] = row
        (self.shorts[:, i],), (self.longs[i],) = self.axes.vectors(row[None])
        self.squares[i] = self.shorts[:, i].square().sum()
        self.halves[i] = (1 - SLACK) / 2 * self.squares[i]

    def back(self, i: int) -> None:
        """Key i in its place again."""
        if i in self.moved:
            self.put(i, self.rows[i])
            del self.moved[i]

    def reach(self, radii: Tensor) -> "Reach":
        """What radii (n,) ask of a look-up; below 0 of keys that are none."""
        halves = self.halves.where(radii >= 0, torch.inf)
        return Reach(radii, halves, float(radii.max()) if len(radii) else -1.0)

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
        return torch.cat([(self.keys_of(block) - x).square_().sum(1) for x, block in pairs]).float()

    def _distances(self, q: Tensor, some: Tensor) -> Tensor:
        return (self.keys_of(some).double() - q.double()).norm(dim=-1).to(self.rows)

    def keys_of(self, some: Tensor) -> Tensor:
        """Some keys (k,), in their type. (k, f)"""
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
        limits = torch.as_tensor(limits).expand(len(self.index.rows))
        lower = (1 - SLACK) * (self.index.squares + self.squares[row]) - 2 * (self.shorts[row] @ self.index.shorts)
        some = ((lower <= (1 + SLACK) * limits.square()) & (limits >= 0)).nonzero()[:, 0]
        for bound in self._bounds:
            if len(some) > FEW:
                some = some[bound(torch.full_like(some, row), some) <= (1 + SLACK) * limits[some].square()]
        distances = self.index.distances(self.q[row], some)
        near = distances <= limits[some]
        return some[near], distances[near]

    def each_within(self, limits: Tensor) -> list[Tensor]:
        """For each query, with a limit (b,) each, the keys no farther from it, in order."""
        found: list[Tensor] = []
        for at in range(0, len(self.q), PASSES):
            rows = slice(at, at + PASSES)
            apart = torch.addmm((1 - SLACK) * self.index.squares, self.shorts[rows], self.index.shorts, alpha=-2)
            least = (1 + SLACK) * limits[rows].square() - (1 - SLACK) * self.squares[rows]
            some = (apart <= least[:, None]).nonzero()
            counts = torch.bincount(some[:, 0], minlength=len(apart)).tolist()
            for row, keys in enumerate(some[:, 1].split(counts), at):
                found.append(keys[self.index.distances(self.q[row], keys) <= limits[row]])
        return found

    @property
    def _bounds(self) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
        """What squared distances of queries and keys (m,) are at least: ever closer, at ever more cost. (m,) each"""
        return partial(self._longer, numbers=SOME), self._longer, self._rough

    def _longer(self, rows: Tensor, keys: Tensor, numbers: int | None = None) -> Tensor:
        """The same by some numbers of longer vectors, or by all. (m,)"""
        longs, queries = self.index.longs[:, :numbers], self.longs[:, :numbers]
        apart = [
            (longs.index_select(0, k) - queries.index_select(0, i)).square_().sum(1)
            for i, k in zip(rows.split(BLOCK), keys.split(BLOCK), strict=True)
        ]
        return torch.cat(apart) - SLACK * (self.index.squares[keys] + self.squares[rows])

    def _rough(self, rows: Tensor, keys: Tensor) -> Tensor:
        """The same by the keys themselves, in their type: a difference is rounded by a share of itself. (m,)"""
        return (1 - ROUNDED) * self.index.rough(self.q[rows], keys)

    def _nearest(self, some: Tensor, reach: "Reach") -> tuple[Tensor, Tensor]:
        """The distance and number of the nearest key to each of some queries (k,); infinity and -1 where its radius is
        smaller. (k,) and (k,)"""
        of, keys, caps = self._screened(some, reach)
        for bound in self._bounds:
            if len(keys) > FEW * len(some):
                lower = bound(some[of], keys)
                caps = torch.minimum(caps, self._farthest(some, *_likeliest(of, keys, lower)))
                left = lower <= (1 + SLACK) * caps[of].square()
                of, keys = of[left], keys[left]
        apart = self.index.apart(self.q[some[of]], keys)
        distances = apart.new_full((len(some),), torch.inf).scatter_reduce(0, of, apart, "amin")
        first = apart == distances[of]
        entries = torch.full((len(some),), len(self.index.rows)).scatter_reduce(0, of[first], keys[first], "amin")
        near = distances <= reach.radii[entries.clamp(max=len(reach.radii) - 1)]
        return distances.where(near, torch.inf), entries.where(near, -1)

    def _farthest(self, some: Tensor, of: Tensor, keys: Tensor) -> Tensor:
        """How far the nearest key of each of some queries (k,) is at most, as one of these is; infinity of none. (k,)

        ``of`` (m,) says which of ``some`` keys (m,) are looked at for.
        """
        far = ((1 + ROUNDED) * self.index.rough(self.q[some[of]], keys)).sqrt()
        return torch.full((len(some),), torch.inf).scatter_reduce(0, of, far, "amin")

    def _screened(self, some: Tensor, reach: "Reach") -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of queries and keys that short vectors do not rule out: which of ``some`` (m,), and which key (m,); and
        how far the nearest key of each is at most, if any reaches it (k,): the likeliest is looked at for that."""
        k, n = len(some), len(self.index.rows)
        q, floor, each = self.shorts[some], (1 - SLACK) / 2 * self.squares[some].numpy(), np.arange(k)
        step = max(BLOCK, CELLS // k)
        blocks = [slice(at, at + step) for at in range(0, n, step)]
        room = torch.empty(k * min(step, n))  # once, as the system clears it

        def products(q: Tensor, block: slice) -> np.ndarray:
            keys = self.index.shorts[:, block]
            out = room[: len(q) * keys.shape[1]].view(len(q), -1)
            return torch.mm(q, keys, out=out).sub_(reach.halves[block]).numpy()

        peaks, first = np.empty((len(blocks), k), np.float32), np.empty((len(blocks), k), np.int64)
        last = peaks
        for b, block in enumerate(blocks):
            last = products(q, block)
            first[b] = last.argmax(1)
            peaks[b] = last[each, first[b]]
        at = peaks.argmax(0)
        likeliest = torch.from_numpy(at * step + first[at, each])
        caps = self._farthest(some, torch.arange(k), likeliest).clamp(max=reach.largest)
        least = floor - (1 + SLACK) / 2 * caps.square().numpy()
        found = [(each[:0], each[:0])]
        for b in np.flatnonzero(np.any(peaks >= least, axis=1)):
            rows = np.flatnonzero(peaks[b] >= least)
            near = last[rows] if len(blocks) == 1 else products(q[rows], blocks[b])
            hits, keys = np.divmod(np.flatnonzero(near >= least[rows, None]), near.shape[1])
            found.append((rows[hits], b * step + keys))
        of, keys = (torch.from_numpy(np.concatenate(columns)) for columns in zip(*found, strict=True))
        return of, keys, caps


def _likeliest(of: Tensor, keys: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """Of pairs of queries and keys (m,) those that may be the nearest, by what their distances are at least (m,).

    (l,) and (l,)
    """
    least = torch.full((int(of.max()) + 1,), torch.inf).scatter_reduce(0, of, lower, "amin")
    first = lower == least[of]
    return of[first], keys[first]
