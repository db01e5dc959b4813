# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Two patches that have gone on from a third, in one: ``ours + (theirs - base)``, where that is what both would be.

Changes of weights are added. Of memories and prompts that of the side that changed them is taken; where both did, they
are put in a row if each side has added parts of its own kinds, and otherwise cannot be combined.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from errata.errors import Unsupported
from errata.journal.again import without
from errata.journal.commit import fact
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight
from errata.patch.memory import GRAM, KEYS, TARGETS
from errata.patch.parts import Part
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

ADDED, ONE_SIDE = "weights added: ours + (theirs - base)", "changed by one side alone"
JOINED = "memories in a row"
TWICE = "both sides have taken out the same edit, which the sum of their changes would take out twice"
ANEW = "both sides have changed the same memory, whose entries must be made again"


def combined(
    ours: Patch, theirs: Patch, base: Patch, wanted: Iterable[str], rests: str | None = None
) -> tuple[Patch, str]:
    """The patch with the wanted edits (their facts), and how it was had, in words. Raises :class:`Unsupported`.

    ``rests`` says of an edit, if there is such a one, that it was made with another in force that is gone: then no
    weights are added. Whether each edit still holds beside the others only the model can tell.
    """
    facts, of_base = set(wanted), {fact(edit) for edit in base.edits}
    mine = {fact(edit) for edit in ours.edits}
    # What either side took out of the base goes with the sum: taken out of both, it would go twice.
    ours = without(ours, mine - facts - of_base)
    others = {fact(edit) for edit in theirs.edits}
    new = others - of_base
    theirs = without(theirs, new - facts | new & mine)
    gone = of_base - mine - others
    parts, ways = _parts(ours, theirs, base, TWICE if gone else rests)
    meta = {**theirs.meta, **ours.meta, "made": _made(ours, theirs, facts)}
    patch = Patch(parts, _memory(ours.memory, theirs.memory, base.memory), meta)
    if {fact(edit) for edit in patch.edits} != facts:
        raise Unsupported("the sum would hold other edits than those that are wanted")
    return (patch if parts else replace(EMPTY, meta=meta)), "; ".join(ways)


def _parts(ours: Patch, theirs: Patch, base: Patch, no_sum: str | None) -> tuple[tuple[Part, ...], list[str]]:
    """The parts of both sides, changes of weights first (which are put on first anyway), and how each was had.

    ``no_sum`` says why changes of both sides cannot be added, where that is so.
    """
    a, b, o = (total(patch) for patch in (ours, theirs, base))
    if no_sum and a != o and b != o:
        raise Unsupported(no_sum)
    weights = a if b == o else b if a == o else a + _difference(b, o)
    ways = [ADDED if a != o and b != o else ONE_SIDE] if weights.weights else []
    mine, other, common = (_others(patch) for patch in (ours, theirs, base))
    if other == common or mine == common:
        others = mine if other == common else other
        ways += [ONE_SIDE] if others else []
    else:
        n = len(common)
        tails = mine[n:], other[n:]
        kinds = [{part.kind for part in tail} for tail in tails]
        if mine[:n] != common or other[:n] != common or kinds[0] & kinds[1]:
            raise Unsupported(ANEW)
        others = [*mine, *tails[1]]
        ways += [JOINED]
    return (*([weights] if weights.weights else []), *others), list(dict.fromkeys(ways))


def total(patch: Patch) -> Delta:
    """All changes of weights of a patch, in one."""
    return sum(patch.of_kind(Delta), Delta({}))


def _others(patch: Patch) -> list[Part]:
    return [part for part in patch.parts if not isinstance(part, Delta)]


def _difference(b: Delta, o: Delta) -> Delta:
    """b - o. Low-rank changes that go on from those of o, as editing leaves them, keep the terms that are new."""
    changed = dict[str, Weight]()
    for name in dict.fromkeys([*b.weights, *o.weights]):
        new, old = b.weights.get(name), o.weights.get(name)
        if old is None or new is None:
            changed[name] = new if new is not None else _negated(old)
        elif isinstance(new, LowRank) and isinstance(old, LowRank) and _goes_on(new, old):
            changed |= {name: LowRank(new.a[:, old.rank :], new.b[old.rank :])} if new.rank > old.rank else {}
        else:
            changed[name] = new + _negated(old)
    return Delta(changed)


