# pyright: strict
"""The folder of a journal: ``journal.json`` says whose it is and where its database is; patches lie beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from errata.errors import BadInput, Refused
from errata.files import write_text
from errata.inputs import parsed, read_text
from errata.printable import shown

ABOUT, FILE, PATCHES = "journal.json", "journal.sqlite", "patches"
FORMAT = 1
KEYS = ("format", "id", "database")
MOST = 2**16  # bytes of journal.json


def is_journal(folder: Path) -> bool:
    """Whether there is a journal in a folder."""
    try:
        return (folder / ABOUT).is_file()
    except OSError:
        return False


def read_about(folder: Path) -> tuple[str, str | None]:
    """The id of the journal in a folder, and the URL of its database: None where that is the file beside.

    Raises :class:`BadInput` where there is none, and :class:`Refused` for one of a later format.
    """
    file = folder / ABOUT
    if not is_journal(folder):
        raise BadInput(f"there is no journal in {folder}; `errata init {folder}` makes one, --journal names another")
    try:
        about = parsed(read_text(file, "a journal", MOST))
        if not isinstance(about, dict):
            raise BadInput(f"it holds {type(about).__name__}")
        return _checked(cast("dict[str, Any]", about))
    except Refused as error:
        raise Refused(f"{folder} {error}") from error
    except BadInput as error:
        raise BadInput(f"{file} is not as Errata writes it ({error}); restore it from a copy") from error


def _checked(about: Mapping[str, Any]) -> tuple[str, str | None]:
    form, id, database = (about.get(key) for key in KEYS)
    if isinstance(form, int) and not isinstance(form, bool) and form > FORMAT:
        raise Refused(f"is a journal of format {form}; this Errata knows {FORMAT}: update it")
    if form != FORMAT or set(about) != set(KEYS):
        raise BadInput(f"its keys are {shown(list(about))}, of format {shown(form)}")
    if not isinstance(id, str) or not _is_uuid(id):
        raise BadInput(f"its id is {shown(id)}")
    if not (database is None or isinstance(database, str)):
        raise BadInput(f"its database is {shown(database)}")
    return id, database


def _is_uuid(text: str) -> bool:
    try:
        return UUID(text).hex == text
    except ValueError:
        return False


def write_about(folder: Path, id: str, database: str | None) -> None:
    """Writes ``journal.json``, the last thing that makes a folder a journal. Raises :class:`BadInput`."""
    values = (FORMAT, id, database)
    write_text(folder / ABOUT, json.dumps(dict(zip(KEYS, values, strict=True)), indent=1) + "\n")
