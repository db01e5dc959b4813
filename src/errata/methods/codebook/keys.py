"""Look-ups by keys: a key for the prompt of each edit, how far it reaches, and which edits share one.

How far a key reaches is measured by one rule for all codebooks, half way to where other texts begin:

    r_i = ½ Q_share { ‖q_i − q_t‖ : t a text that is no edit and does not name the edit's subject }

A text that names the subject may ask what the edit asks; a share of the others, and not the nearest, because it may do
so under another name. Half way is what GRACE's Algorithm 1 gives to each of two edits with different answers: here the
other is a text that keeps its own.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.memory.adapter import Lookup, joint_training
from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.memory.nearest import Nearest
from errata.model.lm import Call
from errata.model.passes import at_least_float32
from errata.patch.schema import Floats, Ints

SAME = 1e-3  # share of a query's length within which another is the same: rounding differs as much between batches


def half_way(queries: Tensor, texts: Tensor, named: Tensor, share: float) -> Tensor:
    """Half of how far each query (k, f) is from where texts' queries (n, f) begin: all but ``share`` of them. (k,)

    ``named`` (k, n) are the texts that do not count for a query, unless that leaves none.
    """
    named = named & ~named.all(1, keepdim=True)
    apart = torch.cdist(queries.double(), texts.double()).masked_fill(named, torch.inf).sort(1).values
    at = (share * ((~named).sum(1) - 1)).round().long()
    return (apart.gather(1, at[:, None])[:, 0] / 2).float()


class Training(NamedTuple):
    """What the payload of an edit is trained on."""

    edits: list[int]  # those of its entry, and those whose keys find it though they had another answer
    start: int  # the edit from whose payload it goes on: itself where the entry is new


@dataclass(frozen=True, eq=False, kw_only=True)
class KeyTable(Lookup):
    """Queries of all edits in order, and which of them are keys.

    Edit i has an entry of its own, with its query as the key, or shares the entry of edit ``owner[i]``, which has the
    same subject and target: the paper asks for the same target alone. An entry is taken apart, into one for each edit
    that is left, when one of its edits is asked again with another target or when its key no longer finds all of them.
    The key of an edit that a newer one contradicts in other words stays where it is and finds the newer one, which is
    trained on its prompt too.
    """

    queries: Annotated[Tensor, Floats("n in")]
    reach: Annotated[Tensor, Floats("n")]  # the radius with which a key begins
    radii: Annotated[Tensor, Floats("n")]  # how far a key reaches; below 0 where an edit's query is no key
    owner: Annotated[Tensor, Ints("n", -1, "n")]  # whose key finds each edit; -1 where a newer one took its place
    # (of those the key stays, radius 0 or more, where that was in other words)
    latest: Annotated[Tensor, Ints("n", 0, "n")]  # the edit whose payload answers at each key

    side: ClassVar[Literal["in", "out"]] = "in"  # whether queries are of the site's input or of its output
    together: ClassVar[bool] = True  # whether the edits of an entry share a payload
    local: ClassVar[bool] = True  # whether an edit that is far away changes nothing of a query's match

    @abstractmethod
    def query(self, call: Call, h: Tensor) -> Tensor:
        """Queries of the rows of a pass (b, t, f) that has read the prompts. (b, f)"""

    @abstractmethod
    def match(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The edit whose key is nearest to each query (b, f), and whether it is near enough. (b,) and (b,)"""

    def measured(self, distance: Tensor) -> Tensor:
        """What :meth:`match` makes of a query's distance from a key, which it compares with the radius."""
        return distance

    @abstractmethod
    def joins(self, i: int, log: EditLog) -> int | None:
        """The entry that edit i has joined, or None. Only edits that :func:`agree` may share one."""

    def open(self, i: int, log: EditLog) -> None:
        """Gives edit i an entry of its own, in place."""
        self.owner[i], self.radii[i] = i, self.reach[i]
        self.changed.add(i)

    @cached_property
    def index(self) -> Nearest:
        """The queries, to be looked up: made when that is first done, and longer with each batch of edits."""
        return Nearest(self.queries)

    @cached_property
    def changed(self) -> set[int]:
        """Keys that came, moved or shrank since it was last seen to that every edit is found."""
        return set()

    @classmethod
    def empty(cls, f: int, **settings: Any) -> Self:
        """A table without keys, for queries of width ``f``."""
        none = torch.empty(0)
        return cls(queries=torch.empty(0, f), reach=none, radii=none, owner=none.long(), latest=none.long(), **settings)

    @override
    def check_content(self) -> None:
        super().check_content()
        if bool((self.radii[self.owner[self.owner >= 0]] < 0).any()):
            raise BadInput("owner names an edit whose query is no key: its radius is below 0")

    @override
    def find(self, call: Call, x: Tensor, y: Tensor, payload: Any) -> Tensor:
        return self.found(self.query(call, at_least_float32(x if self.side == "in" else y)))

    def found(self, q: Tensor) -> Tensor:
        """What :meth:`match` gives for queries (b, f), once all edits have been placed; -1 for none. (b,)"""
        entry, near = self.match(q)
        return torch.where(near, entry, -1)

    @override
    def rows(self, entry: Tensor) -> Tensor:
        return torch.where(entry >= 0, self.latest.to(entry.device)[entry.clamp(min=0)], -1)

    @override
    def told(self, entry: Tensor) -> Tensor:
        given_up = (entry >= 0) & self.given_up.to(entry.device)[entry.clamp(min=0)]
        return torch.where(given_up, self.rows(entry), entry)

    # How it grows ----------------------------------------------------------------------------------

    def extended(
        self, log: EditLog, queries: Tensor, reach: Tensor, reworded: Sequence[Sequence[int]] | None = None
    ) -> tuple[Self, list[Training]]:
        """With the queries (k, f) and radii (k,) of the last k edits of ``log``, placed one after another.

        ``reworded`` are for each the earlier ones that it contradicts in other words.
        """
        n, k = len(self.queries), len(queries)
        new = torch.arange(n, n + k)
        table = replace(
            self,
            queries=torch.cat([self.queries.to(queries), queries]),
            reach=torch.cat([self.reach, reach]),
            radii=torch.cat([self.radii, torch.full((k,), -1.0)]),
            owner=torch.cat([self.owner, torch.full((k,), -1)]),
            latest=torch.cat([self.latest, new]),
        )
        table.goes_on(self, log)
        replaces = reworded or [()] * k
        alike = table.index.seen(queries).each_within(SAME * queries.norm(dim=-1))
        return table, [table._place(*one) for one in zip(new.tolist(), repeat(log), alike, replaces)]

    def goes_on(self, old: Any, log: EditLog) -> None:
        """Takes over from ``old``, which this table begins with, what was computed of its edits."""
        n = len(old.queries)
        known: Numbers = old.__dict__.get("numbers") or Numbers.of(log[:n])
        object.__setattr__(self, "numbers", Numbers(*map(torch.cat, zip(known, Numbers.of(log[n:]), strict=True))))
        object.__setattr__(self, "index", Nearest(self.queries, old.index))

    def _place(self, i: int, log: EditLog, alike: Tensor, reworded: Sequence[int]) -> Training:
        """Takes edit i in, the newest, whose prompt reads as those of some edits do; what it replaces is not found."""
        same = sorted({*alike.tolist(), *self._repeats(i, log)} - {i})
        self.radii[[j for j in same if self.owner[j] < 0]] = -1.0
        others = [question for j in reworded for question in self._give_up(j, i, log)]
        for j in [j for j in same if self.owner[j] >= 0 and not agree(log[j], log[i])]:
            entry, self.owner[j] = int(self.owner[j]), -1
            self._take_apart(entry, log)
        entry = self.joins(i, log)
        training = Training([i], i)
        if entry is None:
            self.open(i, log)
        else:
            self.changed.add(entry)
            if self.together:
                training = Training(self._members(entry), int(self.latest[entry]))
                self.latest[entry] = i
        training = training._replace(edits=[*dict.fromkeys([*training.edits, *others])])
        while lost := self._lost_entries(i):
            for entry in lost:
                self._take_apart(entry, log)
        return training

    def _repeats(self, i: int, log: EditLog) -> list[int]:
        """The edits of the same prompt as edit i."""
        prompts = self.__dict__["numbers"].prompts
        repeats = (prompts == prompts[i]).nonzero()[:, 0].tolist()
        return [j for j in repeats if log[j].prompt_ids == log[i].prompt_ids]

    @property
    def given_up(self) -> Tensor:
        """Which edits have a key that finds a newer one, which contradicts them in other words. (n,)"""
        return (self.owner < 0) & (self.radii >= 0)

    def _give_up(self, j: int, i: int, log: EditLog) -> list[int]:
        """Edit j's key finds edit i from now on, and so do those that found j. The edits whose keys these are."""
        entry = int(self.owner[j])
        if entry < 0:
            return []
        if self._members(entry) != [j] or entry != j:
            self._take_apart(entry, log)
        found = self.given_up & (self.latest == self.latest[j])
        self.owner[j], found[j] = -1, True
        self.latest[found] = i
        return found.nonzero()[:, 0].tolist()

    def _members(self, entry: int) -> list[int]:
        return (self.owner == entry).nonzero()[:, 0].tolist()

    def _take_apart(self, entry: int, log: EditLog) -> None:
        """Each edit of the entry that is left gets one of its own; what the entry answered, they answer."""
        left, self.radii[entry] = self._members(entry), -1.0
        if self.together:
            self.latest[left] = self.latest[entry].clone()
        for i in left:
            self.open(i, log)

    def _lost_entries(self, i: int) -> list[int]:
        """Entries of several edits whose key does not find all of them any more, or finds edit i, which is not in it.

        Only what :attr:`changed` can have made it so.
        """
        changed = sorted(self.changed)
        self.changed.clear()
        joined = ((self.owner >= 0) & (self.owner != torch.arange(len(self.owner)))).nonzero()[:, 0]
        if not len(joined):
            return []
        entries = self.owner[joined].unique()
        several = torch.isin(self.owner, entries)
        members = self._shaken(changed, entries, several)
        lost = self.owner[members[~self._finds(members)]].tolist()
        found = self._nearest_entry(i) if bool(several[i]) else i
        if bool(several[found]) and self.owner[found] != self.owner[i]:
            lost.append(int(self.owner[found]))
        return sorted(set(lost))

    def _shaken(self, changed: Sequence[int], entries: Tensor, several: Tensor) -> Tensor:
        """Which edits of the entries of several, ``several`` (n,), a changed key can have been taken from. (m,)

        Those that it is nearer to than their entry reaches, and those of the changed entries themselves.
        """
        reach, shaken = float(self.radii[entries].max()), torch.zeros_like(several)
        for key in changed:
            near, _ = self.index.seen(self.key(key)[None]).within(reach)
            shaken[near] = True
            shaken |= self.owner == key
        return (shaken & several).nonzero()[:, 0]

    @property
    def split_by_others(self) -> bool:
        """Whether the nearest edit of another answer makes a radius smaller."""
        return False

    def key(self, entry: int) -> Tensor:
        """The key of an entry. (f,)"""
        return self.queries[entry]

    def _nearest_entry(self, i: int) -> int:
        """The edit whose key is nearest to the query of edit i, however far it reaches."""
        return int(self.match(self.queries[i][None])[0])

    def _finds(self, edits: Tensor) -> Tensor:
        """Whether each of some edits (m,) is found by its own query. (m,)"""
        if not len(edits):
            return torch.empty(0, dtype=torch.bool)
        found, near = self.match(self.queries[edits])
        return near & (self.owner[edits] >= 0) & (self.owner[found] == self.owner[edits])

    @cached_property
    def in_use(self) -> Tensor:
        """Whether each edit is found by its own query, which placing it and all later ones saw to. (n,)"""
        return self.owner >= 0

    @override
    def kept(self, log: EditLog, keep: Sequence[int]) -> Self:
        kept = set(keep)
        gone = [i for i in range(len(log)) if i not in kept]
        if all(self._is_alone(i, log) for i in gone):
            return self._cut(keep)
        for i, answered in enumerate(self._reworded(log)):
            if i not in kept and len(answered) > 1:  # of which one may have given up another
                raise joint_training(log[i], log, keep)
        _, then = self._anew(log, range(len(log)))
        left, now = self._anew(log, keep)
        for at, i in enumerate(keep):
            if ([keep[j] for j in now[at].edits], keep[now[at].start]) != then[i]:
                raise joint_training(log[i], log, keep)
        return left

    def _is_alone(self, i: int, log: EditLog) -> bool:
        """Whether all other edits were placed as they would have been without edit i: if not, that is not known.

        It shares and shared no entry, replaced none and none replaced it, and it is not so near to edits that may share
        an entry that it could have parted them.
        """
        numbers: Numbers = self.__dict__.get("numbers") or Numbers.of(log)
        linked = (self.owner == i) | (self.latest == i) | (numbers.prompts == numbers.prompts[i])
        linked |= numbers.answers == numbers.answers[i]
        if self.split_by_others or self.owner[i] != i or int(linked.sum()) > 1:
            return False
        q, (some, across) = self.queries[i], self._spread(numbers)
        if not self.local and len(some):
            return False
        limits = torch.full_like(self.reach, SAME * float(self.index.farthest(q)))
        limits[some] = torch.maximum(limits[some], across)
        return len(self.index.seen(q[None]).within(limits)[0]) == 1

    def _spread(self, numbers: "Numbers") -> tuple[Tensor, Tensor]:
        """The edits that share an answer with another, and for each how far two of its answer are apart at most.

        (m,) and (m,)
        """
        _, of, counts = numbers.answers.unique(return_inverse=True, return_counts=True)
        some = (counts[of] > 1).nonzero()[:, 0]
        if not len(some):
            return some, self.reach[:0]
        first = torch.full_like(counts, len(of)).scatter_reduce(0, of, torch.arange(len(of)), "amin")
        apart = torch.cat([(self.queries[j] - self.queries[first[of[j]]]).norm(dim=-1) for j in some.split(4096)])
        farthest = torch.zeros(len(counts), dtype=apart.dtype).scatter_reduce(0, of[some], apart, "amax")
        return some, (2.001 * farthest[of[some]]).to(self.reach)

    def _cut(self, keep: Sequence[int]) -> Self:
        """Without the other edits, which nothing refers to."""
        rows = torch.tensor(list(keep), dtype=torch.long)
        number = torch.full((len(self.owner) + 1,), -1)  # the last is for -1
        number[rows] = torch.arange(len(rows))
        tensors = {name: getattr(self, name)[rows] for name in ("queries", "reach", "radii")}
        return replace(self, **tensors, owner=number[self.owner[rows]], latest=number[self.latest[rows]])

    def _anew(self, log: EditLog, keep: Sequence[int]) -> tuple[Self, list[Training]]:
        none = {name: getattr(self, name)[:0] for name in ("queries", "reach", "radii", "owner", "latest")}
        rows, some = list(keep), tuple(log[i] for i in keep)
        number = {i: at for at, i in enumerate(rows)}
        answered = self._reworded(log)
        reworded = [[number[j] for j in answered[i] if j in number] for i in rows]
        return replace(self, **none).extended(some, self.queries[rows], self.reach[rows], reworded)

    def _reworded(self, log: EditLog) -> list[list[int]]:
        """For each edit those that it contradicts in other words, as far as no newer one does."""
        of: list[list[int]] = [[] for _ in log]
        for j in (self.owner < 0).nonzero()[:, 0].tolist():
            if not agree(log[j], log[i := int(self.latest[j])]):
                of[i].append(j)
        return of

    @override
    def details(self, log: EditLog, i: int) -> dict[str, Any]:
        if not self.in_use[i]:
            return {"in use": "no" if self.owner[i] >= 0 else "a newer one"}
        key = int(self.owner[i])
        shared = {"shares": log[key].id} if key != i else {}
        return {"radius": round(float(self.radii[key]), 4), **shared, "in use": "yes"}

    @override
    def totals(self) -> dict[str, Any]:
        return {"keys": int((self.radii >= 0).sum()), "in use": int(self.in_use.sum())}


def agree(one: EditRecord, other: EditRecord) -> bool:
    """Whether two edits are of one subject and have one target."""
    return one.subject == other.subject and one.target_ids == other.target_ids


class Numbers(NamedTuple):
    """A number for each edit, the same where edits agree in what it is of; in one process alone."""

    prompts: Tensor  # (n,)
    answers: Tensor  # subject and target; (n,)

    @classmethod
    def of(cls, log: Sequence[EditRecord]) -> Self:
        """The numbers of the edits of a log."""
        prompts = [hash(tuple(record.prompt_ids)) for record in log]
        answers = [hash((record.subject, tuple(record.target_ids))) for record in log]
        return cls(*(torch.tensor(of, dtype=torch.long) for of in (prompts, answers)))
