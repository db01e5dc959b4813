"""ConflictEdit and RoundEdit: edits that contradict each other by a rule, or lead back to where they began.

Li et al. 2024 (https://arxiv.org/abs/2310.02129, zjunlp/PitfallsKnowledgeEditing: data/, dataset/, experiments/). The
phrasings of each relation, ``conflict_prompts.json`` and ``round_prompts.json`` beside the file, become paraphrases.
The paper's conflict score of an edit is the success of the later edit over what the earlier one stated (ROME's ES).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from errata.data.fields import (
    Record,
    as_list,
    as_object,
    asked_once,
    distinct,
    get,
    make_edit,
    objects,
    optional_text,
    text,
    texts,
)
from errata.data.formats import Format, MakeCase
from errata.data.records import read_objects
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Edit, Probe

Phrasings = Mapping[str, tuple[str, ...]]  # relation's id -> prompts with {}


def conflict_reader(path: Path | None) -> MakeCase:
    """Cases of ConflictEdit: two edits together; the later one contradicts what the first implies by a rule."""
    phrasings = read_phrasings(path, "conflict_prompts.json")

    def case(record: Record, id: str) -> Case:
        edits = objects(record, "edits")
        made = tuple(map(_edit, edits))
        probes = [probe for part, edit in zip(edits, made, strict=True) for probe in _probes(part, edit, phrasings)]
        triples = objects(record, "triples")
        for number in as_list(get(record, "prerequisites") or [], "prerequisites"):
            if not isinstance(number, int) or not 0 <= number < len(triples):
                raise BadInput(f"a prerequisite is the number of a triple, found {shown(number)}")
            tied = triples[number]
            prompt = text(tied, "relation.prompt").replace("{}", text(tied, "subject.label"))
            probes.append(Probe("same_subject", prompt, (text(tied, "object.label"),), label="tied fact"))
        return Case(id, made, asked_once(made, probes))

    return case


def conflict_parts(record: Record) -> list[Record]:
    """The record, or each of its edits where they have one prompt (coverage): those are made one after the other."""
    edits = objects(record, "edits")
    if len({(text(edit, "relation.prompt"), text(edit, "subject.label")) for edit in edits}) == len(edits):
        return [record]
    return [dict(record) | {"edits": [edit]} for edit in edits]


def round_reader(path: Path | None) -> MakeCase:
    """Cases of RoundEdit: to another object, and back; behind the way back every true object is right."""
    phrasings = read_phrasings(path, "round_prompts.json")

    def case(record: Record, id: str) -> Case:
        part = as_object(record["edit"], "edit")
        others = tuple(text(true, "label") for true in objects(record, "true_objects"))
        edit = _edit(part)
        return Case(id, (edit,), asked_once((edit,), _probes(part, edit, phrasings, others)))

    return case


def round_parts(record: Record) -> list[Record]:
    """The edit away from a true object, without the other ones, and the edit back."""
    edit = as_object(record.get("edit"), "edit")
    back = edit | {"object": edit.get("new_object"), "new_object": edit.get("object")}
    return [{"edit": edit}, dict(record) | {"edit": back}]


def read_phrasings(path: Path | None, name: str) -> Phrasings:
    """The prompts of each relation in the file of that name beside a data set; empty where there is none."""
    file = path.with_name(name) if path is not None else None
    if file is None or not file.is_file():
        return {}
    phrasings: dict[str, tuple[str, ...]] = {}
    for record in read_objects(file):
        phrasings |= {relation: texts(record, relation) for relation in record}
    return phrasings


def _edit(part: Record) -> Edit:
    prompt, subject, new = (text(part, key) for key in ("relation.prompt", "subject.label", "new_object.label"))
    return make_edit(prompt, subject, new, optional_text(part, "object.label"))


def _probes(part: Record, edit: Edit, phrasings: Phrasings, others: tuple[str, ...] = ()) -> Iterator[Probe]:
    """The edit's question, and its relation's other phrasings; ``others`` are right beside the edit's target."""
    answers, subject = distinct((edit.target_new, *others)), text(part, "subject.label")
    if query := optional_text(part, "relation.query"):
        yield Probe("question", query.replace("{}", subject), answers, rival=edit.target_true)
    for prompt in phrasings.get(optional_text(part, "relation.id") or "", ()):
        yield Probe("paraphrase", prompt.replace("{}", subject).strip(), answers, rival=edit.target_true)


CONFLICTEDIT = Format(
    "triples edits.relation.prompt edits.new_object.label",
    conflict_reader,
    "rule prerequisites type",
    parts=conflict_parts,
)
ROUNDEDIT = Format("edit.relation.prompt edit.new_object.label true_objects", round_reader, "type", parts=round_parts)
