"""Files as records, one after the other, with a bound on the memory that a record takes.

JSON lines are parsed line by line, so that an unreadable line costs that line alone. One JSON list is parsed by ijson,
which cannot go on behind a mistake (NaN and integers above 64 bits are mistakes to it). :class:`_Pieces` mends where it
differs from ``json`` otherwise: it gives no positions, it decodes half a surrogate pair as "?" or as another character,
and its memory grows with the square of the nesting.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from errata.errors import BadInput

MAX_RECORD = 16 * 2**20  # bytes of one record; the longest published ones hold a few hundred KiB
MAX_DEPTH = 500  # brackets of one record that may be open at once; half of what json takes
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
    """Each record of a file with its position: JSON lines, one JSON list, or one JSON object over many lines.

    A line that cannot be parsed yields the :class:`BadInput` that says why. No more than ``limit`` bytes of a record
    are held. Raises :class:`BadInput` where nothing behind a position can be read.
    """
    if not path.is_file():
        raise BadInput(f"there is no data set and no file {str(path)!r}; give 'world' or the path of a file of cases")
    with path.open("rb") as file:
        start = file.read(64)
        for signature, what in SIGNATURES.items():
            if start.startswith(signature):
                raise BadInput(f"{path} is {what}")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        first = _first_line(file)
        if first.startswith(b"["):
            yield from _list_records(file, path, limit)
        elif first == b"{":
            yield "the file", _whole_file(file, path, limit)
        else:
            yield from _line_records(file, limit)


def _first_line(file: BinaryIO) -> bytes:
    """The beginning of the first line that is not empty, stripped; the file's position is unchanged."""
    begin = file.tell()
    line = b""
    while not line and (read := file.readline(4096)):
        line = read.strip()
    file.seek(begin)
    return line


def _line_records(file: BinaryIO, limit: int) -> Iterator[RecordAt]:
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


def _whole_file(file: BinaryIO, path: Path, limit: int) -> Any:
    text = file.read(limit + 1)
    if len(text) > limit:
        raise BadInput(
            f"{path} is one JSON object longer than {limit:,} bytes; give a list, or one record on each line"
        )
    value = _parsed(text)
    if isinstance(value, BadInput):
        raise BadInput(f"{path}: {value}")
    return value


# One JSON list -----------------------------------------------------------------------------------

# An escape: a surrogate pair, half of one (the group), or any other. Read from left to right, so that the second of two
# backslashes begins none.
ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|(u[dD][89a-fA-F][\da-fA-F]{2})|.)", re.DOTALL
)
MARK = r"\ufdd0"  # in the place of half a pair while ijson reads: a code point that is no character


def _list_records(file: BinaryIO, path: Path, limit: int) -> Iterator[RecordAt]:
    """The elements of one JSON list: a file of any size takes the memory of a record."""
    pieces = _Pieces(file, limit)
    records = ijson.items(pieces, "item", use_float=True)
    number = 1
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except (ijson.JSONError, ValueError) as error:  # BadInput of the pieces is one
            raise BadInput(
                f"{path}, record {number} (line {pieces.first_line}): {_reason(error, pieces)}; nothing behind it can "
                "be read: mend it there, or write one record on each line"
            ) from error
        if pieces.marked:
            record = json.loads(json.dumps(record).replace(MARK, r"\ud800"))
        yield f"record {number} (line {pieces.first_line})", record
        number += 1
        pieces.start_record()


def _reason(error: Exception, pieces: "_Pieces") -> str:
    """Why ijson stopped, on one line."""
    if isinstance(error, BadInput):
        return str(error)
    if pieces.ended:
        return "the list is cut off here"
    if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
        return f"not UTF-8 text (up to line {pieces.line}); save the file as UTF-8"
    what, _, excerpt = str(error).partition("\n")  # of yajl: the excerpt, then an arrow below it
    excerpt = " ".join(excerpt.partition("(right here)")[0].split())
    return f"not JSON (up to line {pieces.line}: {what}{', near ' if excerpt else ''}{excerpt})"


class _Pieces:
    """A file of one JSON list as ijson reads it, in pieces that end behind a "}" where one is near.

    ijson yields a record before it reads on: an object is complete where reading stands, which gives its line and the
    number of its bytes. Raises :class:`BadInput` for a record that is too long or too deep. Half a surrogate pair is
    replaced by ``MARK``.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.limit = file, limit
        self.buffer, self.start, self.line = b"", 0, 1
        self.marked = self.ended = False
        self.start_record()

    def start_record(self) -> None:
        """Begin to count anew: what has been read belongs to records that are complete."""
        self.bytes, self.depth, self.first_line, self.in_record = 0, 0, self.line, False

    def read(self, size: int) -> bytes:
        """The next piece, checked; empty at the end of the file, or for a ``size`` of 0."""
        if not size:
            return b""
        piece = self._next_piece()
        self.ended = not piece
        if not self.in_record and (record := piece.lstrip(b" \t\r\n,[")):
            self.in_record = True
            self.first_line = self.line + piece.count(b"\n", 0, len(piece) - len(record))
        self.line += piece.count(b"\n")
        self.bytes += len(piece)
        if self.bytes > self.limit:
            raise BadInput(f"longer than {self.limit:,} bytes")
        self.depth += piece.count(b"{") + piece.count(b"[") - piece.count(b"}") - piece.count(b"]")
        if self.depth > MAX_DEPTH:
            raise BadInput("nested too deeply to be a record")
        return ESCAPE.sub(self._mark, piece) if b"\\ud" in piece or b"\\uD" in piece else piece

    def _next_piece(self) -> bytes:
        """The bytes up to the next "}"; without one in a chunk, up to the last quote: no escape is cut in two."""
        end = self.buffer.find(b"}", self.start) + 1
        while not end and len(self.buffer) - self.start <= self.limit and (chunk := self.file.read(CHUNK)):
            self.buffer, self.start = self.buffer[self.start :] + chunk, 0
            end = self.buffer.find(b"}") + 1 or self.buffer.rfind(b'"') + 1
        piece = self.buffer[self.start : end or None]
        self.start += len(piece)
        return piece

    def _mark(self, escape: re.Match[bytes]) -> bytes:
        self.marked = self.marked or escape[1] is not None
        return MARK.encode() if escape[1] else escape[0]
