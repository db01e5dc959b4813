"""Look-ups among many keys: the same answers as comparing all of them, and the same tables."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from errata.methods.codebook.horen import Directions
from errata.methods.codebook.keys import KeyTable
from errata.methods.codebook.melo import Clusters
from errata.methods.codebook.spheres import Spheres
from errata.methods.memory import nearest
from errata.methods.memory.log import EditRecord
from errata.methods.memory.nearest import Nearest, Seen

BY_HAND = settings(max_examples=60, deadline=None)


def compared(rows: Tensor, q: Tensor) -> Tensor:
    """Every distance, computed and rounded one by one. (b, n)"""
    return (rows[None].double() - q[:, None].double()).norm(dim=-1).to(rows)


def nearest_by_hand(rows: Tensor, q: Tensor, radii: Tensor) -> list[int]:
    found: list[int] = []
    for distances in compared(rows, q).tolist():
        live = [(d, i) for i, d in enumerate(distances) if radii[i] >= 0]
        d, i = min(live, default=(math.inf, -1))
        found.append(i if i >= 0 and d <= float(radii[i]) else -1)
    return found


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Keys in few places or many, some of them equal; queries that are keys or not; radii, some of dead keys."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    n, f, b = draw(st.integers(1, 90)), draw(st.sampled_from([1, 2, 7, 70])), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    places = torch.randn(draw(st.sampled_from([1, 3, 200])), f, generator=g, dtype=dtype)
    scale, shift = draw(st.sampled_from([1e-3, 1.0, 1e4])), draw(st.sampled_from([0.0, 10.0, 1000.0]))
    noise = draw(st.sampled_from([0.0, 1e-4, 0.3]))
    rows = places[torch.randint(len(places), (n,), generator=g)]
    rows = (rows + noise * torch.randn(n, f, generator=g, dtype=dtype) + shift) * scale
    q = rows[torch.randint(n, (b,), generator=g)].clone()
    q[::2] += draw(st.sampled_from([0.0, 1e-4, 0.5])) * scale * torch.randn(f, generator=g, dtype=dtype)
    far = compared(rows, q).float()
    radii = far[torch.randint(b, (n,), generator=g), torch.arange(n)] * draw(st.sampled_from([0.5, 1.0, 1.1, 1e3]))
    radii[torch.rand(n, generator=g) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -1.0
    return rows, q, radii


@BY_HAND
@given(crowds(), st.integers(1, 90), st.sampled_from([(1, 1), (1, 2), (3, 5), (23, 191)]), st.sampled_from([0, 4]))
def test_the_nearest_is_that_of_comparing_all(crowd: Any, first: int, directions: tuple[int, int], few: int) -> None:
    """Also with few directions, and where the index was made of the first keys and then grew."""
    rows, q, radii = crowd
    with pytest.MonkeyPatch.context() as patched:
        sizes = {"PAIRS": 3, "FEW": few, "SOME": 2, "BLOCK": 8, "PASSES": 2, "CELLS": 24}
        for name, value in {**sizes, **dict(zip(("DIRECTIONS", "MORE"), directions, strict=True))}.items():
            patched.setattr(nearest, name, value)
        for index in (Nearest(rows), Nearest(rows, Nearest(rows[:first]))):
            entries, distances = index.seen(q).nearest(radii)
            assert entries.tolist() == nearest_by_hand(rows, q, radii)
            assert distances.dtype == q.dtype
            whole = compared(rows, q)
            assert distances.tolist() == [
                float(whole[i, e]) if e >= 0 else math.inf for i, e in enumerate(entries.tolist())
            ]
            for limits in (radii, float(radii.abs().median())):
                most = torch.as_tensor(limits).expand(len(rows))
                near, far = index.seen(q).within(limits, len(q) - 1)
                assert near.tolist() == ((whole[-1] <= most) & (most >= 0)).nonzero()[:, 0].tolist()
                assert torch.equal(far, whole[-1, near])
            limits = whole.median(1).values
            near = (whole <= limits[:, None]).nonzero()
            assert torch.equal(torch.cat(index.seen(q).each_within(limits)), near[:, 1])
    everywhere = torch.where(radii >= 0, math.inf, -1.0)
    assert Nearest(rows).seen(q).nearest(everywhere)[0].tolist() == nearest_by_hand(rows, q, everywhere)


def test_of_equal_keys_the_first_is_found() -> None:
    rows, q = torch.ones(300, 5), torch.zeros(2, 5)
    radii = torch.full((300,), 3.0)
    assert Nearest(rows).seen(q).nearest(radii)[0].tolist() == [0, 0]
    radii[:7] = -1.0
    assert Nearest(rows).seen(q).nearest(radii)[0].tolist() == [7, 7]
    radii[9] = 2.0  # as near, and no nearer
    assert Nearest(rows).seen(q).nearest(radii)[0].tolist() == [7, 7]
    radii[7] = 2.0
    assert Nearest(rows).seen(q).nearest(radii)[0].tolist() == [-1, -1]
    assert Nearest(torch.empty(0, 5)).seen(q).nearest(torch.empty(0))[0].tolist() == [-1, -1]
    assert not len(Nearest(torch.empty(0, 5)).seen(q).within(1.0)[0])


@pytest.mark.parametrize(("directions", "noise", "limit", "most"), [(20, 0.1, 5, 20), (300, 1, 20, 20_000)])
def test_few_keys_are_read(
    directions: int, noise: float, limit: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2,000 keys those that may be the nearest, or near enough: by short vectors, where few directions tell."""
    for name, value in {"BLOCK": 64, "CELLS": 64, "FEW": 0}.items():
        monkeypatch.setattr(nearest, name, value)
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, directions, generator=g)).Q.T
    rows = (300 / directions) ** 0.5 * torch.randn(2000, directions, generator=g) @ basis
    index, read, compared = Nearest(rows), list[int](), list[int]()
    keys_of, longer = index.keys_of, Seen._longer
    monkeypatch.setattr(index, "keys_of", lambda some: read.append(len(some)) or keys_of(some))
    monkeypatch.setattr(Seen, "_longer", lambda *x, **n: compared.append(len(x[2])) or longer(*x, **n))
    seen = index.seen(rows[100:110] + noise * torch.randn(10, 300, generator=g))
    assert seen.nearest(torch.full((2000,), 100.0))[0].tolist() == list(range(100, 110))
    assert compared[0] <= most and sum(read) < 100
    read.clear()
    assert seen.within(limit, 3)[0].tolist() == [103]
    assert sum(read) < 20


