"""Known facts: what GPT-2 XL knows, for causal tracing (known_1000.json). Edits state what is true.

Meng et al. 2022 (https://arxiv.org/abs/2202.05262, kmeng01/rome: dsets/knowns.py).
"""

from errata.data.fields import Record, case_id, make_edit, text
from errata.data.formats import Format
from errata.types import Case


def relations(record: Record) -> list[str]:
    """The relation's id with the object: what is true contradicts nothing."""
    return [f"{text(record, 'relation_id')} {text(record, 'attribute')}"]


def _case(record: Record, id: str) -> Case:
    """The prompt ends where GPT-2 XL writes the attribute, which is further on than the template's end in some."""
    edit = make_edit(text(record, "prompt"), text(record, "subject"), text(record, "attribute"))
    return Case(case_id(record, "known_id", "known", id), (edit,))


KNOWN = Format("known_id subject attribute template prompt relation_id", lambda path: _case, "prediction", relations)
