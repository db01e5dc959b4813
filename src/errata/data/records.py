"""Files as records, one after the other: read with a bound, and named where they cannot be read."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from errata.data.fields import RecordAt, as_object
from errata.data.tables import parquet_records
from errata.errors import BadInput
from errata.inputs import CHECKED, check_signature, opened, parsed
from errata.printable import shown

MAX_RECORD = 16 * 2**20  # bytes of one record; the longest published ones hold a few hundred KiB
FIRST = 4096  # bytes that tell a list from lines
CHUNK = 2**20  # bytes read at a time where a line is passed over, or a list is taken apart
UNPACKED, TIMES = 2**26, 200  # bytes that a file may unpack to, or so many times its size: JSON packs some 20 times
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
OF_RECORDS = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*[{\[]')  # an object whose first value is an object or a list


def read_records(path: Path, limit: int = MAX_RECORD) -> Iterator[RecordAt]:
    """Each record of a file and where it stands.

    JSON lines, one JSON list, one JSON object (a record, or records by their ids), CSV with a header (``.csv``,
    ``.tsv``), each of them also under gzip, and parquet. A line that cannot be read comes as the :class:`BadInput` that
    says why. No more than ``limit`` bytes of a record are held. Raises :class:`BadInput` where nothing behind a place
    can be read.
    """
    with opened(
        path, f"there is no data set and no file {str(path)!r}; give 'world' or the path of a file of cases"
    ) as file:
        start = file.read(len(PARQUET))
        file.seek(0)
        if start == PARQUET:
            yield from parquet_records(path)
        elif start.startswith(GZIP):
            yield from _of_packed(file, path, limit)
        else:
            yield from _of_text(file, path, limit)


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Each record of a file that stands beside a data set, where every one must be readable, and an object."""
    for position, record in read_records(path):
        if isinstance(record, BadInput):
            raise BadInput(f"{path}, {position}: {record}")
        yield as_object(record, f"{path}, {position}: a record")


def _of_packed(file: BinaryIO, path: Path, limit: int) -> Iterator[RecordAt]:
    place = "its beginning"
    most = max(UNPACKED, TIMES * path.stat().st_size)
    try:
        with gzip.open(file) as packed, io.BufferedReader(_Unpacked(packed, path, most), CHUNK) as text:
            for place, record in _of_text(text, path, limit):
                yield place, record
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}, behind {place}: the compressed data are cut off or damaged; fetch it anew") from error


class _Unpacked(io.RawIOBase):
    """What is unpacked, up to a number of bytes: a small file may hold more than any disk."""

    def __init__(self, packed: "gzip.GzipFile", path: Path, most: int) -> None:
        self.packed, self.path, self.most = packed, path, most

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = 0) -> int:
        return self.packed.seek(offset, whence)

    @override
    def readinto(self, buffer: Any) -> int:
        if self.packed.tell() > self.most:
            raise BadInput(
                f"{self.path} unpacks to more than {self.most:,} bytes; if that is what it shall hold, unpack it first"
            )
        read = self.packed.read1(len(buffer))  # no more than is whole, where the file is cut off
        buffer[: len(read)] = read
        return len(read)


def _of_text(file: BinaryIO, path: Path, limit: int) -> Iterator[RecordAt]:
    start = file.read(64)
    check_signature(path, start)
    file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
    if delimiter := DELIMITERS.get(Path(path.name.lower().removesuffix(".gz")).suffix):
        yield from _of_table(file, path, limit, delimiter)
    elif b"".join(_first_lines(file, FIRST, 1)).startswith(b"["):
        yield from _of_container(file, path, limit, "]")
    elif _is_one_object(file, limit):
        yield from _of_object(file, path, limit)
    else:
        yield from _of_lines(file, limit)


def _first_lines(file: BinaryIO, limit: int, count: int) -> list[bytes]:
    """The beginnings of the first lines that are not empty; the file's position stays as it was."""
    begin = file.tell()
    lines = (line for read in iter(lambda: file.readline(limit), b"") if (line := read.strip()))
    found = list(islice(lines, count))
    file.seek(begin)
    return found


def _is_one_object(file: BinaryIO, limit: int) -> bool:
    """Whether a JSON object goes on behind its first line, or is too long for a record and seems to hold records."""
    first, second = (*_first_lines(file, limit + 1, 2), b"", b"")[:2]
    if len(first) > limit:
        return OF_RECORDS.match(first) is not None
    if not first.startswith(b"{") or not isinstance(_parsed(first), BadInput):
        return False
    return first == b"{" or (bool(second) and not second.startswith(b"{"))


def _of_lines(file: BinaryIO, limit: int) -> Iterator[RecordAt]:
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit:
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            yield f"line {number}", BadInput(f"longer than {limit:,} bytes; give one record on each line")
        elif line.strip():
            yield f"line {number}", _parsed(line)


def _parsed(line: bytes) -> Any:
    """The value of a line; the :class:`BadInput` that says why it has none."""
    try:
        return parsed(line)
    except BadInput as error:
        return error


