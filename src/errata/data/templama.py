"""TempLAMA: facts of a year, with a gap for the object. Edits state what was true then; no subject is named.

Dhingra et al. 2022 (https://arxiv.org/abs/2106.15110, google-research/language: templama/).
"""

from errata.data.fields import Excluded, Record, as_object, case_id, distinct, make_edit, optional_text, text
from errata.data.formats import Format
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Probe

GAP = "_X_"
END = " .?!"  # behind the object


def _case(record: Record, id: str) -> Case:
    """The query up to its gap, behind "In 2010,", is answered by the first name; any of several is right."""
    before, gap, behind = text(record, "query").partition(GAP)
    if not gap:
        raise BadInput(f"query holds no {GAP}: {shown(before)}")
    if behind.strip(END) or not before.strip():
        raise Excluded("its query does not end with the object")
    answers = record.get("answer")
    items = answers if isinstance(answers, list) else [answers]
    names = distinct(optional_text(as_object(item, "each answer"), "name") or "" for item in items)
    if not names:
        raise BadInput("answer holds no name; the first is the target")
    edit = make_edit(f"In {text(record, 'date')}, {before.strip()}", None, names[0])
    probes = (Probe("question", edit.prompt, names),) if len(names) > 1 else ()
    return Case(case_id(record, "id", "templama", id), (edit,), probes)


TEMPLAMA = Format("query answer date relation", lambda path: _case, "id most_frequent_answer most_recent_answer")
