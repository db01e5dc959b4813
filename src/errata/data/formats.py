"""The data formats by name. Adding one touches its file and one line here; other packages add theirs by entry points.

[project.entry-points."errata.formats"]
my-format = "my_package.my_format:MY_FORMAT"        # a Format
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from errata.data.fields import Record
from errata.errors import BadInput, unknown
from errata.printable import listed
from errata.types import Case

log = logging.getLogger(__name__)

GROUP = "errata.formats"
MakeCase = Callable[[Record, str], Case]  # of a record, and the id of the case where the record has none

# Of several formats whose keys a record has, the one is taken that leaves fewest of its keys unread.
FORMATS: Mapping[str, str] = {
    "errata": "errata.data.own:ERRATA",
    "akew": "errata.data.unke:AKEW",
    "csk": "errata.data.csk:CSK",
    "counterfact": "errata.data.counterfact:COUNTERFACT",
    "counterfact+": "errata.data.counterfact:COUNTERFACT_PLUS",
    "mquake": "errata.data.mquake:MQUAKE",
    "rippleedits": "errata.data.rippleedits:RIPPLEEDITS",
    "peak": "errata.data.peak:PEAK",
    "conflictedit": "errata.data.conflictedit:CONFLICTEDIT",
    "roundedit": "errata.data.conflictedit:ROUNDEDIT",
    "zsre": "errata.data.zsre:ZSRE",
    "zsre-malmen": "errata.data.zsre:ZSRE_MALMEN",
    "fever-malmen": "errata.data.zsre:FEVER_MALMEN",
    "kilt": "errata.data.zsre:KILT",
    "mzsre": "errata.data.mzsre:MZSRE",
    "wikibigedit": "errata.data.wikibigedit:WIKIBIGEDIT",
    "qaedit": "errata.data.qaedit:QAEDIT",
    "hallueditbench": "errata.data.hallueditbench:HALLUEDITBENCH",
    "hallucination": "errata.data.hallucination:HALLUCINATION",
    "wikibio": "errata.data.knowedit:WIKIBIO",
    "knowedit": "errata.data.knowedit:KNOWEDIT",
    "flat": "errata.data.counterfact:FLAT",
    "csk-probes": "errata.data.csk:CSK_PROBES",
    "unke": "errata.data.unke:UNKE",
    "editeverything": "errata.data.unke:EDITEVERYTHING",
    "elken": "errata.data.elken:ELKEN",
    "dune": "errata.data.dune:DUNE",
    "vitaminc": "errata.data.vitaminc:VITAMINC",
    "convsent": "errata.data.convsent:CONVSENT",
    "personality": "errata.data.convsent:PERSONALITY",
    "safeedit": "errata.data.safeedit:SAFEEDIT",
    "sanitation": "errata.data.sanitation:SANITATION",
    "t-rex": "errata.data.facts:T_REX",
    "pararel": "errata.data.facts:PARAREL",
    "kn-bags": "errata.data.bags:KN_BAGS",
    "kamel": "errata.data.kamel:KAMEL",
    "known-facts": "errata.data.known:KNOWN",
    "lre": "errata.data.lre:LRE",
    "templama": "errata.data.templama:TEMPLAMA",
    "edits": "errata.data.own:EDITS",
}


@dataclass(frozen=True)
class Format:
    """How records of a data set become cases. ``docs/data.md`` shows how to write one.

    ``keys`` are those that every record has (``a.b`` inside ``a``, ``a.0`` the first of a list; with commas where names
    hold spaces): a format is recognised by them. A record that is a list stands under the key ``items``. ``reader``
    takes the file's path (None for a data set of the hub) and, keyword-only, the format's options. It returns the
    function that makes the case of a record; that function raises :class:`BadInput` for a record that is wrong, and
    ``Excluded`` for one that a rule leaves out. ``other_keys`` may be missing from a record (``output_*`` for all that
    begin so); keys in neither are reported. ``relations`` gives the relation of each of a record's edits (without it,
    the prompt without its subject is taken): two records that give a subject and relation different targets are in
    conflict. ``parts`` gives the records that one of the file holds (a relation with its facts); without it there is
    one. Where it is ``strict``, a record with other keys does not fit.
    """

    keys: str
    reader: Callable[..., MakeCase]
    other_keys: str = ""
    relations: Callable[[Record], list[str]] | None = None
    parts: Callable[[Record], Iterable[Record]] | None = None
    strict: bool = False

    def fits(self, record: Any) -> bool:
        """Whether it is a JSON object that has all keys of the format."""
        return isinstance(record, dict) and not self.missing(record) and not (self.strict and self.unread(record))

    def missing(self, record: Record) -> list[str]:
        """The keys that every record of the format has, and this one has not."""
        return [key for key in _names(self.keys) if _value(record, key.split(".")) is None]

    def unread(self, record: Record) -> list[str]:
        """The record's keys that the format does not know."""
        known = {key.partition(".")[0] for key in _names(self.keys)} | set(_names(self.other_keys))
        some = [key for key in known if "*" in key]
        return [key for key in record if key not in known and not any(fnmatchcase(key, name) for name in some)]


