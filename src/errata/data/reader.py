"""Data sets as cases: recognises a file's format, reads its records, and counts the records that are not used.

loaded = errata.data.read("zsre.json", target="answers")
loaded.cases, loaded.skipped        # the cases, and of each record that cannot be used its position and the reason
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from itertools import chain
from os.path import isdir, isfile  # which raise nothing, whatever the name
from pathlib import Path
from typing import Any

from errata.answers import normalise
from errata.data.fields import Excluded, Record, RecordAt, as_object
from errata.data.formats import FORMATS, Format, MakeCase, best_fit, format_named, installed, nearest
from errata.data.hub import hub_records, is_hub_id
from errata.data.records import read_records
from errata.data.tables import folder_records
from errata.errors import BadInput, unknown
from errata.printable import listed, shown
from errata.types import Case
from errata.world.cases import cases as world_cases
from errata.world.named import BUNDLED, PARAGRAPHS, world_named
from errata.world.paragraphs import paragraphs as world_paragraphs

log = logging.getLogger(__name__)

TOLERATED = 0.1  # of a file's records may be unusable; with more of them it is not the file that it seems
NAMED = 3  # unusable records that a message names; all of them are in ``Loaded``
TRIED = 100  # records that are tried to recognise a format


@dataclass(frozen=True)
class Loaded:
    """The cases of a data set, and the records that are not used.

    ``skipped`` holds position and reason of each record that cannot be used, ``excluded`` of each valid one that a rule
    leaves out, among them edits that contradict an earlier record's. ``unread`` counts records by the keys that the
    format does not know.
    """

    name: str
    format: str
    cases: list[Case]
    skipped: list[tuple[str, str]]
    excluded: list[tuple[str, str]]
    unread: dict[str, int]

    @property
    def records(self) -> int:
        """How many records were read."""
        return len(self.cases) + len(self.skipped) + len(self.excluded)

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.format}): {len(self.cases)} of {self.records} records are used"]
        for what, records in (("skipped", self.skipped), ("excluded", self.excluded)):
            if records:
                lines.append(f"{len(records)} {what}: {_some(records)}")
        if self.unread:
            lines.append("unknown keys, not read: " + ", ".join(f"{key} ({n})" for key, n in self.unread.items()))
        return "; ".join(lines)


def cases(
    name_or_path: str | Path, limit: int | None = None, seed: int = 0, format: str | None = None, **options: Any
) -> list[Case]:
    """The cases of the bundled world (``"world"``), of a file or folder, or of a hub id.

    ``"world-paragraphs"`` are the bundled world's cases whose targets are paragraphs.

    The folder of a model that ``errata world train`` made gives the cases of its own world. Cases of a world are drawn
    by ``seed`` from the subjects of a ``split`` (``"test"``; choose settings on ``"validation"``); others come in their
    order with seed 0, shuffled with another. ``limit`` takes the first of them: with seed 0 no more of a file is read
    than that needs, with another all of it. ``format`` and ``options`` are those of :func:`read`; skipped and excluded
    records are logged. Raises :class:`BadInput`, which names a broken line by its number.
    """
    _check_name(name_or_path)
    _check_numbers(limit, seed)
    of_texts = str(name_or_path) == PARAGRAPHS
    if (world := world_named(BUNDLED if of_texts else name_or_path)) is not None:
        split = options.pop("split", "test")
        if format is not None or options:
            raise BadInput(
                f"the world is no file, so {', '.join(options) or 'a format'} means nothing there; leave it out"
            )
        return (world_paragraphs if of_texts else world_cases)(world, limit, seed, split)
    loaded = read(name_or_path, format, limit=None if seed else limit, **options)
    if loaded.skipped or loaded.excluded or loaded.unread:
        log.warning("%s", loaded)
    drawn = list(loaded.cases)
    if seed:
        random.Random(seed).shuffle(drawn)
    if limit is not None and limit > len(drawn):
        unused = loaded.records - len(drawn)
        why = f" ({unused} of its records are not used)" if unused else ""
        raise BadInput(
            f"{limit} cases were asked for; {name_or_path} holds {len(drawn)}{why}: give a limit from 1 to {len(drawn)}"
        )
    return drawn[:limit]


def _check_name(name_or_path: Any) -> None:
    if not isinstance(name_or_path, str | Path):
        raise BadInput(f"a data set is named by a text or a path, found {shown(name_or_path)}")


def _check_numbers(limit: Any, seed: Any) -> None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise BadInput(f"{shown(limit)} cases were asked for; give a limit of 1 at least, or none for all")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise BadInput(f"a seed is a whole number, found {shown(seed)}")


def read(
    name_or_path: str | Path,
    format: str | None = None,
    *,
    limit: int | None = None,
    strict: bool | str = False,
    conflicts: bool | str = False,
    **options: Any,
) -> Loaded:
    """Every case of a file, a folder or a hub id, and the records that are not used.

    The format is recognised by the first records' keys unless ``format`` names it; ``options`` are the format's own
    (zsRE: ``target``), and ``split`` and ``config`` of a hub id or a folder of ``datasets``. With ``limit`` no more is
    read than so many cases need, and no more of these are given. Up to a tenth of the records may be unusable (none
    with ``strict``). An edit that gives a subject and relation of an earlier record another target is excluded, since
    both cannot hold in one model; ``conflicts`` keeps it. Raises :class:`BadInput`.
    """
    strict, conflicts = _flag("strict", strict), _flag("conflicts", conflicts)
    _check_name(name_or_path)
    name, path = str(name_or_path), Path(name_or_path)
    records, options = _source(name, path, options)
    if format is None:
        format, chosen, records = _recognise(name, records)
    else:
        chosen = format_named(format)
        records = _opened(records, lambda record: chosen if chosen.fits(record) else None)
    make_case = _make_case(format, chosen, path if isfile(path) else None, options)
    builder = _Builder(Loaded(name, format, [], [], [], {}), chosen, make_case, conflicts)
    for position, record in records:
        builder.add(position, record)
        if limit is not None and len(builder.loaded.cases) >= limit and _usable(builder.loaded, strict):
            break
    _check(builder.loaded, strict)
    del builder.loaded.cases[limit or len(builder.loaded.cases) :]  # a record may hold several
    return builder.loaded


def _source(name: str, path: Path, options: Mapping[str, Any]) -> tuple[Iterator[RecordAt], dict[str, Any]]:
    """The records under a name, and the options that are not those of the source."""
    if isfile(path) or not (isdir(path) or is_hub_id(name)):
        return read_records(path), dict(options)
    known = ("split",) if isdir(path) else ("split", "config")
    selection = {key: options[key] for key in known if key in options}
    source = folder_records(path, **selection) if isdir(path) else hub_records(name, **selection)
    return source, {key: value for key, value in options.items() if key not in selection}


class _Builder:
    """Fills a :class:`Loaded` record by record: with its case, or with the reason why it gives none."""

    def __init__(self, loaded: Loaded, format: Format, make_case: MakeCase, conflicts: bool) -> None:
        self.loaded, self.format, self.make_case, self.conflicts = loaded, format, make_case, conflicts
        self.ids: set[str] = set()
        self.targets: dict[tuple[str, str], tuple[str, str]] = {}  # (subject, relation) -> first target, its position

    def add(self, position: str, record: Any) -> None:
        """Add the cases of one record; an unusable one is noted and stops nothing."""
        try:
            if isinstance(record, BadInput):
                raise record
            record = as_object(record, "a record")
            parts = list(self.format.parts(record)) if self.format.parts else [record]
            if not parts:
                raise BadInput("it holds no edits")
        except BadInput as error:
            self.loaded.skipped.append((position, str(error)))
            return
        for number, part in enumerate(parts, start=1):
            self._add_part(position if len(parts) == 1 else f"{position}, part {number}", part)
        for key in self.format.unread(record):
            self.loaded.unread[key] = self.loaded.unread.get(key, 0) + 1

    def _add_part(self, position: str, record: Record) -> None:
        try:
            case = self.make_case(record, f"{self.loaded.format}-{self.loaded.records + 1}")
            if not self.conflicts:
                self._check_conflicts(case, record, position)
        except BadInput as error:
            self.loaded.skipped.append((position, str(error)))
        except RecursionError:
            self.loaded.skipped.append((position, "nested too deeply to be a record"))
        except Excluded as rule:
            self.loaded.excluded.append((position, str(rule)))
        else:
            self.loaded.cases.append(self._with_unique_id(case))

    def _with_unique_id(self, case: Case) -> Case:
        """The case, with a number appended to an id that an earlier case has."""
        id, number = case.id, 2
        while id in self.ids:
            id, number = f"{case.id}-{number}", number + 1
        self.ids.add(id)
        return replace(case, id=id)

    def _check_conflicts(self, case: Case, record: Record, position: str) -> None:
        """Raises :class:`Excluded` where an earlier record has another target for the same subject and relation."""
        relations = self.format.relations(record) if self.format.relations else []
        if len(relations) != len(case.edits):
            relations = [edit.template.casefold() for edit in case.edits]
        targets = {
            (edit.subject.casefold(), relation): (edit.target_new, position)
            for edit, relation in zip(case.edits, relations, strict=True)
        }
        for key, (target, _) in targets.items():
            first, first_position = self.targets.get(key, (target, position))
            if normalise(first) != normalise(target):
                raise Excluded(
                    f"its target is {shown(target)} where that of {first_position} is {shown(first)}; "
                    "conflicts=true keeps both"
                )
        for key, value in targets.items():
            self.targets.setdefault(key, value)


def _opened(source: Iterator[RecordAt], fit: Callable[[Any], object]) -> Iterator[RecordAt]:
    """The records; a list as an object with the key ``items``, and of records by their ids each one.

    An object of objects is a record of its own where a format fits it (``fit``), and holds records where one fits them.
    """
    for position, record in source:
        if isinstance(record, list):
            record = {"items": record}
        inner = list(record.values()) if isinstance(record, dict) else []
        if inner and all(isinstance(part, dict) for part in inner) and not fit(record) and fit(inner[0]):
            yield from ((f"{position}, {shown(key)}", part) for key, part in record.items())
        else:
            yield position, record


def _recognise(name: str, source: Iterator[RecordAt]) -> tuple[str, Format, Iterator[RecordAt]]:
    """The format that fits the first record that any fits, its name, and an iterator over all records."""
    tried: list[RecordAt] = []
    rest = _opened(source, best_fit)
    for position, record in rest:
        tried.append((position, record))
        if fit := best_fit(record):
            return *fit, chain(tried, rest)
        if len(tried) > TRIED:
            break
    if not tried:
        raise BadInput(f"{name} is empty; give a file with one JSON object on each line, or a list of them")
    position, record = next(((p, r) for p, r in tried if isinstance(r, dict)), tried[0])
    if isinstance(record, BadInput):
        raise BadInput(f"{name}, {position}: {record}")
    raise BadInput(f"{name}, {position}: {_no_format(as_object(record, f'{name}, {position}: a record'))}")


def _no_format(record: Record) -> str:
    """Why no format is recognised, with the nearest one."""
    near, known = nearest(record), ", ".join(sorted({*FORMATS, *installed()}))
    hint = f"nearest is {near[0]}, which {near[1]}; " if near else ""
    return f"no format is known by the keys {listed(record)}; {hint}known: {known}"


def _make_case(format_name: str, format: Format, path: Path | None, options: Mapping[str, Any]) -> MakeCase:
    """The format's function for the records of this file, after its options have been checked."""
    parameters = signature(format.reader).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            if not known:
                raise BadInput(f"the format {format_name!r} has no option {option!r}, nor any other; leave it out")
            raise unknown(f"option of the format {format_name!r}", option, known)
        if not isinstance(value, str | bool):
            raise BadInput(f"{option} is a text, found {shown(value)}")
    return format.reader(path, **options)


