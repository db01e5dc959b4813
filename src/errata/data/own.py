"""Errata's own formats, read strictly: cases ``{"id", "edits": […], "probes": […]}``, and edits alone."""

from typing import Any, cast

from errata.data.fields import Record, as_list, as_object, as_text
from errata.data.formats import Format
from errata.errors import BadInput
from errata.printable import listed, shown
from errata.types import Case, Edit, Probe

OPTIONAL = ("answers", "group", "rule", "require", "rival", "references", "label")  # keys of a probe


def _case(record: Record, id: str) -> Case:
    fields = _checked(record, "a case", required=("id", "edits"), optional=("probes",))
    edits, probes = (as_list(fields.get(name, []), f"a case's {name}") for name in ("edits", "probes"))
    if isinstance(fields["id"], bool) or not isinstance(fields["id"], str | int):
        raise BadInput(f"a case's id is a text or a number, found {shown(fields['id'])}")
    return Case(str(fields["id"]), tuple(map(Edit.from_json, edits)), tuple(map(_probe, probes)))


def _probe(record: Any) -> Probe:
    fields = _checked(record, "a probe", required=("kind", "prompt"), optional=OPTIONAL)
    for name in ("answers", "references", "require"):
        fields[name] = as_list(fields.get(name, []), f"a probe's {name}")
    for name in ("prompt", "label"):
        as_text(fields.get(name, ""), f"a probe's {name}")
    for name in ("answers", "references"):
        for value in cast("list[Any]", fields[name]):
            as_text(value, f"each of a probe's {name}")
    fields["require"] = tuple(map(_probe, fields["require"]))
    return Probe(**fields)


def _checked(record: Any, what: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """A copy of the record, which has all required keys and none but the required and optional ones."""
    fields = dict(as_object(record, what))
    if missing := [name for name in required if name not in fields]:
        raise BadInput(f"{what} needs {', '.join(missing)}; found only {listed(fields)}")
    if extra := sorted(set(fields) - {*required, *optional}):
        raise BadInput(f"{what} has no {listed(extra)}; its keys are {', '.join((*required, *optional))}")
    return fields


def _edit_alone(record: Record, id: str) -> Case:
    edit = Edit.from_json(record)
    return Case(str(record.get("id") or id), (edit,))


ERRATA = Format("id edits", lambda path: _case, "probes")
EDITS = Format("prompt subject target_new", lambda path: _edit_alone, "target_true id at", strict=True)
