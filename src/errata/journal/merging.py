# pyright: strict
"""Merging: what two sides have done since their last common commit, in one patch and one commit."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.errors import BadInput, Refused, Unsupported, WrongModel
from errata.journal import history
from errata.journal.again import answered, check_records, made_again, named, without
from errata.journal.clashes import OUT_OURS, Clash, Rule, clashes_of, decided, on_what_is_gone
from errata.journal.combining import combined
from errata.journal.commit import Commit, fact
from errata.journal.folder import is_journal
from errata.journal.looking import Looking
from errata.journal.recording import record
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

log = logging.getLogger(__name__)

NOTHING, FORWARD = "nothing to do: theirs is in ours already", "ours goes on to theirs: nothing was done here since"
OURS, THEIRS = "ours as it is: nothing of theirs alone stays", "theirs as it is: nothing of ours alone stays"
UNRELATED = "no common commit: the base model itself is the common ancestor"
SEVERAL = "the two sides have parted more than once, and no one patch is their common ancestor"


@dataclass(frozen=True)
class Merged:
    """What came of a merge."""

    commit: Commit
    """The branch's last commit now."""
    way: str
    """How the patch was had, in words."""
    base: Commit | None
    """The last common commit; None where there is none, or several."""
    clashes: tuple[Clash, ...] = ()
    """What contradicted, each with what stays."""
    answered: int | None = None
    """With a model: how many edits of the merged patch are answered with their target, generated."""
    lost: tuple[Edit, ...] = ()
    """Those that are not, and were with the patch of their own side."""

    def to_json(self) -> dict[str, Any]:
        """All that as JSON."""
        return {
            "commit": self.commit.to_json(),
            "way": self.way,
            "base": self.base and self.base.id,
            "clashes": [clash.to_json() for clash in self.clashes],
            "answered": self.answered,
            "lost": [edit.to_json() for edit in self.lost],
        }


@dataclass(frozen=True)
class Side:
    """A commit, its patch, and its edits by their facts."""

    commit: Commit
    patch: Patch

    @property
    def edits(self) -> dict[str, Edit]:
        """Fact -> edit, in order."""
        return {fact(edit): edit for edit in self.patch.edits}

    @property
    def times(self) -> dict[str, str]:
        """Fact -> when the edit was made."""
        made = self.patch.meta.get("made", ())
        return {fact(Edit.from_json(edit)): call.get("time", "") for call in made for edit in call["edits"]}


@dataclass(frozen=True)
class Source:
    """Where the other side is: this journal or another one, and its commit."""

    journal: Looking
    commit: Commit
    name: str

    @classmethod
    def of(cls, ours: Looking, other: str | Path | Looking, revision: str) -> "Source":
        """The journal of a folder, or this one's revision. Raises :class:`BadInput`."""
        if isinstance(other, str) and other in {*ours.branches(), *ours.tags()}:
            return cls(ours, ours.find(other), other)
        if isinstance(other, str | Path) and is_journal(Path(other)):
            other = type(ours).open(other)
        if isinstance(other, Looking):
            return cls(other, other.find(revision), f"{other.path} {revision}")
        if isinstance(other, Path):
            raise BadInput(f"there is no journal in {other}; give the folder of one, or a branch")
        return cls(ours, ours.find(other), other)


@dataclass(frozen=True)
class How:
    """How a merge is to be done."""

    rule: Rule | None
    resolutions: Sequence[Mapping[str, Any]]
    lm: HFLM | None
    again: bool


def merge(
    journal: Looking,
    other: str | Path | Looking,
    revision: str,
    how: How,
    said: Callable[[str], dict[str, Any]],
    branch: str | None,
) -> Merged:
    """As :meth:`errata.Journal.merge`; ``said`` makes of a reason what a person says with a commit."""
    source, name = Source.of(journal, other, revision), branch or journal.head
    last = journal.branches().get(name)
    get = _either(journal, source.journal)
    taken = [c for c in reversed(list(history.back(source.commit, get))) if journal.database.commit(c.id) is None]
    ours = None if last is None and name in journal.branches() else journal.find(name)
    if ours is None or ours.id in {c.id for c in history.back(source.commit, get)}:
        return _forward(journal, source, name, ours, taken)
    bases = history.bases(ours, source.commit, get)
    if source.commit.id in {c.id for c in bases}:
        return Merged(ours, NOTHING, source.commit)
    sides = Side(ours, journal.load(ours)), Side(source.commit, source.journal.load(source.commit))
    if len({side.commit.fingerprint for side in sides} - {None}) > 1:
        raise WrongModel(
            f"{ours.short} is of the model {ours.model} ({ours.fingerprint}), and {source.commit.short} of "
            f"{source.commit.model} ({source.commit.fingerprint}); only journals of one model are merged"
        )
    base = [Side(one, (journal if journal.database.commit(one.id) else source.journal).load(one)) for one in bases]
    patch, way, clashes = _merged(sides, base, how)
    asked = {} if how.lm is None else _asked(how.lm, patch, sides)
    written = {
        "way": way,
        "base": [one.id for one in bases],
        "clashes": [clash.to_json() for clash in clashes],
        **asked,
    }
    _take(journal, source.journal, taken)
    says = said(f"merge of {source.name}")
    commit = record(journal, patch, says, name, expected=ours.id, merged=[source.commit], taken=taken, how=written)
    lost = [edit for edit in patch.edits if edit.id in asked.get("lost", ())]
    return Merged(
        commit, way, bases[0] if len(bases) == 1 else None, tuple(clashes), asked.get("answered"), tuple(lost)
    )


