"""DUnE: edits in sentences (news, science, sums), and questions that they answer.

Akyürek et al. 2023 (https://arxiv.org/abs/2311.16087, feyzaakyurek/dune: dune/, dataset.py). The answers of its two
debiasing subsets are those of a biased model, so that they are left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from errata.data.fields import Excluded, Record, as_list, as_text, asked_once, make_edit, statement_edit
from errata.data.formats import Format, MakeCase
from errata.data.records import read_objects
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Edit, Probe

EQUALS = " = "

Question = tuple[str, str]  # and its answer


def reader(path: Path | None) -> MakeCase:
    """Cases of a subset: a sum is answered by its result, a sentence is continued by its second half.

    The questions of ``NAME_locality.json`` beside ``NAME.json`` are ``unrelated``, some for each edit.
    """
    local = _local_questions(path)
    number = 0

    def case(record: Record, id: str) -> Case:
        nonlocal number
        sentence, questions = as_text(record["edit"], "each of edits"), list(_questions(record))
        if not sentence.strip():
            raise Excluded("its edit is empty: the file holds questions that go with another one's edits")
        if EQUALS not in sentence and any(len(answer) > 1 for _, answer in questions):
            raise Excluded("its answers are no letters but those of a biased model, which no edit should give")
        unrelated = local[number % len(local)] if local else []
        number += 1
        edit = _edit(sentence)
        probes = [Probe("question", question, (answer,)) for question, answer in questions]
        probes += [Probe("unrelated", question, (answer,)) for question, answer in unrelated]
        return Case(id, (edit,), asked_once((edit,), probes))

    return case


def parts(record: Record) -> Iterator[Record]:
    """Each edit with its questions."""
    edits, inputs = (as_list(record.get(key), key) for key in ("edits", "test_inputs"))
    if len(edits) != len(inputs):
        raise BadInput(f"edits and test_inputs go in pairs; found {len(edits)} and {len(inputs)}")
    yield from ({"edit": edit, "questions": asked} for edit, asked in zip(edits, inputs, strict=True))


def _edit(sentence: str) -> Edit:
    before, equals, result = sentence.rpartition(EQUALS)
    return make_edit(f"{before} =", None, result) if equals else statement_edit(sentence)


def _questions(record: Record) -> Iterator[Question]:
    """Questions with their answers: a text (the answer is the sum's result), a pair, or a list of pairs."""
    asked = record["questions"]
    if isinstance(asked, str):
        yield asked, as_text(record["edit"], "each of edits").rpartition(EQUALS)[2]
        return
    pairs = as_list(asked, "test_inputs")
    for pair in [pairs] if pairs and isinstance(pairs[0], str) else pairs:
        if not isinstance(pair, list) or len(cast("list[Any]", pair)) != 2:
            raise BadInput(f"each of test_inputs is a question and its answer, found {shown(pair)}")
        question, answer = (as_text(part, "each of test_inputs") for part in cast("list[Any]", pair))
        if question.strip() and answer.strip():
            yield question.strip(), answer.strip()


def _local_questions(path: Path | None) -> list[list[Question]]:
    """The questions of the file beside a data set whose answers must stay; empty where there is none."""
    file = path.with_name(f"{path.stem}_locality.json") if path is not None else None
    if file is None or not file.is_file():
        return []
    try:
        return [list(_questions(part)) for record in read_objects(file) for part in parts(record)]
    except BadInput as error:
        raise BadInput(f"the questions beside {path}, {file.name}: {error}") from error


DUNE = Format("edits.0 test_inputs.0", reader, parts=parts)