def _check(loaded: Loaded, strict: bool) -> None:
    """Raises :class:`BadInput` where too many records are unusable, or none is left."""
    if not loaded.records:
        raise BadInput(
            f"{loaded.name} holds no records; give a file with one JSON object on each line, or a list of them"
        )
    if not _usable(loaded, strict):
        rule = "none may be (strict)" if strict else f"up to {TOLERATED:.0%} may be"
        raise BadInput(
            f"{loaded.name} ({loaded.format}): {len(loaded.skipped)} of {loaded.records} records cannot be used, "
            f"{rule}: {_some(loaded.skipped)}; mend them, or name another format"
        )
    if not loaded.cases:
        raise BadInput(f"{loaded}; nothing is left to use")


def _usable(loaded: Loaded, strict: bool) -> bool:
    """Whether no more records are unusable than may be."""
    return len(loaded.skipped) <= (0 if strict else TOLERATED * loaded.records)


def _flag(name: str, value: bool | str) -> bool:
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise BadInput(f"{name} is true or false, found {shown(value)}")


def _some(records: list[tuple[str, str]]) -> str:
    """The first positions with their reasons, and the number of the others."""
    more = f" and {len(records) - NAMED} more" if len(records) > NAMED else ""
    return "; ".join(f"{position}: {reason}" for position, reason in records[:NAMED]) + more