def _names(keys: str) -> list[str]:
    """The keys in a text, with commas between them where one holds a space."""
    return [key.strip() for key in keys.split(",")] if "," in keys else keys.split()


def _value(value: Any, path: list[str]) -> Any:
    """The value under ``a.b`` or ``a.0``; of a list of objects, the first is looked into."""
    if not path:
        return value
    key, *rest = path
    if isinstance(value, list):
        items = cast("list[Any]", value)
        at = int(key) if key.isdigit() else 0
        return _value(items[at] if at < len(items) else None, rest if key.isdigit() else path)
    return _value(cast("Record", value).get(key), rest) if isinstance(value, dict) else None


def best_fit(record: Any) -> tuple[str, Format] | None:
    """Name and format of a record: of those whose keys it has, the one that leaves fewest of its keys unread.

    Of equal ones the first; a format of another package only where none of Errata's own fits.
    """
    for formats in (own_formats(), other_formats()):
        fitting = [(name, format) for name, format in formats if format.fits(record)]
        if fitting:
            return min(fitting, key=lambda named: len(named[1].unread(record)))
    return None


def nearest(record: Record) -> tuple[str, str] | None:
    """The format that shares most keys with a record that it does not fit, and why; None where none shares any."""
    shared: dict[str, tuple[int, list[str]]] = {}
    for name, format in all_formats():
        missing = format.missing(record)
        if present := len(_names(format.keys)) - len(missing):
            shared[name] = present, missing
    if not shared:
        return None
    name = max(shared, key=lambda name: (shared[name][0], -len(shared[name][1])))
    missing = shared[name][1]
    why = f"needs {', '.join(missing)} too" if missing else f"has no {listed(format_named(name).unread(record))}"
    return name, why


@cache
def installed() -> Mapping[str, EntryPoint]:
    """The entry points of other packages by name; one with a name of Errata's own is logged and ignored."""
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in FORMATS:
            package = entry.dist.name if entry.dist else "another package"
            log.warning(
                "the format %r of %s (%s) is ignored: Errata has a format of that name; it must be given another",
                entry.name, package, entry.value,
            )  # fmt: skip
        else:
            entries[entry.name] = entry
    return entries


@cache
def _load(entry: EntryPoint) -> Format | BadInput:
    """The format of another package; the error that says why it cannot be used, which is logged once."""
    name = f"the format {entry.name!r} ({entry.value})"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever another package's import raises
        loaded = BadInput(f"{name} cannot be imported: {type(error).__name__}: {error}; mend or remove its package")
    if not isinstance(loaded, Format | BadInput):
        loaded = BadInput(f"{name} is no errata.data.formats.Format, found {type(loaded).__name__}; mend its package")
    if isinstance(loaded, BadInput):
        log.warning("%s", loaded)
    return loaded


def format_named(name: str) -> Format:
    """The format of a name. Raises ``UnknownName`` with near matches, :class:`BadInput` for one that is broken."""
    others = installed()
    if name in FORMATS:
        return EntryPoint(name, FORMATS[name], GROUP).load()
    if name not in others:
        raise unknown("format", name, [*FORMATS, *others])
    loaded = _load(others[name])
    if isinstance(loaded, BadInput):
        raise BadInput(str(loaded))
    return loaded


def own_formats() -> Iterator[tuple[str, Format]]:
    """Errata's own formats with their names."""
    return ((name, format_named(name)) for name in FORMATS)


def other_formats() -> Iterator[tuple[str, Format]]:
    """The usable formats of other packages with their names; the packages are imported only now."""
    for name, entry in installed().items():
        if isinstance(loaded := _load(entry), Format):
            yield name, loaded


def all_formats() -> Iterator[tuple[str, Format]]:
    """Each usable format with its name, Errata's own first."""
    yield from own_formats()
    yield from other_formats()
