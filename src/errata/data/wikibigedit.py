"""WikiBigEdit as it is published: what changed in Wikidata between two dumps, as questions.

Thede et al. 2025 (https://arxiv.org/abs/2503.05683, lukasthede/WikiBigEdit; zjunlp/EasyEdit:
easyeditor/dataset/wikibigedit.py). Copies in the flat form of CounterFact are read by counterfact.py.
"""

from errata.data.fields import Record, make_edit, text, texts
from errata.data.formats import Format
from errata.types import Case, Probe


def _case(record: Record, id: str) -> Case:
    new = text(record, "ans")
    edit = make_edit(text(record, "update"), text(record, "subject"), new)
    probes = [
        *(Probe("paraphrase", prompt, (new,)) for prompt in texts(record, "rephrase")),
        *(Probe("paraphrase", prompt, (new,), label="personas") for prompt in texts(record, "personas")),
        *(Probe("multi_hop", prompt, texts(record, "mhop_ans"), label="mhop") for prompt in texts(record, "mhop")),
        *(Probe("neighborhood", prompt, texts(record, "loc_ans"), rival=new) for prompt in texts(record, "loc")),
    ]
    return Case(id, (edit,), tuple(probes))


WIKIBIGEDIT = Format("update ans subject", lambda path: _case, "tag rephrase personas mhop mhop_ans loc loc_ans")
