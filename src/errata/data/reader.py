"""Data sets as cases. One file for each format; which one a file has is told by the keys of its records.

loaded = errata.data.reader.read("zsre.json", target="answers")
loaded.cases, loaded.skipped        # what can be used, and what cannot, with the reason
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any

from errata.answers import normalise
from errata.data.fields import LeftOut, Record, as_object
from errata.data.formats import FORMATS
from errata.data.hub import hub_records, is_hub_id
from errata.data.records import Found, read_records
from errata.errors import BadInput, unknown
from errata.types import Case

log = logging.getLogger(__name__)


TOLERATED = 0.1  # of a file's records may be unusable; with more of them it is not the file that it seems


NAMED = 3  # unusable records that a message names; all of them are in ``Loaded``


@dataclass(frozen=True)
class Loaded:
    """What became of a data set's records.

    ``skipped`` are places and reasons of records that cannot be used, ``left_out`` of sound ones that a rule leaves
    out, edits that contradict an earlier record's among them; ``unread`` counts records by keys that nothing reads.
    """

    name: str
    format: str
    cases: list[Case]
    skipped: list[tuple[str, str]]
    left_out: list[tuple[str, str]]
    unread: Mapping[str, int]

    @property
    def records(self) -> int:
        return len(self.cases) + len(self.skipped) + len(self.left_out)

    def __str__(self) -> str:
        said = [f"{self.name} ({self.format}): {len(self.cases)} of {self.records} records are used"]
        for what, its in (("skipped", self.skipped), ("left out", self.left_out)):
            if its:
                said.append(f"{len(its)} {what}: {_some(its)}")
        if self.unread:
            said.append("unknown keys, not read: " + ", ".join(f"{key} ({n})" for key, n in self.unread.items()))
        return "; ".join(said)


def cases(
    name_or_path: str | Path, limit: int | None = None, seed: int = 0, format: str | None = None, **options: Any
) -> list[Case]:
    """The cases of the bundled world (``"world"``), of a file (JSON lines, or one JSON list), or of a hub id.

    Cases of the world are drawn by ``seed``; others come in their order with seed 0, shuffled with another.
    ``limit`` takes the first of them. ``format`` and ``options`` are those of :func:`read`; what was skipped or left
    out is logged. Raises :class:`BadInput`, which names a broken line by its number.
    """
    if str(name_or_path) == "world":
        from errata.world.cases import cases as of_the_world
        from errata.world.facts import world

        if format is not None or options:
            raise BadInput(
                f"the world is no file, so {', '.join(options) or 'a format'} means nothing there; leave it out"
            )
        return of_the_world(world(), limit, seed)
    loaded = read(name_or_path, format, **options)
    if loaded.skipped or loaded.left_out or loaded.unread:
        log.warning("%s", loaded)
    found = list(loaded.cases)
    if seed:
        random.Random(seed).shuffle(found)
    if limit is not None and not 1 <= limit <= len(found):
        why = f" ({loaded.records - len(found)} of its records are not used)" if loaded.records > len(found) else ""
        raise BadInput(
            f"{limit} cases were asked for; {name_or_path} holds {len(found)}{why}: give a limit from 1 to {len(found)}"
        )
    return found[:limit]


def read(
    name_or_path: str | Path,
    format: str | None = None,
    *,
    strict: bool | str = False,
    conflicts: bool | str = False,
    **options: Any,
) -> Loaded:
    """Every case of a file or a hub id, and what became of the other records.

    The format is told by the first records' keys unless ``format`` names it; ``options`` are the format's own (zsRE:
    ``target``), and ``split`` and ``config`` of a hub id. Up to a tenth of the records may be unusable (none with
    ``strict``). An edit that gives a subject and relation of an earlier record another target is left out, since both
    cannot hold in one model; ``conflicts`` keeps it. Raises :class:`BadInput`.
    """
    if format is not None and format not in FORMATS:
        raise unknown("format", format, list(FORMATS))
    strict, conflicts = _flag("strict", strict), _flag("conflicts", conflicts)
    name, path = str(name_or_path), Path(name_or_path)
    if is_hub_id(name) and not path.exists():
        path, place = None, {key: options.pop(key) for key in ("split", "config") if key in options}
        source = hub_records(name, **place)
    else:
        source = read_records(path)
    format, source = (format, source) if format else _told(name, source)
    made = _Cases(format, path, options, conflicts)
    for place, record in source:
        made.add(place, record)
    loaded = Loaded(name, format, made.cases, made.skipped, made.left_out, made.unread)
    if not loaded.records:
        raise BadInput(f"{name} holds no records; give a file with one JSON object on each line, or a list of them")
    bad = len(loaded.skipped)
    if bad > (0 if strict else TOLERATED * loaded.records):
        rule = "none may be (strict)" if strict else f"up to {TOLERATED:.0%} may be"
        raise BadInput(
            f"{name} ({format}): {bad} of {loaded.records} records cannot be used, {rule}: {_some(loaded.skipped)}; "
            "mend them, or name another format"
        )
    if not loaded.cases:
        raise BadInput(f"{loaded}; nothing is left to use")
    return loaded


class _Cases:
    """Makes cases of records, one after the other, and keeps account of the others."""

    def __init__(self, format: str, path: Path | None, options: Mapping[str, Any], conflicts: bool) -> None:
        self.format, self.known, self.conflicts = format, FORMATS[format], conflicts
        module, _, function = self.known.reader.partition(":")
        home = import_module(f"errata.data.{module}")
        self.relations: Callable[[Record], list[str]] | None = getattr(home, "relations", None)
        self.make = _with_options(format, getattr(home, function), path, options)
        self.cases: list[Case] = []
        self.skipped: list[tuple[str, str]] = []
        self.left_out: list[tuple[str, str]] = []
        self.unread: dict[str, int] = {}
        self.ids: set[str] = set()
        self.targets: dict[tuple[str, str], tuple[str, str]] = {}  # (subject, relation) -> what was first, and where

    def add(self, place: str, record: Any) -> None:
        """One record more. Whatever is wrong with it is its own affair."""
        try:
            if isinstance(record, BadInput):
                raise record
            found = as_object(record, "a record" if self.format != "errata" else "a case")
            case = self.make(found, f"{self.format}-{len(self.cases) + len(self.skipped) + len(self.left_out) + 1}")
            if not self.conflicts:
                self._check(case, found, place)
        except BadInput as error:
            self.skipped.append((place, str(error)))
        except LeftOut as rule:
            self.left_out.append((place, str(rule)))
        else:
            for key in self.known.unread(found):
                self.unread[key] = self.unread.get(key, 0) + 1
            self.cases.append(self._apart(case))

    def _apart(self, case: Case) -> Case:
        """The case, with a number behind an id that was there before."""
        id, number = case.id, 2
        while id in self.ids:
            id, number = f"{case.id}-{number}", number + 1
        self.ids.add(id)
        return case if id == case.id else Case(id, case.edits, case.probes)

    def _check(self, case: Case, record: Record, place: str) -> None:
        """Raises :class:`LeftOut` where an earlier record wants another target of the same subject and relation."""
        told = self.relations(record) if self.relations else []
        if len(told) != len(case.edits):
            told = ["{}".join(edit.prompt.rsplit(edit.subject, 1)).casefold() for edit in case.edits]
        wanted = {
            (edit.subject.casefold(), relation): (edit.target_new, place)
            for edit, relation in zip(case.edits, told, strict=True)
        }
        for key, (target, _) in wanted.items():
            first, where = self.targets.get(key, (target, place))
            if normalise(first) != normalise(target):
                raise LeftOut(f"it wants {target!r} where {where} wants {first!r}; conflicts=true keeps both")
        for key, value in wanted.items():
            self.targets.setdefault(key, value)


def _told(name: str, source: Iterable[Found]) -> tuple[str, Iterator[Found]]:
    """The format that the first sound record has, and all records again."""
    seen: list[Found] = []
    rest = iter(source)
    for place, record in rest:
        seen.append((place, record))
        for format, its in FORMATS.items():
            if its.fits(record):
                return format, chain(seen, rest)
        if len(seen) > 100:
            break
    if not seen:
        raise BadInput(f"{name} is empty; give a file with one JSON object on each line, or a list of them")
    place, record = next(((p, r) for p, r in seen if isinstance(r, dict)), seen[0])
    if isinstance(record, BadInput):
        raise BadInput(f"{name}, {place}: {record}")
    found = as_object(record, f"{name}, {place}: a record")
    near, lacking = min(((format, its.lacking(found)) for format, its in FORMATS.items()), key=lambda its: len(its[1]))
    hint = (
        f"nearest is {near}, which needs {', '.join(lacking)} too; "
        if len(lacking) < len(FORMATS[near].keys.split())
        else ""
    )
    keys = ", ".join(found) or "(none)"
    raise BadInput(f"{name}, {place}: no format is known by the keys {keys}; {hint}known: {', '.join(sorted(FORMATS))}")


def _with_options(
    format: str, reader: Callable[..., Callable[[Record, str], Case]], path: Path | None, options: Mapping[str, Any]
) -> Callable[[Record, str], Case]:
    """The format's reader of this file, after its options have been checked."""
    known = [name for name, its in signature(reader).parameters.items() if its.kind is its.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            if not known:
                raise BadInput(f"the format {format!r} has no option {option!r}, nor any other; leave it out")
            raise unknown(f"option of the format {format!r}", option, known)
        if not isinstance(value, str | bool):
            raise BadInput(f"{option} is a text, found {value!r}")
    return reader(path, **options)


def _flag(name: str, value: bool | str) -> bool:
    flags = {True: True, False: False, "true": True, "false": False}
    if value not in flags:
        raise BadInput(f"{name} is true or false, found {value!r}")
    return flags[value]


def _some(of: list[tuple[str, str]]) -> str:
    """The first of the places with their reasons, and how many more there are."""
    more = f" and {len(of) - NAMED} more" if len(of) > NAMED else ""
    return "; ".join(f"{place}: {reason}" for place, reason in of[:NAMED]) + more
