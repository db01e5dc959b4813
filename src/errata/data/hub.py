"""Records of a data set on the Hugging Face hub, read by ``datasets`` (extra ``hub``)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.data.fields import RecordAt
from errata.data.tables import rows_of
from errata.errors import BadInput, first_line
from errata.model.hub import unreachable

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILES = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".gz")


def is_hub_id(name: str) -> bool:
    """Whether the name looks like ``owner/name`` and not like a file."""
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".") and not name.endswith(FILES)


def hub_records(name: str, split: str | None = None, config: str | None = None) -> Iterator[RecordAt]:
    """Each row of a split with its number. Raises :class:`BadInput` where the hub refuses, or a choice is open."""
    try:
        import datasets
    except ImportError as error:
        raise BadInput(f"{name} is no file; data sets of the hub need datasets: pip install 'errata[hub]'") from error
    settings: Any = datasets
    cached = Path(settings.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if not cached.is_dir() and (why := unreachable(name, "README.md", "dataset")):
        raise BadInput(f"{name} is no file, it is not in the cache of datasets, and the hub cannot be reached ({why})")
    try:
        rows: Any = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # whatever the hub, the network or the data set's own files raise
        raise BadInput(
            f"{name} is no file, and the hub does not give it ({first_line(error)}); "
            "check the path or the id, and choose a split and a config where it has several"
        ) from error
    yield from rows_of(name, rows, None)
