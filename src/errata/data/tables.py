"""Records of tables: parquet files (``pyarrow``), and what ``datasets`` holds (both with the extra ``hub``)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.data.fields import RecordAt
from errata.errors import BadInput, first_line

ROWS = 256  # of a parquet file that are held at a time
GROUP = 2**31  # bytes of a group of rows, unpacked


def parquet_records(path: Path) -> Iterator[RecordAt]:
    """Each row of a parquet file with its number; some hundred rows are held at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise BadInput(f"{path} is a parquet file, which needs pyarrow: pip install 'errata[hub]'") from error
    number = 0
    try:
        with ParquetFile(path) as table:
            _check_size(path, table.metadata)
            for batch in table.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", without_none(row)
    except BadInput:
        raise
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        raise BadInput(
            f"{path}, behind row {number}: not a whole parquet file ({first_line(error)}); fetch it anew"
        ) from error


def _check_size(path: Path, table: Any) -> None:
    """Raises :class:`BadInput` where a group of rows, which is held as a whole, is too large for that."""
    for group in range(table.num_row_groups):
        if (size := table.row_group(group).total_byte_size) > GROUP:
            raise BadInput(
                f"{path} holds {size:,} bytes in one group of rows, and {GROUP:,} may be; write it in smaller groups"
            )


def folder_records(path: Path, split: str | None = None) -> Iterator[RecordAt]:
    """Each row of a folder that ``save_to_disk`` of ``datasets`` wrote, with its number."""
    if not ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
        raise BadInput(
            f"{path} is a folder, and none that save_to_disk of datasets wrote (dataset_info.json is missing); "
            "give one of its files"
        )
    try:
        import datasets
    except ImportError as error:
        raise BadInput(f"{path} was written by datasets, which is needed: pip install 'errata[hub]'") from error
    try:
        rows: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a broken folder makes datasets raise
        raise BadInput(f"{path} cannot be read by datasets ({first_line(error)}); write it anew") from error
    yield from rows_of(str(path), rows, split)


def rows_of(name: str, rows: Any, split: str | None) -> Iterator[RecordAt]:
    """Each row of a data set with its number. Raises :class:`BadInput` where a split must be chosen, or is unknown."""
    if isinstance(rows, dict):
        splits = ", ".join(map(str, rows))
        if split is None and len(rows) > 1:
            raise BadInput(f"{name} has the splits {splits}; choose one with split=NAME")
        if split is not None and split not in rows:
            raise BadInput(f"{name} has no split {split!r}; it has {splits}")
        rows = rows[split] if split is not None else next(iter(rows.values()))
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", without_none(row)


def without_none(value: Any) -> Any:
    """The value without the keys that a table fills up where a record has none."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value
