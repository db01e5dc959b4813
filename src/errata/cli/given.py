"""What the user gave: files that are read or will be written, and values typed as ``name=value``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata import inputs
from errata.errors import BadInput
from errata.files import check_writable

if TYPE_CHECKING:
    from errata.methods.base import Method

LONGEST_TEXT = 1_000_000  # characters of a line of --data: a book, of which methods read the beginning
CASES = (".json", ".jsonl")  # of --data that is cases where a method prepares with texts or cases


def read_text(path: Path, what: str) -> str:
    """The text of a file given by option ``--what``. Raises :class:`BadInput`."""
    return inputs.read_text(path, f"--{what}")


def data_for(method: "Method", path: Path | None) -> list[Any] | None:
    """What the method prepares with, from a file: cases, or the lines of texts; None without one.

    Raises :class:`BadInput`.
    """
    if path is None:
        return None
    if not method.needs_prepare:
        raise BadInput(f"{method.name} prepares nothing, so --data would go unread; leave it out")
    kind = method.tags.prepares_with
    if kind == "cases" or (kind == "either" and path.suffix.lower() in CASES):
        from errata import cases

        return cases(path)
    return texts_in(path)


def texts_in(path: Path) -> list[str]:
    """The texts of a file given by --data, one on each line. Raises :class:`BadInput`."""
    lines = read_text(path, "data").splitlines()
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST_TEXT:
            raise BadInput(
                f"{path}, line {number} has {len(line):,} characters; --data wants a text on each line, of "
                f"{LONGEST_TEXT:,} at most"
            )
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise BadInput(f"{path} holds no text; --data wants a text on each line")
    return texts


def check_output(path: Path, force: bool) -> None:
    """Raises :class:`BadInput` unless a file can be written there. To be called before the work."""
    try:
        check_writable(path)
    except BadInput as error:
        raise BadInput(f"{error} with -o") from error
    if path.exists() and not force:
        raise BadInput(f"{path} exists; add --force to overwrite it, or name another file with -o")


def named_values(option: str, items: Sequence[str] | None) -> dict[str, str]:
    """The values of an option that is typed as ``name=value``, by name. Raises :class:`BadInput`."""
    typed: dict[str, str] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"{option} wants name=value, found {item!r}")
        if key.strip() in typed:
            raise BadInput(f"{option} {key.strip()} is given twice")
        typed[key.strip()] = value
    return typed
