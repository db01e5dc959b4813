# pyright: strict
"""What is in a journal: commits by their revisions, names, and the patches of commits. Nothing here writes to it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from errata.errors import BadInput, unknown
from errata.journal import folder as place
from errata.journal.blobs import Blobs
from errata.journal.commit import Commit, fact
from errata.journal.history import back, before, missing
from errata.journal.names import HEAD, ID, steps_back
from errata.journal.opening import database_of

if TYPE_CHECKING:
    from errata.conflicts.pairs import Conflict
    from errata.journal.database import Database
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch
    from errata.types import Edit


class Looking:
    """The half of a :class:`errata.Journal` that reads."""

    def __init__(self, path: Path, database: "Database") -> None:
        """For :meth:`create` and :meth:`open`; ``database`` and ``blobs`` are for the code beside this."""
        self.path, self.database = path, database
        self.blobs = Blobs(path / place.PATCHES)

    @classmethod
    def open(cls, path: str | Path = "journal", url: str | None = None) -> Self:
        """The journal in a folder, which is checked for damage; ``url`` is its database's, with a password, say.

        Raises :class:`BadInput` where there is none or it is damaged, and :class:`Refused` for one that another
        version of Errata made.
        """
        folder = Path(path)
        id, kept = place.read_about(folder)
        journal = cls(folder, database_of(folder, id, url or kept))
        journal.database.check()
        return journal

    def __repr__(self) -> str:
        return f"<Journal: {self.path}>"

    def find(self, revision: str = HEAD) -> Commit:
        """The commit of a revision: HEAD, a branch, a tag, an id or its beginning; ``~2`` behind it is two before.

        Raises :class:`BadInput`.
        """
        name, steps = steps_back(revision)
        return before(self._named(name), steps, self.get)

    def _named(self, name: str) -> Commit:
        names = {one.name: one for one in self.database.names()}
        at = names.get(name)
        if at is not None and at.kind == "head":
            at = names.get(at.target or "")
            if at is None:
                raise BadInput(f"the journal {self.path}: its HEAD is on a branch that is not there; `errata branch`")
        if at is not None:
            if at.target is None:
                raise BadInput(f"the branch {at.name} of {self.path} has no commit; `errata commit PATCH` makes one")
            return self.get(at.target)
        found = self.database.starting(name) if ID.fullmatch(name) else []
        if len(found) > 1:
            raise BadInput(f"{name} is the beginning of {', '.join(id[:16] for id in found)}; write more of it")
        if not found:
            raise unknown("revision", name, list(names))
        return self.get(found[0])

    def get(self, id: str) -> Commit:
        """The commit of a whole id. Raises :class:`BadInput`."""
        commit = self.database.commit(id)
        if commit is None:
            raise missing(id, self.path)
        return commit

    def log(self, revision: str = HEAD, limit: int | None = None) -> list[Commit]:
        """The commits that lead to a revision, the newest first; empty where nothing was committed."""
        if revision == HEAD and self.branches().get(self.head) is None:
            return []
        commits = back(self.find(revision), self.get)
        return [commit for commit, _ in zip(commits, range(limit))] if limit is not None else list(commits)

    @property
    def head(self) -> str:
        """The branch that HEAD is on, to which commits go."""
        return self.database.head()

    def branches(self) -> dict[str, str | None]:
        """Branch -> id of its last commit; None where it has none."""
        return {name.name: name.target for name in self.database.names() if name.kind == "branch"}

    def tags(self) -> dict[str, str]:
        """Tag -> id of its commit."""
        return {name.name: name.target or "" for name in self.database.names() if name.kind == "tag"}

    def edits(self, revision: "str | Commit" = HEAD) -> "list[Edit]":
        """The edits of a revision's patch, in order, as the history has them: no patch is read."""
        commit = revision if isinstance(revision, Commit) else self.find(revision)
        left, known = set(commit.edits), dict[str, Any]()
        for one in back(commit, self.get):
            known |= {fact(edit): edit for edit in one.added if fact(edit) in left and fact(edit) not in known}
            if len(known) == len(left):
                break
        if lost := left - known.keys():
            raise BadInput(f"the journal {self.path}: no commit says what the edit {min(lost)} is; restore it")
        return [known[key] for key in commit.edits]

    def conflicts(self, revision: "str | Commit" = HEAD, lm: "HFLM | None" = None) -> "list[Conflict]":
        """Contradictions of the edits that a revision added: with those from before that its patch still holds, and
        with each other. With the model also those in other words."""
        from errata.conflicts.pairs import conflicts, within
        from errata.journal.clashes import contradicting

        commit = revision if isinstance(revision, Commit) else self.find(revision)
        last, held = (self.get(commit.parents[0]) if commit.parents else None), set(commit.edits)
        older = [edit for edit in self.edits(last) if fact(edit) in held] if last else []
        patch = self.load(last) if last and older and lm is not None else None
        return contradicting([*conflicts(older, commit.added, lm, patch), *within(commit.added, lm)])

    def checkout(self, revision: str = HEAD) -> "Patch":
        """The patch of a revision, compared with its digest and its checksum. Raises :class:`BadInput`."""
        return self.load(self.find(revision))

    def load(self, commit: Commit) -> "Patch":
        """The patch of a commit. Raises :class:`BadInput` for one that is missing or damaged."""
        from errata.patch.patch import Patch

        return Patch.load(self.blobs.path(commit.patch))

    def write(self, revision: str, path: str | Path) -> Path:
        """Writes the patch file of a revision, byte for byte, whole or not at all. Raises :class:`BadInput`."""
        self.blobs.copy(self.find(revision).patch, Path(path))
        return Path(path)

    def check(self) -> list[str]:
        """What is wrong with the commits and their patch files, in words; empty where everything is whole."""
        wrong: list[str] = []
        for commit in self.database.every():
            try:
                for parent in commit.parents:
                    self.get(parent)
                if set(commit.edits) != {fact(edit) for edit in self.load(commit).edits}:
                    raise BadInput(f"the patch of {commit.short} holds other edits than the commit says")
            except BadInput as error:
                wrong.append(f"{commit.short}: {error}")
        return wrong
