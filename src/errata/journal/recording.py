# pyright: strict
"""How a commit comes about: the patch is written, then the commit that names it, with what was known before."""

import logging
import os
from collections.abc import Mapping, Sequence
from getpass import getuser
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any, cast

from errata.errors import BadInput, Refused, WrongModel
from errata.journal.commit import (
    MOST_AUTHOR,
    MOST_WHY,
    Commit,
    calls_of,
    checked_text,
    commit_of,
    fact,
    now,
)
from errata.printable import shown

if TYPE_CHECKING:
    from errata.journal.looking import Looking
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

log = logging.getLogger(__name__)

AUTHOR = "ERRATA_AUTHOR"
SAID = 3  # edits that a warning names
OF_ANOTHER = "review of another patch"  # how a commit says which one its review is of


def said(why: str, author: str | None) -> dict[str, Any]:
    """What a person says with a commit, and when. Raises :class:`BadInput`."""
    who = author if author is not None else os.environ.get(AUTHOR) or _user()
    return {
        "why": checked_text(why, "the reason of a commit", MOST_WHY),
        "author": checked_text(who, "the author of a commit", MOST_AUTHOR),
        "time": now(),
    }


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError, ImportError):  # nobody of that number
        return "unknown"


def record(
    journal: "Looking",
    patch: "Patch | str | Path",
    says: Mapping[str, Any],
    branch: str | None,
    *,
    expected: str | None = None,
    merged: Sequence[Commit] = (),
    taken: Sequence[Commit] = (),
    how: Mapping[str, Any] | None = None,
    force: bool = False,
    lm: "HFLM | None" = None,
) -> Commit:
    """Writes the patch, and then its commit on a branch, whose last commit must be ``expected`` if that is given.

    ``force`` lets a review of another patch pass, which the commit then says. ``lm``, if given, must be the patch's.
    """
    digest, size, read = _written(journal, patch)
    if other := _other_patch(says.get("review"), read, force):
        how = {**(how or {}), OF_ANOTHER: other}
    edits = {fact(edit): edit for edit in read.edits}
    of = read.meta.get("model")

    _check_lm(lm, of)

    def make(last: Commit | None) -> Commit:
        _check_place(last, expected)
        _check_model(last, of)
        _check_review(says.get("review"), of)
        parents = [*([last] if last else []), *merged]
        known = set(last.edits) if last else set[str]()
        added = [edit for key, edit in edits.items() if key not in known]
        return commit_of(
            parents=tuple(one.id for one in parents),
            depth=1 + max([one.depth for one in parents], default=0),
            patch=digest,
            size=size,
            model=of.get("name") if of else last and last.model,
            fingerprint=of["fingerprint"] if of else last and last.fingerprint,
            made=calls_of(read.meta.get("made", ()), added),
            edits=tuple(edits),
            added=tuple(added),
            how=None if how is None else dict(how),
            **{"scores": {}, "review": None, **says},
        )

    return journal.database.append(branch, make, taken)


def _written(journal: "Looking", patch: "Patch | str | Path") -> "tuple[str, int, Patch]":
    """Digest, bytes and content of a patch that is now among the journal's files."""
    from errata.patch.patch import Patch

    if not isinstance(patch, str | Path):
        if not isinstance(cast(Any, patch), Patch):
            raise BadInput(f"a commit is of an errata.Patch or of a file of one, found {type(patch).__name__}")
        return *journal.blobs.put(patch.save), patch
    path, written = Path(patch), list[Patch]()
    Patch.load(path)  # what is wrong is said of the file that was given

    def copy(part: Path) -> None:
        copyfile(path, part)
        written.append(Patch.load(part))

    return *journal.blobs.put(copy), written[0]


def _check_place(last: Commit | None, expected: str | None) -> None:
    """Raises :class:`Refused` where the branch is not where it was to be."""
    if expected is not None and (last is None or last.id != expected):
        at = "has no commit" if last is None else f"is at {last.short}, by {last.author}"
        raise Refused(f"the branch {at}, not at {expected[:10]}; make the patch again on what is there now")


def _check_model(last: Commit | None, of: Mapping[str, Any] | None) -> None:
    """Raises :class:`WrongModel` where a patch is of another model than the one before it."""
    if last is not None and of and last.fingerprint not in (None, of["fingerprint"]):
        raise WrongModel(
            f"this patch is of the model {of.get('name')} ({of['fingerprint']}), and {last.short} is of {last.model} "
            f"({last.fingerprint}); a journal is of one model: `errata init` another for this one"
        )


def _check_lm(lm: "HFLM | None", of: Mapping[str, Any] | None) -> None:
    """Raises :class:`WrongModel` where a patch is of another model than the one that is to be asked."""
    if lm is not None and of and of["fingerprint"] != lm.fingerprint:
        raise WrongModel(
            f"the patch is of the model {of.get('name')} ({of['fingerprint']}), and {lm.name or 'this one'} is "
            f"{lm.fingerprint}; give the patch's own with --model (lm=), or none"
        )


def _check_review(review: Mapping[str, Any] | None, of: Mapping[str, Any] | None) -> None:
    """Raises :class:`WrongModel` where a review was made with another model than the patch."""
    found = (review or {}).get("fingerprint")
    if of and found not in (None, of["fingerprint"]):
        raise WrongModel(
            f"the review is of the model {shown((review or {}).get('model'))} ({shown(found)}), and the patch of "
            f"{of.get('name')} ({of['fingerprint']}); give the review of this patch (`errata review -o FILE.json`)"
        )


def _other_patch(review: Mapping[str, Any] | None, patch: "Patch", force: bool) -> str | None:
    """The patch that a review is of, where it is another; raises :class:`Refused` then, unless ``force``."""
    found = (review or {}).get("patch")
    if not isinstance(found, str) or not found or found == (own := patch.digest):
        return None
    if not force:
        raise Refused(
            f"the review is of the patch {shown(found[:10] + '…')}, and this one is '{own[:10]}…'; give the review of "
            "this patch (`errata review -o FILE.json`), or record that one all the same with --force (force=True)"
        )
    return found


def warn(journal: "Looking", commit: Commit, lm: "HFLM | None" = None) -> None:
    """Warns of a review that refuses, of edits that a commit leaves behind, and of those that contradict others."""
    if commit.review and commit.review.get("passed") is False:
        log.warning("the review of %s, with which it was recorded, refuses the patch", commit.short)
    if commit.how and OF_ANOTHER in commit.how:
        log.warning("the review with which %s was recorded is of another patch", commit.short)
    last, added = (journal.get(commit.parents[0]) if commit.parents else None), {fact(edit) for edit in commit.added}
    kept = set(commit.edits)
    if last and (gone := [edit for edit in journal.edits(last) if fact(edit) not in kept]):
        log.warning(
            "this patch lacks %d of the edits of %s, now gone: %s; to keep them, edit with its patch as prior "
            "(`errata edit --prior`)",
            *(len(gone), last.short, ", ".join(f"{e.prompt!r} -> {e.target_new!r}" for e in gone[:SAID])),
        )
    for clash in journal.conflicts(commit, lm):
        older, newer = clash.older, clash.newer
        of = last.short if last and fact(older) not in added else "the same commit"
        log.warning(
            "%s: %r -> %r (%s) is new, and the patch still holds %r -> %r (%s) of %s; the newer is to answer; "
            "`errata revert %s` takes the older out",
            *(clash.kind, newer.prompt, newer.target_new, newer.id),
            *(older.prompt, older.target_new, older.id, of, older.id),
        )
