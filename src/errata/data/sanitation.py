"""Sanitation, KnowEdit's sub-set: questions whose answers shall be forgotten ("I don't know."), and others that stay.

Ishibashi and Shimodaira 2023 (https://arxiv.org/abs/2309.11852); zjunlp/EasyEdit: easyeditor/dataset/sanitization.py,
examples/run_santinization_llama2.py. The edits stand in a training file, further questions in a test file.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from errata.data.fields import Record, asked_once, make_edit, objects, optional_text, subject_in, text
from errata.data.formats import Format, MakeCase
from errata.data.records import read_objects
from errata.errors import BadInput
from errata.types import Case, Probe


def reader(path: Path | None, *, test: str = "") -> MakeCase:
    """Cases of a training file: each question of ``K_F`` is answered by ``target_new``, and one of ``K_R`` stays.

    The file ``test``, or the one beside whose name has "test" for "train", holds further questions to each answer that
    is forgotten (``success`` → paraphrase), which are shared out among its edits, and ``locality`` (unrelated).
    """
    success: dict[str, list[Record]] = defaultdict(list)
    locality: list[Record] = []
    for record in _test_records(path, test):
        locality += objects(record, "locality")
        for item in objects(record, "success"):
            success[text(item, "ground_truth").casefold()].append(item)

    def case(record: Record, id: str) -> Case:
        question, forgotten, new = (text(record, key) for key in ("question", "ground_truth", "target_new"))
        edit = make_edit(question, subject_in(question, optional_text(record, "subject")), new, forgotten)
        number, of = record["number"], record["of"]  # of the questions with this answer
        retained = [*record["retained"], *locality[record["position"] :: record["count"]]]
        probes = [
            *(
                Probe("paraphrase", text(item, "question"), (new,))
                for item in success[forgotten.casefold()][number::of]
            ),
            *(Probe("unrelated", text(item, "question"), (text(item, "ground_truth"),)) for item in retained),
        ]
        return Case(id, (edit,), asked_once((edit,), probes))

    return case


def parts(record: Record) -> Iterator[Record]:
    """Each question to be forgotten, with one that stays and its number among those with the same answer."""
    forgotten, retained = objects(record, "K_F"), objects(record, "K_R")
    answers = [text(item, "ground_truth").casefold() for item in forgotten]
    for position, (item, answer) in enumerate(zip(forgotten, answers, strict=True)):
        yield item | {
            "number": answers[:position].count(answer), "of": answers.count(answer),
            "position": position, "count": len(forgotten),
            "retained": [retained[position % len(retained)]] if retained else [],
        }  # fmt: skip


def _test_records(path: Path | None, test: str) -> Iterator[Record]:
    """The objects of the test file; none where none is named and none stands beside."""
    file = Path(test) if test else path.with_name(path.name.replace("train", "test")) if path is not None else None
    if test and not Path(test).is_file():
        raise BadInput(f"there is no test file {test!r}; give its path, or leave test out")
    if file is None or file == path or not file.is_file():
        return
    yield from read_objects(file)


SANITATION = Format("K_F.0 K_R.0", reader, parts=parts)
