# pyright: strict
"""Ways through the commits of one or two journals: back from one, and to where two parted."""

import heapq
from collections.abc import Callable, Iterator

from errata.errors import BadInput
from errata.journal.commit import Commit, Damaged
from errata.printable import shown

Get = Callable[[str], Commit]  # an id -> its commit, or BadInput


def back(start: Commit, get: Get) -> Iterator[Commit]:
    """The commit and all that it goes on from, each before its parents; of equal depth the newest first."""
    heap = [(_order(start), start)]
    seen = {start.id}
    while heap:
        _, commit = heapq.heappop(heap)
        yield commit
        for id in commit.parents:
            if id not in seen:
                seen.add(id)
                parent = get(id)
                heapq.heappush(heap, (_order(parent), parent))


def _order(commit: Commit) -> tuple[int, list[int], str]:
    return -commit.depth, [-ord(letter) for letter in commit.time], commit.id


def before(commit: Commit, steps: int, get: Get) -> Commit:
    """The commit so many steps back, by first parents. Raises :class:`BadInput` where the history is shorter."""
    at = commit
    for done in range(steps):
        if not at.parents:
            there = f"{done} commit{'s' * (done != 1)}"
            raise BadInput(f"{commit.short} has {there} before it, and {steps} steps back were asked for")
        at = get(at.parents[0])
    return at


def bases(ours: Commit, theirs: Commit, get: Get) -> list[Commit]:
    """The last common commits: those from which both go on and that no other such one goes on from; newest first."""
    mine = {commit.id for commit in back(ours, get)}
    common = {commit.id: commit for commit in back(theirs, get) if commit.id in mine}
    earlier = {id for commit in common.values() for id in commit.parents}
    return sorted((c for id, c in common.items() if id not in earlier), key=_order)


def missing(id: str, where: object) -> Damaged:
    """The error for a commit that another names and that is not there."""
    return Damaged(f"the journal {where}: the commit {shown(id)} is not there; restore it from a copy")
