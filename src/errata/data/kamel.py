"""KAMEL: facts of Wikidata whose relations have several objects, as questions. Edits state what is true.

Kalo and Fichtel 2022 (https://www.akbc.ws/2022/assets/pdfs/15_kamel_knowledge_analysis_with_.pdf, JanKalo/KAMEL:
data/KAMEL/P103/test.jsonl, question-templates.csv).
"""

import re
from pathlib import Path

from errata.data.fields import Excluded, Record, as_list, distinct, make_edit, names, text
from errata.data.formats import Format, MakeCase
from errata.errors import BadInput
from errata.types import Case, Probe

TEMPLATES = "question-templates.csv"
RELATION = re.compile(r"P\d+")


def reader(path: Path | None, *, templates: str = "") -> MakeCase:
    """Cases of a relation's facts: its question is answered by the first object, and any of them is right.

    The relation is told by the name of the file, or of its folder. Questions are those of ``templates``, or of
    ``question-templates.csv`` beside the file or in a folder above. Raises :class:`BadInput` where there is none.
    """
    above = path.absolute().parents if path is not None else ()
    usual = (folder / TEMPLATES for folder in above)
    source = Path(templates) if templates else next((file for file in usual if file.is_file()), None)
    if source is None or not source.is_file():
        raise BadInput(f"no questions are found for {path}; name KAMEL's {TEMPLATES} with templates=PATH")
    named = (RELATION.search(name) for name in ((path.stem, path.absolute().parent.name) if path is not None else ()))
    relation = next((found.group() for found in named if found), "")
    lines = (line.partition(",") for line in source.read_text(encoding="utf-8", errors="replace").splitlines())
    question = next((question.strip() for name, _, question in lines if name.strip() == relation), None)

    def case(record: Record, id: str) -> Case:
        if question is None or "[S]" not in question:
            raise Excluded(f"{source.name} holds no question about the relation {relation or 'of the file'}")
        subject, objects = text(record, "sub_label"), as_list(record.get("obj_label"), "obj_label")
        named = [names(item, "chosen", "alternative", "each of obj_label") for item in objects]
        answers = distinct(name for item in named for name in item)
        if not answers:
            raise BadInput("obj_label is empty; its first name is the target")
        edit = make_edit(question.replace("[S]", subject), subject, answers[0])
        return Case(id, (edit,), (Probe("question", edit.prompt, answers),) if len(answers) > 1 else ())

    return case


KAMEL = Format("sub_label obj_label.0 index", reader, "obj_uri")
