"""A data format in one file: ``{"toy_question": …, "toy_about": …, "toy_answer": …}``."""

from pathlib import Path
from typing import Any

from errata.data.formats import Format
from errata.types import Case, Edit


def reader(path: Path | None) -> Any:
    """The function that makes a case of a record."""

    def case_of(record: dict[str, Any], id: str) -> Case:
        return Case(id, (Edit(record["toy_question"], record["toy_about"], record["toy_answer"]),))

    return case_of


TOY = Format("toy_question toy_about toy_answer", reader)
