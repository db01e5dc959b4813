"""Files as records: read with a bound, and named where they cannot be read."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from errata.errors import BadInput

MAX_RECORD = 16 * 2**20  # bytes of one record; the longest published ones hold a few hundred KiB
FIRST = 4096  # bytes that tell a list from lines
CHUNK = 2**20  # bytes read at a time where a line is passed over, or a list is taken apart
SIGNATURES = {  # what a file begins with that is no text, or not yet
    b"\xff\xfe": "UTF-16 text; make it UTF-8 (iconv -f utf-16 -t utf-8)",
    b"\xfe\xff": "UTF-16 text; make it UTF-8 (iconv -f utf-16 -t utf-8)",
    b"\x1f\x8b": "compressed; unpack it first (gunzip)",
    b"PK\x03\x04": "an archive; unpack it first (unzip)",
    b"version https://git-lfs": "a pointer of Git LFS and not the data; fetch the data with git lfs pull",
}

RecordAt = tuple[str, Any]  # the position of a record in its file, and the record: a BadInput where it cannot be read


def read_records(path: Path, limit: int = MAX_RECORD) -> Iterator[RecordAt]:
    """Each record of a file and where it stands: JSON lines, one JSON list, or one JSON object over many lines.

    A line that cannot be read comes as the :class:`BadInput` that says why. No more than ``limit`` bytes of a record
    are held. Raises :class:`BadInput` where nothing behind a place can be read.
    """
    if not path.is_file():
        raise BadInput(f"there is no data set and no file {str(path)!r}; give 'world' or the path of a file of cases")
    with path.open("rb") as file:
        start = file.read(64)
        for mark, what in SIGNATURES.items():
            if start.startswith(mark):
                raise BadInput(f"{path} is {what}")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        first = _first_line(file)
        if first.startswith(b"["):
            yield from _of_list(file, path, limit)
        elif first == b"{":
            yield "the file", _whole(file, path, limit)
        else:
            yield from _of_lines(file, limit)


def _first_line(file: BinaryIO) -> bytes:
    """The beginning of the first line that is not empty; the file's position stays as it was."""
    begin = file.tell()
    line = b""
    while not line and (read := file.readline(FIRST)):
        line = read.strip()
    file.seek(begin)
    return line


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
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadInput(f"not UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8")
    except RecursionError:
        return BadInput("nested too deeply to be a record")
    except ValueError as error:
        return BadInput(f"not JSON ({error}); expected one JSON object on each line")


def _whole(file: BinaryIO, path: Path, limit: int) -> Any:
    text = file.read(limit + 1)
    if len(text) > limit:
        raise BadInput(
            f"{path} is one JSON object longer than {limit:,} bytes; give a list, or one record on each line"
        )
    value = _parsed(text)
    if isinstance(value, BadInput):
        raise BadInput(f"{path}: {value}")
    return value


class _Window:
    """The part of a text file that is looked at: ``text`` from ``at`` on, with ``line`` the line that stands there."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8")()
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


def _of_list(file: BinaryIO, path: Path, limit: int) -> Iterator[RecordAt]:
    """The elements of one JSON list, one after the other: a file of any size takes the memory of a record."""
    window, decode = _Window(file, path), json.JSONDecoder().raw_decode
    window.next_sign()
    window.pass_over(window.at + 1)
    number = 0
    while (sign := window.next_sign()) != "]":
        if number and sign == ",":
            window.pass_over(window.at + 1)
            window.next_sign()
        number += 1
        place = f"record {number} (line {window.line})"
        if number > 1 and sign != ",":
            raise BadInput(f"{path}, {place}: {'a comma is missing' if sign else 'the list is cut off'} here")
        while True:
            try:
                value, end = decode(window.text, window.at)
                behind = window.text[end : end + 1]
                if window.ended or not isinstance(value, int | float) or (behind and behind in ",] \t\r\n"):
                    break
                why = ""  # a number may go on behind the window
            except RecursionError as error:
                raise BadInput(f"{path}, {place}: nested too deeply to be a record") from error
            except json.JSONDecodeError as error:
                line = window.line + window.text.count("\n", window.at, error.pos)
                why = f"not JSON (line {line}: {error.msg})"
            except ValueError as error:
                raise BadInput(f"{path}, {place}: {error}") from error
            if not window.ended and len(window.text) - window.at > limit:
                why = f"longer than {limit:,} bytes"
            elif not window.ended:
                window.more()
                continue
            raise BadInput(f"{path}, {place}: {why}; nothing behind it can be read: mend it there")
        window.pass_over(end)
        yield place, value
