# pyright: strict
"""The journal: a folder that keeps every patch of a model that was ever accepted, with who, when, why and how.

journal = errata.Journal.create("journal")
commit = journal.commit(patch, why="the CEO of Acme has changed", scores={"reliability": 1.0})
journal.checkout("HEAD~1")       # the patch before it
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from errata.errors import BadInput, unknown
from errata.journal import folder as place
from errata.journal.commit import MOST_WHY, Commit, checked_review, checked_scores, fact, now
from errata.journal.history import back
from errata.journal.looking import Looking
from errata.journal.names import HEAD, Name, checked_name
from errata.journal.opening import NEEDS, database_of, kept_url, make_folders
from errata.journal.recording import record, said, warn

if TYPE_CHECKING:
    from errata.journal.differences import Diff
    from errata.journal.merging import Merged, Rule
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch
    from errata.types import Case, Edit

log = logging.getLogger(__name__)


class Journal(Looking):
    """A journal that is open. Nothing stays open between two calls, so any number of processes may share it."""

    @classmethod
    def create(cls, path: str | Path = "journal", url: str | None = None) -> "Journal":
        """The journal in a folder, made where there is none, and led on where an earlier Errata made it.

        ``url`` names a Postgres database in the place of the SQLite file in the folder; patches lie in the folder
        either way. Its password is not written down. Raises :class:`BadInput`, and :class:`Refused` for a journal of
        a newer Errata.
        """
        folder = Path(path)
        if place.is_journal(folder):
            id, kept = place.read_about(folder)
            if url is not None and kept != kept_url(url):
                raise BadInput(f"{folder} is a journal already, with another database; leave out the URL")
        else:
            id, kept = uuid4().hex, None if url is None else kept_url(url)
        database = database_of(folder, id, url or kept)
        if kept is None:
            make_folders(folder)
        try:
            steps = database.lead()
        except ImportError as error:
            raise BadInput(NEEDS) from error
        make_folders(folder)
        if not place.is_journal(folder):
            database.found(now())
            place.write_about(folder, id, kept)
        elif steps:
            log.warning("%s was made by an earlier Errata and was led on", folder)
        return cls.open(folder, url)

    # Recording ---------------------------------------------------------------------------------------

    def commit(
        self,
        patch: "Patch | str | Path",
        *,
        why: str,
        author: str | None = None,
        scores: Mapping[str, float] | None = None,
        review: Any = None,
        branch: str | None = None,
        onto: str | None = None,
        force: bool = False,
        lm: "HFLM | None" = None,
    ) -> Commit:
        """Records a patch, or a file of one, on a branch (that of HEAD), and returns the commit.

        On the disk when this returns, the patch before the commit: whenever the process is killed, a commit is there
        whole or not at all. ``scores`` and ``review`` (JSON, or what has ``to_json``) are what it was accepted with;
        ``author`` is by default ``$ERRATA_AUTHOR`` or the user. Edits of the branch that the patch does not hold are
        gone with it, which is warned of, and so are edits that contradict those or each other (:meth:`conflicts`; with
        the patch's model, ``lm``, in other words too). ``onto`` names the revision that the branch must be at, or it is
        :class:`Refused`. So is a review that names another patch, unless ``force``. A patch of another model than the
        branch's, or than ``lm``, raises :class:`WrongModel`, anything else that is wrong :class:`BadInput`.
        """
        says = said(why, author) | {"scores": checked_scores(scores), "review": checked_review(review)}
        expected = None if onto is None else self.find(onto).id
        commit = record(self, patch, says, branch, expected=expected, force=force, lm=lm)
        warn(self, commit, lm)
        return commit

    # Names -----------------------------------------------------------------------------------------------

    def tag(self, name: str, revision: str = HEAD, *, force: bool = False) -> Commit:
        """Gives a revision a name that stays, and returns its commit; ``force`` moves one. Raises :class:`BadInput`."""
        commit = self.find(revision)
        self.database.point(Name(checked_name(name, "a tag"), "tag", commit.id), force)
        return commit

    def branch(self, name: str, revision: str = HEAD, *, force: bool = False) -> Commit | None:
        """Makes a branch, which moves with the commits that are put on it, at a revision, whose commit it returns.

        None where nothing was committed yet. ``force`` moves one that there is. Raises :class:`BadInput`.
        """
        empty = revision == HEAD and self.branches().get(self.head) is None
        commit = None if empty else self.find(revision)
        self.database.point(Name(checked_name(name, "a branch"), "branch", commit and commit.id), force)
        return commit

    def switch(self, name: str) -> None:
        """Puts HEAD on a branch. Raises :class:`BadInput` where there is none of that name."""
        if name not in (branches := self.branches()):
            raise unknown("branch", name, list(branches))
        self.database.point(Name(HEAD, "head", name), force=True)

    # Changing --------------------------------------------------------------------------------------------

    def diff(
        self, a: str = f"{HEAD}~1", b: str = HEAD, *, lm: "HFLM | None" = None, cases: "Iterable[Case]" = ()
    ) -> "Diff":
        """What changed from one revision to another: edits, weights by site, other parts.

        With a model ``lm`` also the prompts of the edits, and the probes of ``cases``, that are answered otherwise.
        """
        from errata.journal.differences import difference

        before_, after = self.find(a), self.find(b)
        return difference(before_, self.load(before_), after, self.load(after), lm, list(cases))

    def revert(
        self,
        edit: str,
        *,
        why: str | None = None,
        author: str | None = None,
        branch: str | None = None,
        lm: "HFLM | None" = None,
    ) -> Commit:
        """Takes an edit (its id, or the beginning of it) out of a branch's patch; the new commit, which says how.

        Memories drop its entry. Changes of weights need the model ``lm``: closed forms are solved again for the other
        edits, and where that cannot be, the later edits are made again on the last patch without it, by the methods
        and settings on record. Raises :class:`Refused`, with what to do, where it cannot be had.
        """
        from errata.journal.reverting import reverted

        name = branch or self.head
        commit = self._named(name)
        patch = self.load(commit)
        one = _edit_named(edit, patch)
        earlier = [c for c in back(commit, self.get) if fact(one) not in c.edits]
        left, how = reverted(patch, one, earlier, self.load, lm)
        words = f"revert of {one.prompt!r} -> {one.target_new!r}"[:MOST_WHY]
        return record(self, left, said(words if why is None else why, author), name, expected=commit.id, how=how)

    def merge(
        self,
        other: "str | Path | Journal",
        *,
        revision: str = HEAD,
        rule: "Rule | None" = None,
        resolutions: Sequence[Mapping[str, Any]] = (),
        why: str | None = None,
        author: str | None = None,
        branch: str | None = None,
        lm: "HFLM | None" = None,
        again: bool = False,
    ) -> "Merged":
        """Brings the edits of another branch, or of another journal's ``revision``, to a branch; see :class:`Merged`.

        The last common commit tells what each side has done since: edits that either made are made, those that either
        took out are gone. Edits that contradict each other raise :class:`Clashing` (a :class:`Refused`), which lists
        them, unless a ``rule`` ("ours", "theirs", "newest") or ``resolutions`` decide. Changes of weights are added;
        memories that both have changed need the model ``lm``, and so does ``again``: theirs are made again on ours,
        by the methods and settings on record. With a model every edit is asked, and what was lost is said.
        """
        from errata.journal.merging import How, merge

        def says(usual: str) -> dict[str, Any]:
            return said(usual if why is None else why, author)

        return merge(self, other, revision, How(rule, resolutions, lm, again), says, branch)


def _edit_named(beginning: str, patch: "Patch") -> "Edit":
    """The edit of a patch whose id is, or begins, so. Raises :class:`BadInput`."""
    if not isinstance(cast(Any, beginning), str) or not beginning:
        raise BadInput(f"an edit is named by its id, or the beginning of it; found {beginning!r}")
    edits = {edit.id: edit for edit in patch.edits}
    found = [edits[beginning]] if beginning in edits else [e for id, e in edits.items() if id.startswith(beginning)]
    if len(found) > 1:
        raise BadInput(f"{beginning} is the beginning of {', '.join(e.id for e in found[:20])}; write more of it")
    if not found:
        raise unknown("edit", beginning, list(edits))
    return found[0]
