"""ELKEN: events in a sentence, the facts that they change, and which way things tend to go behind them.

Peng et al. 2024 (https://arxiv.org/abs/2402.13093, THU-KEG/Event-Level-Knowledge-Editing: data/, data_processor/).
"""

from collections.abc import Iterator, Mapping

from errata.data.fields import Record, asked_once, names, objects, optional_text, statement_edit, text
from errata.data.formats import Format
from errata.types import Case, Kind, Probe

UNKNOWN = "unknown"
QUESTIONS: Mapping[str, tuple[Kind, str]] = {
    "fact.qas": ("question", "fact"),
    "fact.local_qas": ("unrelated", "fact"),
    "tendency.qas": ("question", "tendency"),
    "tendency.local_qas": ("unrelated", "tendency"),
}


def _case(record: Record, id: str) -> Case:
    edit = statement_edit(text(record, "event"))
    return Case(id, (edit,), asked_once((edit,), _probes(record)))


def _probes(record: Record) -> Iterator[Probe]:
    """Questions as ELKEN asks them, tendencies with their candidates.

    Labels are its two kinds of them, and "unknown" where an event leaves the answer open, which is to be answered so.
    """
    for path, (kind, label) in QUESTIONS.items():
        for item in objects(record, path):
            candidates = optional_text(item, "candidate")
            question = text(item, "question") + (f"\n{candidates}" if candidates else "")
            answers = names(item.get("answer"), "name", "alias", "answer")
            of = UNKNOWN if answers == (UNKNOWN,) else label
            yield Probe(kind, f"Question: {question}\nAnswer:", answers, label=of)


ELKEN = Format(
    "event event_type fact tendency", lambda path: _case, "id subject", relations=lambda record: [text(record, "event")]
)
