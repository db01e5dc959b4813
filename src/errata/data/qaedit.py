"""QAEdit: questions of question-answering benchmarks that models get wrong, and unrelated ones.

Yang et al. 2025, "The Mirage of Model Editing" (https://arxiv.org/abs/2502.11177;
WanliYoung/Revisit-Editing-Evaluation).
"""

from errata.data.fields import Record, case_id, make_edit, objects, optional_text, text, texts
from errata.data.formats import Format
from errata.types import Case, Probe


def _case(record: Record, id: str) -> Case:
    edit = make_edit(text(record, "prompt"), text(record, "subject"), text(record, "target"))
    source = optional_text(record, "source") or ""
    probes = [Probe("paraphrase", prompt, (edit.target_new,), label=source) for prompt in texts(record, "rephrase")]
    for item in objects(record, "locality"):
        probes.append(Probe("unrelated", text(item, "loc"), texts(item, "loc_ans")))
    return Case(case_id(record, "id", "qaedit", id), (edit,), tuple(probes))


QAEDIT = Format("prompt target subject locality", lambda path: _case, "id source rephrase")