def _of_object(file: BinaryIO, path: Path, limit: int) -> Iterator[RecordAt]:
    """The one object of a file; the values in it where it is too long for a record."""
    begin = file.tell()
    text = file.read(limit + 1)
    if len(text) > limit:
        if not OF_RECORDS.match(text):
            raise BadInput(
                f"{path} is one JSON object longer than {limit:,} bytes; give a list, or a record on each line"
            )
        file.seek(begin)
        yield from _of_container(file, path, limit, "}")
        return
    value = _parsed(text)
    if isinstance(value, BadInput):
        raise BadInput(f"{path}: {value}")
    yield "the file", value


def _of_table(file: BinaryIO, path: Path, limit: int, delimiter: str) -> Iterator[RecordAt]:
    """The rows of a table by the names in its first line; cells without text are left out."""
    rows = csv.reader(_text_lines(file, path, limit), delimiter=delimiter)
    names: list[str] | None = None
    number = 0
    try:
        for row in rows:
            if names is None:
                names = [name.strip() for name in row]
                if len(names) == 1 and (other := next((sign for sign in ",;\t|" if sign in names[0]), None)):
                    raise BadInput(f"{path}: its cells are divided by {other!r}; a file of this name has {delimiter!r}")
            elif row:
                number += 1
                place = f"row {number} (line {rows.line_num})"
                if len(row) != len(names):
                    yield place, BadInput(f"{len(row)} cells where the first line names {len(names)}; quote the cells")
                else:
                    yield place, {name: cell for name, cell in zip(names, row, strict=True) if cell.strip()}
    except csv.Error as error:
        raise BadInput(
            f"{path}, line {rows.line_num}: {error}; nothing behind it can be read: mend it there"
        ) from error


def _text_lines(file: BinaryIO, path: Path, limit: int) -> Iterator[str]:
    """The lines of a UTF-8 text, each with a bound."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise BadInput(f"{path}, line {number}: longer than {limit:,} bytes; give one record on each line")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{path}, line {number}: not UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from error


class _Window:
    """The part of a text file that is looked at: ``text`` from ``at`` on, with ``line`` the line that stands there."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.decode = json.JSONDecoder(**CHECKED).raw_decode
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def more(self) -> None:
        """Reads on: as much again as is held, so that a long record is tried a few times only."""
        raw = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not raw
        try:
            self.text, self.at = self.text[self.at :] + self.decoder.decode(raw, final=self.ended), 0
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.path} is not UTF-8 text ({error.reason}, behind line {self.line})") from error

    def pass_over(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def next_sign(self) -> str:
        """The first character that is no space, or "" at the end; the window moves to it."""
        while True:
            rest = self.text[self.at : self.at + 200].lstrip()
            if rest:
                self.pass_over(self.text.index(rest[0], self.at))
                return rest[0]
            if self.at + 200 < len(self.text):
                self.pass_over(self.at + 200)
            elif self.ended:
                return ""
            else:
                self.pass_over(len(self.text))
                self.more()

    def value(self, place: str, limit: int) -> Any:
        """The JSON value that stands here; the window moves behind it. ``place`` names it in errors."""
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                behind = self.text[end : end + 1]
                if self.ended or not isinstance(value, int | float) or (behind and behind in ",]} \t\r\n"):
                    self.pass_over(end)
                    return value
                why = ""  # a number may go on behind the window
            except RecursionError as error:
                raise BadInput(f"{self.path}, {place}: nested too deeply to be a record") from error
            except json.JSONDecodeError as error:
                line = self.line + self.text.count("\n", self.at, error.pos)
                why = f"not JSON (line {line}: {error.msg})"
            except ValueError as error:  # a number too long, a key that stands twice
                raise BadInput(f"{self.path}, {place}: {error}") from error
            if not self.ended and len(self.text) - self.at > limit:
                why = f"longer than {limit:,} bytes"
            elif not self.ended:
                self.more()
                continue
            raise BadInput(f"{self.path}, {place}: {why}; nothing behind it can be read: mend it there")


def _of_container(file: BinaryIO, path: Path, limit: int, end: str) -> Iterator[RecordAt]:
    """The elements of one JSON list, or the values of one object: a file of any size takes the memory of a record."""
    window = _Window(file, path)
    what = "list" if end == "]" else "object"
    window.next_sign()
    window.pass_over(window.at + 1)
    number = 0
    while (sign := window.next_sign()) != end:
        if number and sign == ",":
            window.pass_over(window.at + 1)
            window.next_sign()
        number += 1
        place = f"record {number} (line {window.line})"
        if number > 1 and sign != ",":
            raise BadInput(f"{path}, {place}: {'a comma is missing' if sign else f'the {what} is cut off'} here")
        if end == "}":
            place = f"record {shown(window.value(place, limit))} (line {window.line})"
            if window.next_sign() != ":":
                raise BadInput(
                    f"{path}, {place}: a colon is missing here; nothing behind it can be read: mend it there"
                )
            window.pass_over(window.at + 1)
            window.next_sign()
        yield place, window.value(place, limit)
    window.pass_over(window.at + 1)
    if window.next_sign():
        raise BadInput(f"{path}, line {window.line}: something stands behind the end of the {what}; give one, or lines")