def _negated(w: Weight | None) -> Weight:
    assert w is not None
    return w * -1.0


def _goes_on(new: LowRank, old: LowRank) -> bool:
    r = old.rank
    return new.rank >= r and torch.equal(new.a[:, :r], old.a) and torch.equal(new.b[:r], old.b)


def _made(ours: Patch, theirs: Patch, wanted: set[str]) -> list[dict[str, Any]]:
    """The records of both, ours first, each with the edits that stay; those that both made stand once."""
    made: list[dict[str, Any]] = []
    known = set[str]()
    for patch in (ours, theirs):
        keys = set[str]()
        for record in patch.meta.get("made", ()):
            edits = [e for e in record["edits"] if (key := _fact(e)) in wanted and key not in known]
            keys |= {_fact(edit) for edit in edits}
            ids = {edit["id"] for edit in edits}
            outcomes = {id: outcome for id, outcome in record.get("outcomes", {}).items() if id in ids}
            made += [{**record, "edits": edits, "outcomes": outcomes}] if edits else []
        known |= keys
    return made


def _fact(record: Mapping[str, Any]) -> str:
    return fact(Edit.from_json(record))


# Memories: keys of edits, which are added up too -------------------------------------------------------


def _memory(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What both sides remember. Keys are those of either, each once; of anything else, what one side has changed."""
    memory = dict[str, Tensor]()
    names = list(dict.fromkeys([*ours, *theirs]))
    for name in names:
        if name.startswith((KEYS, GRAM)):
            site = name.split("/", 1)[1]
            if KEYS + site not in memory and GRAM + site not in memory:
                memory |= _keys(site, ours, theirs, base)
        elif (value := _of_one(name, ours, theirs, base)) is not None:
            memory[name] = value
    return memory


def _keys(
    site: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The keys of a site: in a row while all are held as such and fewer than they are wide, otherwise their Gram."""
    rows = [side.get(KEYS + site) for side in (ours, theirs, base)]
    grams = [side.get(GRAM + site) for side in (ours, theirs, base)]
    width = next(t.shape[1] for t in (*rows, *grams) if t is not None)
    if all(gram is None for gram in grams):
        a, b, o = (torch.empty(0, width) if t is None else t for t in rows)
        kept = a[_in(a, b) | ~_in(a, o)]  # without those that they have taken out
        whole = torch.cat([kept, b[~_in(b, a) & ~_in(b, o)].to(kept)])
        if len(whole) < width:
            return {KEYS + site: whole}
        return {GRAM + site: whole.T @ whole}
    a, b, o = (
        g if g is not None else k.T @ k if k is not None else torch.zeros(width, width)
        for g, k in zip(grams, rows, strict=True)
    )
    return {GRAM + site: a + b.to(a) - o.to(a)}


def _in(some: Tensor, others: Tensor) -> Tensor:
    """For each row, whether it is one of the others, bit for bit."""
    if not len(some) or not len(others):
        return torch.zeros(len(some), dtype=torch.bool)
    return torch.stack([(others.to(row) == row).all(1).any() for row in some])


def _of_one(
    name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> Tensor | None:
    """What is remembered under another name: of the side that changed it; rows that both have added, in a row.

    None where a side has given it up, and for targets that do not stand in a row. Raises :class:`Unsupported` where
    both have changed anything else otherwise.
    """
    a, b, o = ours.get(name), theirs.get(name), base.get(name)
    if o is not None and (a is None or b is None):
        return None
    if a is None or b is None or _equal(a, b) or _equal(b, o):
        return a if a is not None else b
    if _equal(a, o):
        return b
    n = 0 if o is None else len(o)
    rows = all(t.ndim == 2 and t.is_floating_point() for t in (a, b)) and a.shape[1] == b.shape[1]
    if rows and (o is None or (_equal(a[:n], o) and _equal(b[:n], o))):
        return torch.cat([a, b[n:].to(a)])
    if name.startswith(TARGETS):
        return None
    raise Unsupported(f"both sides have changed what they remember of {name}")


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
