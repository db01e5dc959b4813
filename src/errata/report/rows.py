"""Rows as lines of JSON."""

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from errata.errors import BadInput
from errata.inputs import read_text
from errata.types import MODES, Row

FIELDS = tuple(field.name for field in fields(Row))
DEFAULTS = {field.name: field.default for field in fields(Row)}
WORDS = {  # for pydantic's types of errors: what is expected
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "text",
    "literal_error": " or ".join(MODES),
}
_ROW = TypeAdapter(Row)


def told_apart(rows: Iterable[Row]) -> list[Row]:
    """The rows, with how a model was asked behind its name where rows of it differ in that."""
    rows = list(rows)
    ways: dict[str, set[str]] = {}
    for row in rows:
        ways.setdefault(row.model, set()).add(row.chat)
    return [replace(row, model=_name(row)) if len(ways[row.model]) > 1 else row for row in rows]


def _name(row: Row) -> str:
    return f"{row.model} ({row.chat or 'plain, or not said'})"


# Writing -----------------------------------------------------------------------------------------


def to_jsonl(rows: Iterable[Row], compact: bool = False) -> str:
    """A JSON object on a line of its own for each row; ``compact`` leaves out fields that have their default."""
    records = map(record_of, rows)
    if compact:
        records = ({k: v for k, v in record.items() if v != DEFAULTS[k]} for record in records)
    return "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)


def record_of(row: Row) -> dict[str, Any]:
    """The row as JSON. What is no finite number, for which JSON has no word, is null, and stands in ``error``."""
    record = dict(vars(row))
    for name in ("before", "after"):
        value = record[name]
        if value is not None and not isfinite(value):
            record |= {name: None, "error": record["error"] or f"{name} is no finite number: {value}"}
    return record


# Reading -----------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> list[Row]:
    """The rows in a file. Raises :class:`BadInput`, which names the file, and the line and field that are wrong."""
    text = read_text(Path(path), "errata report")
    try:
        return from_jsonl(text)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def from_bytes(content: bytes) -> list[Row]:
    """The rows in the content of a file. Raises :class:`BadInput`, as :func:`from_jsonl`."""
    try:
        return from_jsonl(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"line {number}: not UTF-8 text ({error.reason})") from error


def from_jsonl(text: str) -> list[Row]:
    """The rows of :func:`to_jsonl`. Raises :class:`BadInput`, which names a broken line by its number."""
    return [_row(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _row(line: str, number: int) -> Row:
    try:
        row = _ROW.validate_json(line)
    except ValidationError as error:
        raise BadInput(f"line {number}: {_problem(error)}") from error
    if not (row.kind and row.metric):
        raise BadInput(f"line {number}: not a row; {'metric' if row.kind else 'kind'} is missing")
    return row


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong with a line, in words."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return f"not JSON ({reason}); a line that was cut off can be removed"
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] in WORDS:
        return f"{field} is {WORDS[first['type']]}, found {repr(first['input'])[:60]}"
    found = f"no field {field!r} is known" if field else "an object is expected"
    return f"not a row; {found}: its fields are {', '.join(FIELDS)}"
