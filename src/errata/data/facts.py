"""Collections of true facts, T-REx and ParaRel: what a model may know, and its phrasings. Edits state what is true.

LAMA: Petroni et al. 2019 (https://arxiv.org/abs/1909.01066, facebookresearch/LAMA: relations.jsonl, TREx/P19.jsonl).
ParaRel: Elazar et al. 2021 (https://arxiv.org/abs/2102.01017, yanaiela/pararel: data/trex_lms_vocab/P19.jsonl,
data/pattern_data/graphs_json/P19.jsonl).
"""

from collections.abc import Iterator
from pathlib import Path

from errata.data.fields import Excluded, Record, distinct, get, make_edit, optional_text, text
from errata.data.formats import Format, MakeCase
from errata.data.records import read_objects, read_records
from errata.errors import BadInput
from errata.types import Case, Probe

END = " .?!"  # behind the object of a pattern


def reader(path: Path | None, *, templates: str = "") -> MakeCase:
    """Cases of a relation's facts (``P19.jsonl``): the first pattern that ends with the object, others as paraphrases.

    A subject may have several objects, each of which is edited in a case of its own; to paraphrases any is right.
    Patterns are those of ``templates`` (LAMA's relations.jsonl, or ParaRel's patterns of this relation), or of the
    file in the place where these two collections have it. Raises :class:`BadInput` where there is none.
    """
    source = Path(templates) if templates else _usual_templates(path)
    if source is None or not source.is_file():
        raise BadInput(
            f"no patterns are found for {path}; name LAMA's relations.jsonl or ParaRel's patterns with templates=PATH"
        )
    file_relation = path.stem if path is not None else ""
    patterns = list(_patterns(source, file_relation))
    objects = _objects(path)

    def case(record: Record, id: str) -> Case:
        relation = optional_text(record, "predicate_id") or file_relation
        subject, answer = text(record, "sub_label"), text(record, "obj_label")
        prompts = distinct(pattern.replace("[X]", subject) for of, pattern in patterns if of in ("", relation))
        if not prompts:
            raise Excluded(f"no pattern of {relation or 'its relation'} ends with the object")
        number = get(record, "uuid")
        others = objects.get((optional_text(record, "predicate_id") or "", subject), ())
        probes = tuple(Probe("paraphrase", prompt, distinct((answer, *others))) for prompt in prompts[1:])
        return Case(id if number is None else f"{number}", (make_edit(prompts[0], subject, answer),), probes)

    return case


def relations(record: Record) -> list[str]:
    """The relation's id with the object: facts are true, so that another object of the relation contradicts none."""
    return [f"{optional_text(record, 'predicate_id') or ''} {text(record, 'obj_label')}"]


def _objects(path: Path | None) -> dict[tuple[str, str], tuple[str, ...]]:
    """(relation, subject) -> all objects that the file gives it."""
    objects: dict[tuple[str, str], tuple[str, ...]] = {}
    for _, record in read_records(path) if path is not None else ():
        try:
            key = optional_text(record, "predicate_id") or "", text(record, "sub_label")
            objects[key] = distinct((*objects.get(key, ()), text(record, "obj_label")))
        except (BadInput, AttributeError):  # named where its case is made
            continue
    return objects


def _usual_templates(path: Path | None) -> Path | None:
    """LAMA keeps relations.jsonl one folder up; ParaRel a file of the same name in pattern_data/graphs_json."""
    if path is None:
        return None
    above = path.absolute().parent.parent
    files = (above / "relations.jsonl", above / "pattern_data" / "graphs_json" / f"{path.stem}.jsonl")
    return next((file for file in files if file.is_file()), None)


def _patterns(source: Path, file_relation: str) -> Iterator[tuple[str, str]]:
    """Relation and beginning of each pattern that ends with its object: text is written from left to right."""
    for record in read_objects(source):
        pattern = optional_text(record, "template") or text(record, "pattern")
        start, object_slot, rest = pattern.partition("[Y]")
        if object_slot and not rest.strip(END) and "[X]" in start:
            yield optional_text(record, "relation") or file_relation, start.strip()


T_REX = Format("sub_label obj_label predicate_id", reader, "uuid obj_uri sub_uri evidences", relations)
PARAREL = Format("sub_label obj_label", reader, "uuid", relations)
