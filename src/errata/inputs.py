"""Files that somebody gives, and JSON in them: every reason why they cannot be read is a ``BadInput``."""

import json
import os
import stat
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, cast

from errata.errors import BadInput
from errata.files import NO_FILES
from errata.printable import shown

FOUND = "found"  # in a file of settings: how they were found
MOST = 2**30  # bytes of a file that is read as a whole
ENDLESS = (stat.S_IFIFO, stat.S_IFCHR)
SIGNATURES = {  # what a file begins with that is no text
    b"\xff\xfe": "UTF-16 text; make it UTF-8 (iconv -f utf-16 -t utf-8)",
    b"\xfe\xff": "UTF-16 text; make it UTF-8 (iconv -f utf-16 -t utf-8)",
    b"PK\x03\x04": "an archive; unpack it first (unzip)",
    b"BZh": "compressed; unpack it first (bunzip2)",
    b"\xfd7zXZ": "compressed; unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it first (unzstd)",
    b"ARROW1": "an Arrow file; give the folder that save_to_disk wrote, or a parquet file",
    b"\xff\xff\xff\xff": "an Arrow file; give the folder that save_to_disk wrote, or a parquet file",
    b"version https://git-lfs": "a pointer of Git LFS and not the data; fetch the data with git lfs pull",
}


def opened(path: Path, missing: str) -> BinaryIO:
    """A regular file, open to be read; ``missing`` is the error's message where there is none.

    Raises :class:`BadInput`, for what is no regular file too, before it is opened: a pipe would be waited for.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:
            return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise BadInput(missing) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}); give another file") from error
    raise BadInput(
        f"{path} is {NO_FILES.get(kind, 'no file')}{', which may never end' * (kind in ENDLESS)}; give a file"
    )


def check_signature(path: Path, start: bytes) -> None:
    """Raises :class:`BadInput` where a file that is to be text begins as something else does."""
    for mark, what in SIGNATURES.items():
        if start.startswith(mark):
            raise BadInput(f"{path} is {what}")


def read_text(path: Path, what: str, most: int = MOST) -> str:
    """The text of a file that is given as ``what`` (``--edits``). Raises :class:`BadInput`."""
    try:
        with opened(path, f"there is no file {path}; {what} wants a text file") as file:
            if os.fstat(file.fileno()).st_size > most or len(content := file.read(most + 1)) > most:
                raise BadInput(f"{path} is longer than {most:,} bytes; {what} wants a smaller one: divide it")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}); give another file") from error
    check_signature(path, content[:64])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error


def read_settings(path: Path, what: str = "--settings") -> dict[str, Any]:
    """The settings in a file of JSON, or of TOML where its name ends so; ``found``, how they were found, is left out.

    Raises :class:`BadInput`, also for a file without any.
    """
    settings = {name: value for name, value in _table_of_settings(path, what).items() if name != FOUND}
    if not settings:
        raise BadInput(
            f'{path} holds no settings; {what} wants some as JSON or TOML, such as {{"layers": [3, 4]}}, as '
            f"`errata locate MODEL --cases FILE -o {path}` writes them"
        )
    return settings


def read_found(path: Path) -> dict[str, Any]:
    """How the settings in a file were found, as ``errata locate`` says it there; empty where nothing is said.

    Raises :class:`BadInput`.
    """
    found = _table_of_settings(path, "--settings").get(FOUND)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _table_of_settings(path: Path, what: str) -> dict[str, Any]:
    text = read_text(path, what)
    try:
        table = tomllib.loads(text) if path.suffix.lower() == ".toml" else parsed(text if text.strip() else "{}")
    except (tomllib.TOMLDecodeError, RecursionError, BadInput) as error:
        raise BadInput(
            f'{path}: {error}; {what} wants settings as JSON or TOML, such as {{"layers": [3, 4]}}'
        ) from error
    if not isinstance(table, dict):
        raise BadInput(
            f'{path} holds a {type(table).__name__}; {what} wants an object of settings: {{"layers": [3, 4]}}'
        )
    return cast("dict[str, Any]", table)


# JSON --------------------------------------------------------------------------------------------


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises :class:`BadInput`: for keys that stand twice and for NaN, too."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), **CHECKED)
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8") from error
    except RecursionError as error:
        raise BadInput("nested too deeply to be a record") from error
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"not JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, each of which stands once."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise BadInput(f"the key {shown(twice)} stands twice in one object; leave one out")
    return made


def _no_number(name: str) -> Any:
    raise BadInput(f"{name} is no number of JSON; leave it out")


CHECKED: dict[str, Any] = {"object_pairs_hook": _unique, "parse_constant": _no_number}  # for json's decoders
