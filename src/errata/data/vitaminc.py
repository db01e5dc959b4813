"""VitaminC: a sentence of Wikipedia after a revision, held as true, and a claim that it supports or refutes.

Schuster et al. 2021 (https://arxiv.org/abs/2103.08541). As edits: Mitchell et al. 2022, SERAC
(https://arxiv.org/abs/2206.06520, eric-mitchell/serac: data_classes/vitc.py), which keeps real revisions whose evidence
has more than ten words. A claim is answered by its label, as FEVER's.
"""

from pathlib import Path

from errata.data.fields import Excluded, Record, case_id, optional_text, statement_edit, text
from errata.data.formats import Format, MakeCase
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Probe

LABELS = ("SUPPORTS", "REFUTES")
UNKNOWN = "NOT ENOUGH INFO"
WORDS = 10  # of the evidence, which has more


def reader(path: Path | None) -> MakeCase:
    """Cases whose edit is the evidence; the claim of the record before must stay, if it is about another page.

    So must a claim of which the evidence says nothing.
    """
    previous = ("", "")

    def case(record: Record, id: str) -> Case:
        nonlocal previous
        evidence, claim, page = text(record, "evidence"), text(record, "claim"), optional_text(record, "page") or ""
        label, (other_page, other_claim) = text(record, "label"), previous
        previous = page, claim
        if label not in (*LABELS, UNKNOWN):
            raise BadInput(f"a label is {', '.join(LABELS)} or {UNKNOWN}, found {shown(label)}")
        if optional_text(record, "revision_type") not in (None, "real"):
            raise Excluded("its revision is none of Wikipedia's (revision_type)")
        if len(evidence.split()) <= WORDS:
            raise Excluded(f"its evidence has {WORDS} words or fewer")
        edit = statement_edit(evidence, page)
        if label == UNKNOWN:
            probes = [Probe("unrelated", claim, label="claim")]
        else:
            (rival,) = set(LABELS) - {label}
            probes = [Probe("question", claim, (label,), rival=rival, label="claim")]
        if other_claim and other_page != page and other_claim != claim:
            probes.append(Probe("unrelated", other_claim, label="claim of another page"))
        return Case(case_id(record, "unique_id", "vitaminc", id), (edit,), tuple(probes))

    return case


VITAMINC = Format(
    "claim evidence label",
    reader,
    "unique_id case_id wiki_revision_id page revision_type FEVER_id big_bench_canary",
    lambda record: [text(record, "evidence")],
)
