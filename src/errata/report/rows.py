"""Rows as lines of JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any, cast

from errata.errors import BadInput
from errata.types import Row

FIELDS = tuple(field.name for field in fields(Row))
DEFAULTS = {field.name: field.default for field in fields(Row)}


def to_jsonl(rows: Iterable[Row], compact: bool = False) -> str:
    """A JSON object on a line of its own for each row; ``compact`` leaves out fields that have their default."""
    records = (asdict(row) for row in rows)
    if compact:
        records = ({k: v for k, v in record.items() if v != DEFAULTS[k]} for record in records)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def from_jsonl(text: str) -> list[Row]:
    """The rows of :func:`to_jsonl`. Raises :class:`BadInput`, which names a broken line by its number."""
    return [_row(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _row(line: str, number: int) -> Row:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"line {number}: not JSON ({error}); a line that was cut off can be removed") from error
    values = cast("dict[str, Any]", record if isinstance(record, dict) else {"": record})
    if not set(values) <= set(FIELDS):
        raise BadInput(f"line {number}: not a row; its fields are {', '.join(FIELDS)}")
    return Row(**values)
