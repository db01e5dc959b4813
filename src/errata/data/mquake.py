"""MQuAKE: chains of facts, some of them edited, and a question about their end.

Zhong et al. 2023 (https://arxiv.org/abs/2305.14795, princeton-nlp/MQuAKE: CF, CF-3k-v2 and T); the remastered sets of
Zhong et al. 2025 (henryzhongsc/MQuAKE-Remastered: eval/mquake_remastered/mquake_dataset.py) write ``target_new_str``.
"""

from collections.abc import Iterator, Sequence

from errata.data.fields import Record, case_id, distinct, get, make_edit, objects, optional_text, text, texts
from errata.data.formats import Format
from errata.errors import BadInput
from errata.types import Case, Edit, Kind, Probe

REWRITES = "requested_rewrite"
HOPS: tuple[tuple[Kind, str], ...] = (("new_single_hop", "new_single_hops"), ("single_hop", "single_hops"))
OTHER_KEYS = "case_id answer answer_alias answer_extended new_answer_alias single_hops new_single_hops orig"
REMASTERED_KEYS = "split 6334_split edit_triples orig_triples orig_triples_labeled new_triples new_triples_labeled"


def relations(record: Record) -> list[str]:
    """The relation's id of each of the record's rewrites that has one."""
    ids = [optional_text(rewrite, "relation_id") for rewrite in objects(record, REWRITES)]
    return [relation for relation in ids if relation]


def _case(record: Record, id: str) -> Case:
    rewrites = objects(record, REWRITES)
    if not rewrites:
        raise BadInput(f"{REWRITES} is missing or empty; a case has one edit at least")
    edits = tuple(_edit(rewrite) for rewrite in rewrites)
    return Case(case_id(record, "case_id", "mquake", id), edits, tuple(chain_probes(record, rewrites)))


def chain_probes(record: Record, rewrites: Sequence[Record]) -> Iterator[Probe]:
    """The multi-hop questions, labelled with the number of facts of their chain, and each of those facts."""
    answers = distinct((text(record, "new_answer"), *texts(record, "new_answer_alias")))
    number = len(objects(record, "new_single_hops"))
    label = f"{number} hops" if number > 1 else ""
    for question in texts(record, "questions"):
        yield Probe("multi_hop", question, answers, group="questions", rule="any", label=label)
    edited = {text(rewrite, "question") for rewrite in rewrites if optional_text(rewrite, "question")}
    for kind, chain in HOPS:
        yield from _hops(record, chain, kind, edited)


def _edit(rewrite: Record) -> Edit:
    new, true = (
        text(rewrite, f"{key}_str") if get(rewrite, f"{key}_str") is not None else text(rewrite, f"{key}.str")
        for key in ("target_new", "target_true")
    )
    return make_edit(text(rewrite, "prompt"), text(rewrite, "subject"), new, true)


def _hops(record: Record, chain: str, kind: Kind, edited: set[str]) -> Iterator[Probe]:
    """A probe for each fact of the chain: an edited one as a cloze, another one as a question, as MQuAKE asks them."""
    for hop in objects(record, chain):
        answers = distinct((text(hop, "answer"), *texts(hop, "answer_alias")))
        question, cloze = optional_text(hop, "question"), optional_text(hop, "cloze")
        prompt = (cloze or question) if question in edited else (question or cloze)
        if prompt is None:
            raise BadInput(f"each of {chain} has a question or a cloze; found {', '.join(hop) or 'nothing'}")
        yield Probe(kind, prompt, answers, label=chain)


MQUAKE = Format(
    "requested_rewrite.subject questions new_answer", lambda path: _case, f"{OTHER_KEYS} {REMASTERED_KEYS}", relations
)
