"""The file of rows, and what is kept of sequences that are under way, so that a run can be resumed."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from errata.bench.units import COST, LABELS, LAST_METRIC, Unit, key_of
from errata.errors import BadInput, ErrataError
from errata.files import check_writable, write_text
from errata.inputs import parsed
from errata.locks import held
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.patch.schema import STRICT, read
from errata.report.rows import from_bytes, record_of, to_jsonl
from errata.types import Row

log = logging.getLogger(__name__)

BEGIN = b'{"model": "'  # of a row


@dataclass
class UnitProgress:
    """How far the fold of a unit has come.

    ``steps`` batches are edited, ``patch`` is the result and ``rows`` were measured so far. ``seconds`` is the time
    that editing took, ``peak`` its highest memory in MiB. ``endured`` is the number of edits at the last checkpoint
    that the stop rule let pass.
    """

    steps: int = 0
    patch: Patch = field(default_factory=lambda: EMPTY)
    rows: list[Row] = field(default_factory=list[Row])
    seconds: float = 0.0
    peak: float | None = None
    endured: int = 0


@dataclass(frozen=True)
class RowFile:
    """The file of rows: JSON lines, to which a unit's rows are appended together. Beside it lies a folder ``.parts``
    with the lock of a run, and the checkpoints of units that are under way."""

    path: Path

    @property
    def parts(self) -> Path:
        """The folder of what is under way; it is there only while something is."""
        return Path(f"{self.path}.parts")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager: no other run writes the file or the checkpoints meanwhile.

        Raises :class:`BadInput` where one does, and where the file cannot be written.
        """
        check_writable(self.path)
        try:
            with held(self.parts / "lock", str(self.path)):
                yield
        finally:
            with suppress(OSError):  # something is kept there, or another run has begun
                self.parts.rmdir()

    def append(self, rows: Sequence[Row]) -> None:
        """Writes a unit's rows behind the others, on the disk when this returns. Raises :class:`BadInput`."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_jsonl(rows, compact=True))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BadInput(
                f"cannot write {self.path}: {error.strerror or error}; what it holds so far is kept: make room, and "
                "give the same command again"
            ) from error

    def keep(self, unit: Unit, rows: Sequence[Row]) -> None:
        """Appends the rows of a unit that is through; of its checkpoint nothing is left."""
        self.append(rows)
        self.checkpoint(unit).remove()

    def sort(self, units: Sequence[Unit]) -> None:
        """Puts the rows of these units in their order, behind those of other plans. Raises :class:`BadInput`."""
        *blocks, _ = _blocks(from_bytes(self.path.read_bytes()))
        place = {unit.key: i for i, unit in enumerate(units)}
        places = [place.get(_key(block[-1]), -1) for block in blocks]
        if places != sorted(places):
            ordered = sorted(range(len(blocks)), key=places.__getitem__)
            write_text(self.path, to_jsonl((row for i in ordered for row in blocks[i]), compact=True))

    def checkpoint(self, unit: Unit) -> "UnitCheckpoint":
        """The folder in which the unit's progress is kept."""
        name = hashlib.sha256(repr((unit.key, unit.modes)).encode()).hexdigest()[:16]
        return UnitCheckpoint(self.parts / name, unit)

    def finished(
        self, units: Sequence[Unit], retry: bool, lacking: Callable[[Unit, Sequence[Row]], bool] = lambda *_: False
    ) -> set[tuple[Any, ...]]:
        """The keys of those units whose rows the file holds whole; other rows of these units are taken out of it.

        With ``retry`` a unit that ended with an error is not finished, nor is one whose rows are ``lacking`` some. Rows
        of units of another plan stay in the file.
        Raises :class:`BadInput` where the file holds anything else.
        """
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole, _, torn = content.rpartition(b"\n")  # as bytes: what is torn may end inside of a character
        if torn and torn[: len(BEGIN)] != BEGIN[: len(torn)]:
            raise BadInput(f"{self.path} holds something else than rows; name another file")
        try:
            *blocks, rest = _blocks(from_bytes(whole))
        except BadInput as error:
            raise BadInput(f"{self.path}: {error}; or name another file") from error
        self._check_rest(rest, units)
        planned = {unit.key: unit for unit in units}
        kept: list[list[Row]] = []
        done = set[tuple[Any, ...]]()
        for block in blocks:
            key, last = _key(block[-1]), block[-1]
            measured = {row.mode for row in block if _ends_unit(row)}
            unit = planned.get(key)
            if unit is not None:
                if not set(unit.modes) <= measured or (retry and last.error is not None) or lacking(unit, block):
                    continue
                done.add(key)
            kept.append(block)
        if torn or rest or len(kept) < len(blocks):
            write_text(self.path, to_jsonl((row for block in kept for row in block), compact=True))
        for unit in units:
            if unit.key in done:
                self.checkpoint(unit).remove()
        return done

    def _check_rest(self, rows: Sequence[Row], units: Iterable[Unit]) -> None:
        """Raises :class:`BadInput` where rows without an end are of no unit of this plan."""
        labels = {tuple(unit.labels[name] for name in LABELS) for unit in units}
        if strange := [row for row in rows if _labels(row) not in labels]:
            raise BadInput(
                f"the last {len(rows)} rows of {self.path} are of a unit that was broken off or of another command "
                f"({', '.join(str(label) for label in _labels(strange[0]) if label != '')}), and this plan has none "
                "such; remove them or name another file"
            )


