"""Transactions with the database of a journal; whatever goes wrong in one is an error that names the journal."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from errata.errors import BadInput, ErrataError, Unreachable, first_line
from errata.journal.commit import Damaged
from errata.journal.engine import WAIT, WRITES, engine_of


class Transactions:
    """A database; no connection stays open between two transactions."""

    def __init__(self, where: Path, url: URL) -> None:
        self.where, self.url = where, url
        self.engine = engine_of(url)

    @property
    def is_file(self) -> bool:
        """Whether it is an SQLite file."""
        return self.url.drivername == "sqlite"

    @property
    def shown(self) -> str:
        """The database in words, without a password."""
        return str(self.url.database) if self.is_file else self.url.render_as_string(hide_password=True)

    @contextmanager
    def session(self, writes: bool = False) -> Iterator[Session]:
        """Context manager: a transaction, which is done when the block ends, and undone by an exception."""
        with self._told():
            engine = self.engine.execution_options(**{WRITES: writes})
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session

    @contextmanager
    def connection(self, writes: bool = False) -> Iterator[Connection]:
        """As :meth:`session`, without objects."""
        with self._told(), self.engine.execution_options(**{WRITES: writes}).begin() as connection:
            yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Context manager: whatever goes wrong is one of Errata's errors, which names the journal."""
        try:
            yield
        except Damaged as error:
            raise Damaged(f"the journal {self.where} is damaged: {error}; restore it from a copy") from error
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._wrong(error) from error

    def _wrong(self, error: Exception) -> ErrataError:
        cause = getattr(error, "orig", None) or error
        said = first_line(cause)[:300]
        if not self.is_file:
            kind = Unreachable if "Operational" in type(error).__name__ else BadInput
            return kind(f"the database of the journal {self.where}, {self.shown}, says: {said}; is it running?")
        if "locked" in said or "busy" in said:
            return BadInput(f"{self.where} has been written by another process for {WAIT} s; try again when it is done")
        if any(word in said for word in ("readonly", "full", "unable to open", "disk I/O")):
            return BadInput(f"{self.shown} cannot be read or written ({said}); mend the disk or its permissions")
        return Damaged(f"the journal {self.where} is damaged ({said}); restore it from a copy")