def _merged(sides: tuple[Side, Side], bases: Sequence[Side], how: How) -> tuple[Patch, str, list[Clash]]:
    """The patch, how it was had, and what clashed."""
    ours, theirs = sides
    common = {key: edit for base in bases for key, edit in base.edits.items()}
    times = ours.times | {key: time for key, time in theirs.times.items() if key not in ours.edits}
    of_base = bases[0].patch if len(bases) == 1 else None
    clashes = clashes_of(common, ours.edits, theirs.edits, how.lm, ours.patch, of_base)
    clashes = decided(clashes, how.rule, how.resolutions, times)
    gone = {key for key in common if key not in ours.edits or key not in theirs.edits}
    gone |= {key for clash in clashes for key in clash.dropped}
    wanted = [key for key in dict.fromkeys([*ours.edits, *theirs.edits]) if key not in gone]
    note = "" if bases else f" ({UNRELATED})"
    try:
        if how.again:
            raise Unsupported("asked for")
        if len(bases) > 1:
            raise Unsupported(SEVERAL)
        rests = next((c for c in clashes if on_what_is_gone(c, ours.edits, theirs.edits)), None)
        patch, way = combined(ours.patch, theirs.patch, of_base or EMPTY, wanted, rests and _made_on(rests))
    except Unsupported as error:
        if not how.again and (one := _as_it_is(sides, wanted)) is not None:
            return *one, clashes
        if how.lm is None:
            raise Refused(
                f"the two patches cannot be combined without the model ({error}); give the model (--model): the edits "
                "of the other side are made again on ours, by the methods and settings on record"
            ) from error
        patch, way = _again(how.lm, sides, bases, wanted)
    return named(patch, ours.patch if ours.patch.meta else theirs.patch), way + note, clashes


def _made_on(clash: Clash) -> str:
    edits = (clash.ours, clash.theirs) if clash.kind == OUT_OURS else (clash.theirs, clash.ours)
    gone, stays = (f"{edit.prompt!r} -> {edit.target_new!r}" for edit in edits)
    return f"{stays} was made with {gone} in force, which is gone, so that in the sum of weights it would be lost"


def _as_it_is(sides: tuple[Side, Side], wanted: Sequence[str]) -> tuple[Patch, str] | None:
    """The patch of the side that has the wanted edits and no others; None where neither does."""
    try:
        for side in sides:
            check_records(side.patch)
    except Unsupported:
        return None
    ways = zip(sides, (OURS, THEIRS), strict=True)
    return next(((side.patch, way) for side, way in ways if side.edits.keys() == set(wanted)), None)


def _again(lm: HFLM, sides: tuple[Side, Side], bases: Sequence[Side], wanted: Sequence[str]) -> tuple[Patch, str]:
    """The wanted edits, made again where ours does not have them. Raises :class:`Refused`."""
    starts = [lambda one=one: without(one.patch, one.edits.keys() - set(wanted)) for one in (*sides, *bases)]
    try:
        for side in sides:
            check_records(side.patch)
        records = [record for side in sides for record in side.patch.meta.get("made", ())]
        return made_again(lm, wanted, records, starts)
    except (Unsupported, BadInput) as error:
        raise Refused(
            f"the two patches cannot be combined, and their edits not be made again ({error}); make them by hand: "
            "`errata checkout` a side, `errata edit --prior` it, `errata commit`"
        ) from error


def _asked(lm: HFLM, patch: Patch, sides: Iterable[Side]) -> dict[str, Any]:
    """How many edits are answered with their target, and the ids of those that are not and were on their own side."""
    edits = patch.edits
    missed = [edit for edit, good in zip(edits, answered(lm, patch, edits), strict=True) if not good]
    lost = dict[str, Edit]()
    for side in sides:
        here = [edit for edit in missed if fact(edit) in side.edits]
        lost |= {e.id: e for e, good in zip(here, answered(lm, side.patch, here), strict=True) if good}
    if lost:
        log.warning(
            "%d of %d edits are no longer answered with their target, and were before the merge: %s; --again makes the "
            "edits of the other side anew",
            *(len(lost), len(edits), ", ".join(f"{e.prompt!r} -> {e.target_new!r}" for e in [*lost.values()][:3])),
        )
    return {"edits": len(edits), "answered": len(edits) - len(missed), "lost": list(lost)}


def _forward(journal: Looking, source: Source, name: str, ours: Commit | None, taken: Sequence[Commit]) -> Merged:
    """The branch, on which nothing was done since, goes on to the other commit."""
    if ours is not None and ours.id == source.commit.id:
        return Merged(ours, NOTHING, ours)
    _take(journal, source.journal, taken)

    def make(last: Commit | None) -> Commit:
        if (last and last.id) != (ours and ours.id):
            raise Refused(f"the branch {name} has moved meanwhile; merge again")
        return source.commit

    commit = journal.database.append(name, make, taken)
    return Merged(commit, FORWARD, ours)


def _take(journal: Looking, other: Looking, commits: Sequence[Commit]) -> None:
    """Copies the patch files of another journal's commits."""
    for digest in dict.fromkeys(commit.patch for commit in commits):
        journal.blobs.take(other.blobs, digest)


def _either(ours: Looking, theirs: Looking) -> history.Get:
    """Commits of two journals by their ids."""

    def get(id: str) -> Commit:
        commit = ours.database.commit(id) or theirs.database.commit(id)
        if commit is None:
            raise history.missing(id, theirs.path)
        return commit

    return get
