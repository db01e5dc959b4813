"""Data sets as cases: recognises a file's format, reads its records, and counts the records that are not used.

loaded = errata.data.read("zsre.json", target="answers")
loaded.cases, loaded.skipped        # the cases, and of each record that cannot be used its position and the reason
"""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from itertools import chain
from pathlib import Path
from typing import Any

from errata.answers import normalise
from errata.data.fields import Excluded, Record, as_object
from errata.data.formats import Format, MakeCase, all_formats, format_named
from errata.data.hub import hub_records, is_hub_id
from errata.data.records import RecordAt, read_records
from errata.errors import BadInput, unknown
from errata.types import Case
from errata.world.cases import cases as world_cases
from errata.world.named import world_named

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
        """How many records the data set has."""
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
    """The cases of the bundled world (``"world"``), of a file (JSON lines, or one JSON list), or of a hub id.

    The folder of a model that ``errata world train`` made gives the cases of its own world. Cases of a world are drawn
    by ``seed`` from the subjects of a ``split`` (``"test"``; choose settings on ``"validation"``); others come in their
    order with seed 0, shuffled with another.
    ``limit`` takes the first of them. ``format`` and ``options`` are those of :func:`read`; skipped and excluded
    records are logged. Raises :class:`BadInput`, which names a broken line by its number.
    """
    if (world := world_named(name_or_path)) is not None:
        split = options.pop("split", "test")
        if format is not None or options:
            raise BadInput(
                f"the world is no file, so {', '.join(options) or 'a format'} means nothing there; leave it out"
            )
        return world_cases(world, limit, seed, split)
    loaded = read(name_or_path, format, **options)
    if loaded.skipped or loaded.excluded or loaded.unread:
        log.warning("%s", loaded)
    drawn = list(loaded.cases)
    if seed:
        random.Random(seed).shuffle(drawn)
    if limit is not None and not 1 <= limit <= len(drawn):
        unused = loaded.records - len(drawn)
        why = f" ({unused} of its records are not used)" if unused else ""
        raise BadInput(
            f"{limit} cases were asked for; {name_or_path} holds {len(drawn)}{why}: give a limit from 1 to {len(drawn)}"
        )
    return drawn[:limit]


def read(
    name_or_path: str | Path,
    format: str | None = None,
    *,
    strict: bool | str = False,
    conflicts: bool | str = False,
    **options: Any,
) -> Loaded:
    """Every case of a file or a hub id, and the records that are not used.

    The format is recognised by the first records' keys unless ``format`` names it; ``options`` are the format's own
    (zsRE: ``target``), and ``split`` and ``config`` of a hub id. Up to a tenth of the records may be unusable (none
    with ``strict``). An edit that gives a subject and relation of an earlier record another target is excluded, since
    both cannot hold in one model; ``conflicts`` keeps it. Raises :class:`BadInput`.
    """
    strict, conflicts = _flag("strict", strict), _flag("conflicts", conflicts)
    name, path = str(name_or_path), Path(name_or_path)
    if is_hub_id(name) and not path.exists():
        path, selection = None, {key: options.pop(key) for key in ("split", "config") if key in options}
        records = hub_records(name, **selection)
    else:
        records = read_records(path)
    if format is None:
        format, chosen, records = _recognise(name, records)
    else:
        chosen = format_named(format)
    make_case = _make_case(format, chosen, path, options)
    builder = _Builder(Loaded(name, format, [], [], [], {}), chosen, make_case, conflicts)
    for position, record in records:
        builder.add(position, record)
    _check(builder.loaded, strict)
    return builder.loaded


class _Builder:
    """Fills a :class:`Loaded` record by record: with its case, or with the reason why it gives none."""

    def __init__(self, loaded: Loaded, format: Format, make_case: MakeCase, conflicts: bool) -> None:
        self.loaded, self.format, self.make_case, self.conflicts = loaded, format, make_case, conflicts
        self.ids: set[str] = set()
        self.targets: dict[tuple[str, str], tuple[str, str]] = {}  # (subject, relation) -> first target, its position

    def add(self, position: str, record: Any) -> None:
        """Add one record; an unusable one is noted and stops nothing."""
        try:
            if isinstance(record, BadInput):
                raise record
            record = as_object(record, "a record")
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
            for key in self.format.unread(record):
                self.loaded.unread[key] = self.loaded.unread.get(key, 0) + 1
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
                    f"its target is {target!r} where that of {first_position} is {first!r}; conflicts=true keeps both"
                )
        for key, value in targets.items():
            self.targets.setdefault(key, value)


def _recognise(name: str, source: Iterable[RecordAt]) -> tuple[str, Format, Iterator[RecordAt]]:
    """The first format that fits one of the first records, its name, and an iterator over all records."""
    tried: list[RecordAt] = []
    rest = iter(source)
    for position, record in rest:
        tried.append((position, record))
        for format_name, format in all_formats():
            if format.fits(record):
                return format_name, format, chain(tried, rest)
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
    formats = dict(all_formats())
    nearest = min(formats, key=lambda name: len(formats[name].missing(record)))
    missing, keys = formats[nearest].missing(record), formats[nearest].keys.split()
    hint = f"nearest is {nearest}, which needs {', '.join(missing)} too; " if len(missing) < len(keys) else ""
    return f"no format is known by the keys {', '.join(record) or '(none)'}; {hint}known: {', '.join(sorted(formats))}"


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
            raise BadInput(f"{option} is a text, found {value!r}")
    return format.reader(path, **options)


def _check(loaded: Loaded, strict: bool) -> None:
    """Raises :class:`BadInput` where too many records are unusable, or none is left."""
    if not loaded.records:
        raise BadInput(
            f"{loaded.name} holds no records; give a file with one JSON object on each line, or a list of them"
        )
    if len(loaded.skipped) > (0 if strict else TOLERATED * loaded.records):
        rule = "none may be (strict)" if strict else f"up to {TOLERATED:.0%} may be"
        raise BadInput(
            f"{loaded.name} ({loaded.format}): {len(loaded.skipped)} of {loaded.records} records cannot be used, "
            f"{rule}: {_some(loaded.skipped)}; mend them, or name another format"
        )
    if not loaded.cases:
        raise BadInput(f"{loaded}; nothing is left to use")


def _flag(name: str, value: bool | str) -> bool:
    flags = {True: True, False: False, "true": True, "false": False}
    if value not in flags:
        raise BadInput(f"{name} is true or false, found {value!r}")
    return flags[value]


def _some(records: list[tuple[str, str]]) -> str:
    """The first positions with their reasons, and the number of the others."""
    more = f" and {len(records) - NAMED} more" if len(records) > NAMED else ""
    return "; ".join(f"{position}: {reason}" for position, reason in records[:NAMED]) + more