def test_a_key_that_moved_is_found_where_it_is() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    index, radii = Nearest(rows[:30]), torch.full((40,), 0.1)
    index.put(3, rows[5] + 10)
    longer = Nearest(rows, index)
    for one, n in ((index, 30), (longer, 40)):
        entries, _ = one.seen(torch.stack([rows[3], rows[5] + 10, rows[29]])).nearest(radii[:n])
        assert entries.tolist() == [-1, 3, 29]
    longer.back(3)
    longer.back(4)
    assert longer.seen(rows[:5]).nearest(radii)[0].tolist() == [0, 1, 2, 3, 4] and not longer.moved
    assert 3 in index.moved  # what is made of it is another
    alone = Nearest(rows[:2])
    alone.put(1, rows[7])
    assert Nearest(rows, alone).seen(rows[7][None]).nearest(radii)[0].tolist() == [1]  # with directions chosen anew


# Tables ----------------------------------------------------------------------------------------------


def comparing_all(patched: pytest.MonkeyPatch) -> None:
    """Look-ups by comparing all keys, and after each edit a look at all edits that share an entry."""

    def rows_of(seen: Seen) -> Tensor:
        rows = seen.index.rows.clone()
        for i, row in seen.index.moved.items():
            rows[i] = row
        return rows

    def found(seen: Seen, radii: Tensor, reach: Any = None) -> tuple[Tensor, Tensor]:
        rows = rows_of(seen)
        entries = torch.tensor(nearest_by_hand(rows, seen.q, radii))
        distances = compared(rows, seen.q)[torch.arange(len(seen.q)), entries]
        return entries, distances.masked_fill(entries < 0, math.inf)

    def within(seen: Seen, limits: Any, row: int = 0) -> tuple[Tensor, Tensor]:
        distances = compared(rows_of(seen), seen.q[row : row + 1])[0]
        near = (distances <= torch.as_tensor(limits)).nonzero()[:, 0]
        return near, distances[near]

    patched.setattr(Seen, "nearest", found)
    patched.setattr(Seen, "within", within)
    patched.setattr(Seen, "each_within", lambda seen, limits: [within(seen, one, i)[0] for i, one in enumerate(limits)])
    patched.setattr(KeyTable, "_shaken", lambda table, changed, entries, several: several.nonzero()[:, 0])
    patched.setattr(Directions, "_may_reach", lambda table, seen, i: True)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([Spheres, Clusters, Directions]),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.booleans(),
    st.integers(1, 30),
)
def test_edits_are_placed_as_if_each_were_compared_with_all(
    seed: int, table: type[KeyTable], radius: float, split: bool, first: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(6, 3, generator=g)[torch.randint(6, (30,), generator=g)] + 0.4 * torch.randn(30, 3, generator=g)
    q = torch.nn.functional.normalize(q, dim=-1) if table is Directions else q
    prompts, answers = (torch.randint(m, (30,), generator=g).tolist() for m in (25, 4))
    log = tuple(
        EditRecord(f"e{i}", f"p {i}", "p", "t", None, [prompt], [answer])
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    )
    reach = radius * (0.5 + torch.rand(30, generator=g))
    reworded = [[int(torch.randint(i, (1,), generator=g))] if i % 11 == 10 else [] for i in range(30)]
    how: Any = {"recent": 0.0, "alpha": 0.1, "beta": 20.0} if table is Directions else {"split": split}

    def made() -> tuple[KeyTable, list[Any]]:
        begun, some = table.empty(3, **how).extended(log[:first], q[:first], reach[:first], reworded[:first])
        done, more = begun.extended(log, q[first:], reach[first:], reworded[first:])
        return done, [*some, *more]

    fast, how_fast = made()
    with pytest.MonkeyPatch.context() as patched:
        comparing_all(patched)
        plain, how_plain = made()
        asked = torch.cat([q, torch.randn(9, 3, generator=g)])
        asked = torch.nn.functional.normalize(asked, dim=-1) if table is Directions else asked
        expected = plain.match(asked)[0].tolist()
        assert torch.equal(fast.in_use, plain._finds(torch.arange(30)))
    assert how_fast == how_plain
    for name in ("radii", "owner", "latest"):
        assert torch.equal(getattr(fast, name), getattr(plain, name)), name
    read = type(fast).build(fast.config(), fast.tensors())  # with an index that was not grown
    assert fast.match(asked)[0].tolist() == expected == read.match(asked)[0].tolist()
    assert fast.found(asked).tolist() == expected == read.found(asked).tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([Spheres, Clusters, Directions]),
    st.sampled_from([0.2, 0.6, 2.0]),
    st.sampled_from([4, 12, 1000]),
)
def test_an_edit_that_is_alone_is_taken_out_as_if_all_others_were_placed_anew(
    seed: int, table: type[KeyTable], radius: float, answers: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(12, 3, generator=g)[torch.randint(12, (20,), generator=g)]
    q = q + torch.randn(20, 3, generator=g) * 0.2 * (torch.rand(20, 1, generator=g) < 0.8)
    q = torch.nn.functional.normalize(q, dim=-1) if table is Directions else q
    prompts, targets = torch.randint(60, (20,), generator=g).tolist(), torch.randint(answers, (20,), generator=g)
    log = tuple(
        EditRecord(f"e{i}", f"p {i}", "p", "t", None, [prompt], [answer])
        for i, (prompt, answer) in enumerate(zip(prompts, targets.tolist(), strict=True))
    )
    how: Any = {"recent": 0.0, "alpha": 0.1, "beta": 20.0} if table is Directions else {"split": False}
    whole = table.empty(3, **how).extended(log, q, torch.full((20,), radius))[0]
    alone = [whole._is_alone(i, log) for i in range(20)]
    for i in range(20):
        keep = [j for j in range(20) if j != i]
        if not alone[i]:
            continue
        found = whole.kept(log, keep)
        _, then = whole._anew(log, range(20))
        anew, now = whole._anew(log, keep)
        assert [([keep[j] for j in one.edits], keep[one.start]) for one in now] == [then[j] for j in keep]
        for name in ("queries", "reach", "radii", "owner", "latest"):
            assert torch.equal(getattr(found, name), getattr(anew, name)), name


def test_most_edits_of_many_are_alone() -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(60, 40, generator=g)
    log = tuple(EditRecord(f"e{i}", f"p {i}", f"s{i // 2}", "t", None, [i], [0]) for i in range(60))
    table = Clusters.empty(40, split=False).extended(log, q, torch.full((60,), 0.5))[0]
    assert not any(table._is_alone(i, log) for i in range(60))  # each has another of its subject and answer
    lone = (*log, EditRecord("last", "p", "s", "t", None, [99], [0]))
    table = table.extended(lone, 30 * torch.randn(1, 40, generator=g), torch.ones(1))[0]
    assert table._is_alone(60, lone)
