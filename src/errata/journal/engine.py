"""How the database of a journal is opened: its URL, and what is set before anything in it is read."""

import sqlite3
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from errata.errors import BadInput
from errata.inputs import parsed
from errata.journal.commit import Damaged
from errata.printable import shown

WAIT = 120  # seconds for another process that writes
LONGEST = 2**26  # bytes of a value
POSTGRES = "postgresql+psycopg"
WRITES = "writes"  # the option of a connection that is about to write


def database_url(url: str) -> URL:
    """The URL of a Postgres database. Raises :class:`BadInput`, also for another kind, and without psycopg."""
    try:
        read = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise BadInput("a database is given as postgresql://USER@HOST/NAME; what was given is no URL") from error
    if read.drivername not in ("postgresql", "postgres", POSTGRES):
        raise BadInput(
            f"a journal is kept in an SQLite file of its own, or in postgresql://USER@HOST/NAME; "
            f"found {shown(read.drivername)}"
        )
    try:
        import psycopg  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise BadInput('a journal in Postgres needs psycopg: pip install "errata[postgres]"') from error
    return read.set(drivername=POSTGRES)


def without_password(url: URL) -> URL:
    """The URL as it may be written down."""
    query = {name: value for name, value in url.query.items() if "password" not in name}
    return URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)


def engine_of(url: URL) -> Engine:
    """The engine of a database, which opens a connection for each transaction."""
    engine = create_engine(url, poolclass=NullPool, json_deserializer=_json)
    if url.drivername.startswith("sqlite"):
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
    return engine


def _json(text: Any) -> Any:
    try:
        return parsed(text)
    except (BadInput, AttributeError) as error:
        raise Damaged(f"a field that is JSON holds something else ({shown(text)})") from error


def _set_up(connection: Any, _: Any) -> None:
    """What is written is on the disk when a transaction ends; nothing that stands in the file is run."""
    connection.isolation_level = None  # transactions are begun below
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
    for pragma in (f"busy_timeout={WAIT * 1000}", "synchronous=EXTRA", "trusted_schema=OFF", "cell_size_check=ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    """Who is about to write waits for whoever does."""
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def check_file(connection: Connection) -> None:
    """Raises :class:`Damaged` unless the file is whole and holds tables alone, no triggers and no views."""
    found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
    if found != "ok":
        raise Damaged(f"its file is damaged ({str(found)[:200]})")
    kinds = connection.exec_driver_sql("SELECT DISTINCT type FROM sqlite_master").scalars().all()
    if strange := set(kinds) - {"table", "index"}:
        raise Damaged(f"its file holds a {shown(min(map(str, strange)))}, which no journal has")
