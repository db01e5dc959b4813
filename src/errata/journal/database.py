"""Where commits and names are kept: an SQLite file, or Postgres. Everything in it is checked when it is read.

A commit is written in one transaction with the branch that it moves, and whoever writes holds that branch meanwhile: so
a history has no gaps, and a process that is killed leaves all of a commit or nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import URL, Connection, inspect, select
from sqlalchemy.orm import Session

from errata.errors import BadInput, Refused
from errata.journal.commit import Commit, Damaged, read_commit
from errata.journal.engine import check_file
from errata.journal.names import HEAD, MAIN, Name, read_name
from errata.journal.tables import MADE_BY, CommitRow, JournalRow, NameRow, Table
from errata.journal.transactions import Transactions
from errata.printable import shown

STEPS = ("1", "2")  # of migrations, in order
LEADING = 0x0E44A7A  # the number of the lock under which tables are made
KNOWN = 10_000  # commits that are kept in memory
LISTED = 20  # ids by a common beginning


class Database(Transactions):
    """The database of a journal. Each call is a transaction of its own; no connection stays open in between."""

    def __init__(self, where: Path, url: URL, journal: str) -> None:
        super().__init__(where, url)
        self.journal = journal
        self._known: dict[str, Commit] = {}  # commits never change

    # Commits -----------------------------------------------------------------------------------------

    def commit(self, id: str) -> Commit | None:
        """The commit of that id; None where there is none."""
        if id in self._known:
            return self._known[id]
        with self.session() as session:
            return self._read(session, id)

    def _read(self, session: Session, id: str) -> Commit | None:
        commit = _commit(session, id)
        if commit is not None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[id] = commit
        return commit

    def starting(self, beginning: str) -> list[str]:
        """The first ids that begin so, in order."""
        query = select(CommitRow.id).where(CommitRow.id.startswith(beginning, autoescape=True))
        with self.session() as session:
            return list(session.scalars(query.order_by(CommitRow.id).limit(LISTED)))

    def every(self) -> Iterator[Commit]:
        """All commits, whatever names them."""
        with self.session() as session:
            ids = list(session.scalars(select(CommitRow.id).order_by(CommitRow.id)))
        for id in ids:
            with self.session() as session:
                commit = _commit(session, id)
            if commit is not None:
                yield commit

    def append(
        self, branch: str | None, make: Callable[[Commit | None], Commit], taken: Sequence[Commit] = ()
    ) -> Commit:
        """Puts a commit, which is returned, on a branch (HEAD's for None); ``make`` is given the branch's last one.

        ``taken`` are commits of another journal that it goes on from, parents first. All or nothing is written.
        """
        with self.session(writes=True) as session:
            name = branch if branch is not None else _head(session, self.journal)
            row = session.get(NameRow, name, with_for_update=True, populate_existing=True)
            if row is None or (at := self._name(row)).kind != "branch":
                raise BadInput(f"there is no branch {shown(name)}; make it with `errata branch {name}`")
            commit = make(None if at.target is None else self._held(session, at))
            for one in (*taken, commit):
                if session.get(CommitRow, one.id) is None:
                    session.add(_row(one))
                    session.flush()  # a parent before what goes on from it
            self._point(session, Name(name, "branch", commit.id))
        return commit

    # Names -------------------------------------------------------------------------------------------

    def names(self) -> list[Name]:
        """Every name, sorted."""
        with self.session() as session:
            return [self._name(row) for row in session.scalars(select(NameRow).order_by(NameRow.name))]

    def head(self) -> str:
        """The branch that HEAD is on."""
        with self.session() as session:
            return _head(session, self.journal)

    def point(self, name: Name, force: bool = False) -> None:
        """Writes a name. Raises :class:`BadInput` where there is one already, unless ``force``, of that kind."""
        with self.session(writes=True) as session:
            row = session.get(NameRow, name.name)
            if row is not None and (not force or row.kind != name.kind):
                found = self._name(row)
                way = "; --force moves it" if row.kind == name.kind else ""
                raise BadInput(
                    f"there is a {found.kind} {name.name} at {(found.target or 'nothing')[:10]} already{way}"
                )
            self._point(session, name)

    def _point(self, session: Session, name: Name) -> None:
        session.merge(NameRow(name=name.name, kind=name.kind, target=name.target, seal=name.seal(self.journal)))

    def _name(self, row: NameRow) -> Name:
        return read_name(row.name, row.kind, row.target, row.seal, self.journal)

    def _held(self, session: Session, name: Name) -> Commit:
        """The commit that a name names. Raises :class:`BadInput` where it is gone."""
        commit = self._read(session, name.target or "")
        if commit is None:
            raise Damaged(f"{name.name} names the commit {shown(name.target)}, which is not there")
        return commit

    # Making and checking -----------------------------------------------------------------------------

    def lead(self) -> list[str]:
        """Makes the tables, or leads those of an earlier Errata through what was changed since; the steps done."""
        from errata.journal.migrate import upgrade

        with self.connection(writes=True) as connection:
            if not self.is_file:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LEADING})")  # one at a time
            done = self._step(connection)
            if done is None or done in STEPS[:-1]:
                upgrade(connection)
            elif done not in STEPS:
                raise _newer(self.where, done)
        return list(STEPS if done is None else STEPS[STEPS.index(done) + 1 :])

    def found(self, made: str) -> None:
        """Writes the journal's own row, and HEAD on an empty branch.

        Raises :class:`BadInput` where the database is another journal's; one without commits is taken over.
        """
        with self.session(writes=True) as session:
            others = [row for row in session.scalars(select(JournalRow)) if row.id != self.journal]
            if others and session.scalars(select(CommitRow.id).limit(1)).first() is not None:
                raise BadInput(
                    f"{self.shown} holds the journal {others[0].id[:10]} already, whose folder is another; open that "
                    "folder, or give another database"
                )
            for row in (*others, *(session.scalars(select(NameRow)) if others else ())):
                session.delete(row)
            session.flush()
            if session.get(JournalRow, self.journal) is None:
                session.add(JournalRow(id=self.journal, made=made))
                self._point(session, Name(HEAD, "head", MAIN))
                self._point(session, Name(MAIN, "branch", None))

    def check(self) -> None:
        """Raises :class:`BadInput` unless this is the database of the journal, whole and of this version."""
        with self.connection() as connection:
            if self.is_file:
                check_file(connection)
            done = self._step(connection)
            if done is None:
                raise Damaged("there are no tables of a journal")
            if done not in STEPS:
                raise _newer(self.where, done)
            if done != STEPS[-1]:
                raise Refused(f"{self.where} was made by an earlier Errata; `errata init {self.where}` leads it on")
        with self.session() as session:
            found = [row.id for row in session.scalars(select(JournalRow))]
            if found != [self.journal]:
                raise Damaged(f"its database is that of the journal {shown(found)}, and its folder is {self.journal}")
            _head(session, self.journal)
            for row in list(session.scalars(select(NameRow))):
                if (name := self._name(row)).target is not None and name.kind != "head":
                    self._held(session, name)

    def _step(self, connection: Connection) -> str | None:
        """The last step of migrations that was done; None before the first."""
        tables = inspect(connection).get_table_names()
        if MADE_BY not in tables:
            if set(tables) & set(Table.metadata.tables):
                raise BadInput(f"{self.shown} has tables that no journal made; give another database")
            return None
        found = connection.exec_driver_sql(f"SELECT version_num FROM {MADE_BY}").scalars().all()
        if len(found) > 1:
            raise Damaged(f"it says that it is of the versions {shown(found)}")
        return str(found[0]) if found else None


def _newer(where: Path, done: str) -> Refused:
    return Refused(
        f"{where} was made by a newer Errata (step {shown(done)}; this one knows {STEPS[-1]}): update Errata"
    )


def _head(session: Session, journal: str) -> str:
    row = session.get(NameRow, HEAD)
    if row is None:
        raise Damaged("it has no HEAD")
    head = read_name(row.name, row.kind, row.target, row.seal, journal)
    if head.kind != "head" or head.target is None:
        raise Damaged("its HEAD is on no branch")
    return head.target


def _commit(session: Session, id: str) -> Commit | None:
    row = session.get(CommitRow, id)
    if row is None:
        return None
    record = {name: getattr(row, name) for name in CommitRow.__table__.columns.keys()}  # noqa: SIM118
    parents = [parent for parent in (record.pop("parent"), record.pop("merged")) if parent is not None]
    return read_commit({**record, "parents": parents})


def _row(commit: Commit) -> CommitRow:
    record = commit.to_json()
    parent, merged, *_ = [*record.pop("parents"), None, None]
    return CommitRow(**record, parent=parent, merged=merged)