def _labels(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in LABELS)


def _key(row: Row) -> tuple[Any, ...]:
    """The key of the unit that a cost row is of."""
    return key_of(vars(row), row.protocol, row.case)


def _ends_unit(row: Row) -> bool:
    return (row.kind, row.metric) == (COST, LAST_METRIC)


def _blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each unit, which ends with the last of its costs; last the rows that are left without an end."""
    block: list[Row] = []
    for row in rows:
        if block and _ends_unit(block[-1]) and not (_ends_unit(row) and _key(row) == _key(block[-1])):
            yield block
            block = []
        block.append(row)
    ended = bool(block) and _ends_unit(block[-1])
    if ended:
        yield block
    yield [] if ended else block


class _Record(BaseModel):
    """What the file of a checkpoint holds beside the patch: see :class:`UnitProgress`."""

    model_config = STRICT

    patch: Annotated[str, Field(pattern=r"^\d+\.safetensors$")]  # a file's name: no path to elsewhere
    rows: list[Row]
    steps: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]
    peak: float | None
    endured: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class UnitCheckpoint:
    """A folder with the patch of a sequence at its last checkpoint, and the rows up to there."""

    folder: Path
    unit: Unit

    def load(self, lm: HFLM) -> UnitProgress:
        """Where the fold stopped; its beginning where nothing usable was kept, which is logged."""
        file = self.folder / "progress.json"
        try:
            if not file.is_file():
                return UnitProgress()
            record: _Record = read(_Record, parsed(file.read_bytes()))
            if record.steps >= len(self.unit.batches):  # nothing is kept at the end
                raise BadInput(f"{record.steps} steps were made, and it has {len(self.unit.batches)}")
            patch = Patch.load(self.folder / record.patch)
            patch.check(lm)
        except (ErrataError, OSError) as error:
            log.warning("%s cannot be resumed (%s); its sequence begins anew", self.folder, error)
            return UnitProgress()
        return UnitProgress(record.steps, patch, record.rows, record.seconds, record.peak, record.endured)

    def save(self, progress: UnitProgress) -> None:
        """Takes the place of what was kept before. Where it cannot be written, that is logged: the work is not lost."""
        try:
            old = set(self.folder.glob("*.safetensors"))
            patch = progress.patch.save(self.folder / f"{progress.steps}.safetensors")
            numbers = {name: getattr(progress, name) for name in ("steps", "seconds", "peak", "endured")}
            record = {"patch": patch.name, "rows": [record_of(row) for row in progress.rows], **numbers}
            write_text(self.folder / "progress.json", json.dumps(record, ensure_ascii=False))
            for file in old - {patch}:
                file.unlink(missing_ok=True)
        except (BadInput, OSError) as error:
            log.warning("%s; if the run is interrupted now, this sequence goes on from where it was kept before", error)

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
