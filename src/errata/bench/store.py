"""The file of rows, and what is kept of sequences that are under way, so that a run can be resumed."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from errata.bench.units import COST, END, Unit
from errata.errors import BadInput, ErrataError
from errata.files import write_text
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.report.rows import from_jsonl, to_jsonl
from errata.types import Row

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a fold has come."""

    steps: int = 0
    patch: Patch = field(default_factory=lambda: EMPTY)
    rows: list[Row] = field(default_factory=list[Row])
    seconds: float = 0.0
    peak: float | None = None
    endured: int = 0


@dataclass(frozen=True)
class RowFile:
    """The file of rows, and a folder beside it with the patches of sequences that are under way."""

    path: Path

    def append(self, rows: Sequence[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_jsonl(rows, compact=True))
            file.flush()
            os.fsync(file.fileno())

    def progress(self, unit: Unit) -> "ProgressFolder":
        name = hashlib.sha256(repr((unit.key, unit.modes)).encode()).hexdigest()[:16]
        return ProgressFolder(Path(f"{self.path}.parts") / name, unit)

    def tidied(self, units: Sequence[Unit], retry: bool) -> set[tuple[Any, ...]]:
        """The keys of units that are done. What is left of others is taken out of the file.

        Units of another plan stay in it. Raises :class:`BadInput` where the file holds anything else.
        """
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        whole, _, torn = text.rpartition("\n")
        begin = '{"model": "'
        if torn and torn[: len(begin)] != begin[: len(torn)]:
            raise BadInput(f"{self.path} holds something else than rows; name another file")
        try:
            *blocks, rest = _blocks(from_jsonl(whole))
        except BadInput as error:
            raise BadInput(f"{self.path}: {error}; or name another file") from error
        mine = {unit.key[:-1] for unit in units}
        if strange := [row for row in rest if _key(row)[:-1] not in mine]:
            raise BadInput(
                f"the last {len(rest)} rows of {self.path} are of a unit that was broken off or of another command "
                f"({', '.join(str(its) for its in _key(strange[0])[:-1] if its != '')}), and this plan has none such; "
                "remove them or name another file"
            )
        modes = {unit.key: set(unit.modes) for unit in units}
        kept, done = [], set[tuple[Any, ...]]()
        for block in blocks:
            key, last = _key(block[-1]), block[-1]
            asked = {row.mode for row in block if (row.kind, row.metric) == (COST, END)}
            if key in modes and (not modes[key] <= asked or (retry and last.error is not None)):
                continue
            kept.append(block)
            done |= {key} & modes.keys()
        if torn or rest or len(kept) < len(blocks):
            write_text(self.path, to_jsonl((row for block in kept for row in block), compact=True))
        for unit in units:
            if unit.key in done:
                self.progress(unit).forget()
        return done


def _key(row: Row) -> tuple[Any, ...]:
    return (row.model, row.method, row.settings, row.data, row.seed, row.setting, row.case)


def _blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each unit, which ends with the last of its costs; last the rows that are left without an end."""
    block: list[Row] = []
    for row in rows:
        ends = (row.kind, row.metric) == (COST, END)
        if block and (block[-1].kind, block[-1].metric) == (COST, END) and not (ends and _key(row) == _key(block[-1])):
            yield block
            block = []
        block.append(row)
    ended = bool(block) and (block[-1].kind, block[-1].metric) == (COST, END)
    if ended:
        yield block
    yield [] if ended else block


@dataclass(frozen=True)
class ProgressFolder:
    """A folder with the patch of a sequence at its last checkpoint, and the rows up to there."""

    folder: Path
    unit: Unit

    def load(self, lm: HFLM) -> Progress:
        """Where the fold stopped; its beginning where nothing usable was kept."""
        file = self.folder / "progress.json"
        if not file.is_file():
            return Progress()
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            patch = Patch.load(self.folder / record.pop("patch"))
            patch.check(lm)
            return Progress(patch=patch, rows=[Row(**row) for row in record.pop("rows")], **record)
        except (ErrataError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be gone on from (%s); its sequence begins anew", self.folder, error)
            return Progress()

    def save(self, at: Progress) -> None:
        old = set(self.folder.glob("*.safetensors"))
        patch = at.patch.save(self.folder / f"{at.steps}.safetensors")
        numbers = {"steps": at.steps, "seconds": at.seconds, "peak": at.peak, "endured": at.endured}
        record = {"patch": patch.name, "rows": [asdict(row) for row in at.rows], **numbers}
        write_text(self.folder / "progress.json", json.dumps(record, ensure_ascii=False))
        for file in old - {patch}:
            file.unlink(missing_ok=True)

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
