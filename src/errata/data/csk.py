"""PEP3k and 20Q: which everyday statements are plausible. A statement and a colon are answered by True or False.

Gupta et al. 2023, MEMIT_CSK (https://arxiv.org/abs/2305.14956, anshitag/memit_csk: data/, dsets/csk.py,
memit_csk_experiment/prepare_editing_data.py, py/eval_utils_csk.py).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from errata.data.fields import Record, case_id, choice, get, make_edit, optional_text, text, texts
from errata.data.formats import Format, MakeCase
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Kind, Probe

TOKENS = ("subject", "verb", "object")  # where an edit may be located
LABELS: Mapping[object, str] = {0: "False", 1: "True"}
PROBES: Mapping[str, Kind] = {
    "affected_paraphrase": "paraphrase",
    "affected_neighborhood_subject": "logical",
    "affected_neighborhood_verb": "logical",
    "affected_neighborhood_object": "logical",
    "affected_reasoning": "logical",
    "unaffected_neighborhood_subject": "neighborhood",
    "unaffected_neighborhood_object": "neighborhood",
}
ANNOTATIONS = "predicted_label prompt_polarity_grounded gpt2-xl_predicted_wrong gpt2-l_predicted_wrong"


def reader(path: Path | None, *, token: str = "subject") -> MakeCase:
    """Cases of labelled statements with their probes; ``token`` is where an edit is located."""
    choice("token", token, TOKENS)
    return lambda record, id: _probes_case(record, id, token)


def request_reader(path: Path | None, *, token: str = "subject") -> MakeCase:
    """Cases of the edit requests, which have no probes; ``token`` is where an edit is located."""
    choice("token", token, TOKENS)
    return lambda record, id: _request_case(record, id, token)


def _request_case(record: Record, id: str, token: str) -> Case:
    rewrite = "requested_rewrite"
    new, true = text(record, f"{rewrite}.target_new.str"), text(record, f"{rewrite}.target_true.str")
    edit = make_edit(text(record, f"{rewrite}.prompt"), optional_text(record, f"{rewrite}.{token}"), new, true)
    return Case(case_id(record, "case_id", "csk", id), (edit,))


def _probes_case(record: Record, id: str, token: str) -> Case:
    label = get(record, "label")
    new = LABELS.get(label, "") if type(label) is int else text(record, "label").strip()
    if new not in LABELS.values():
        raise BadInput(f"a label is 0, 1, True or False, found {shown(label)}")
    edit = make_edit(text(record, "prompt") + ":", optional_text(record, token), new, _opposite(new))
    return Case(case_id(record, "id", "csk", id), (edit,), tuple(_probes(record, new)))


def _probes(record: Record, new: str) -> Iterator[Probe]:
    """Affected statements share the edit's label, and reasons are true; unaffected ones have no label of their own."""
    for key, kind in PROBES.items():
        label = "True" if key == "affected_reasoning" else new
        for statement in texts(record, key):
            answer = {} if kind == "neighborhood" else {"answers": (label,), "rival": _opposite(label)}
            yield Probe(kind, statement + ":", label=key, **answer)


def _opposite(label: str) -> str:
    return "False" if label == "True" else "True"


CSK = Format("requested_rewrite.verb requested_rewrite.target_new.str", request_reader, "case_id")
CSK_PROBES = Format("prompt label", reader, f"id subject verb object neg {ANNOTATIONS} {' '.join(PROBES)}")
