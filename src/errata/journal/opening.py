# pyright: strict
"""What a journal is opened with: its database, its folders, and its URL as it is written down."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from errata.errors import BadInput
from errata.journal import folder as place

if TYPE_CHECKING:
    from errata.journal.database import Database

log = logging.getLogger(__name__)

NEEDS = 'a journal needs SQLAlchemy and Alembic: pip install "errata[journal]"'


def database_of(folder: Path, id: str, url: str | None) -> "Database":
    """The database of a journal: the file in its folder, or the URL's. Raises :class:`BadInput`."""
    try:
        from errata.journal import database, engine
    except ImportError as error:
        raise BadInput(NEEDS) from error
    from sqlalchemy import URL

    if url is not None:
        return database.Database(folder, engine.database_url(url), id)
    return database.Database(folder, URL.create("sqlite", database=str(folder / place.FILE)), id)


def make_folders(folder: Path) -> None:
    """Makes the folder, and that of the patches, where they are not there. Raises :class:`BadInput`."""
    try:
        (folder / place.PATCHES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make a journal in {folder} ({error.strerror or error})") from error


def kept_url(url: str) -> str:
    """The URL as it is written down: without its password."""
    try:
        from errata.journal.engine import database_url, without_password
    except ImportError as error:
        raise BadInput(NEEDS) from error
    read = database_url(url)
    kept = without_password(read)
    if kept != read:
        log.warning("the password of the database is not written down; set PGPASSWORD, or write it to ~/.pgpass")
    return kept.render_as_string(hide_password=False)
