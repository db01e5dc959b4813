"""KnowEdit: wiki_recent, wiki_counterfact and ZsRE as facts, and WikiBio as sentences. ConvSent is in convsent.py.

Zhang et al. 2024 (https://arxiv.org/abs/2401.01286, zjunlp/EasyEdit: examples/KnowEdit.md,
easyeditor/dataset/knowedit.py). Sanitation is left out: its edits and its questions stand in two files.
"""

from collections.abc import Iterator, Mapping

from errata.data.fields import Record, distinct, get, make_edit, nested_texts, objects, text, texts
from errata.data.formats import Format
from errata.types import Case, Kind, Probe

CRITERIA: Mapping[str, Kind] = {
    "portability.Reasoning": "one_hop",
    "portability.Subject_Aliasing": "alias",
    "portability.Logical_Generalization": "logical",
    "locality.Relation_Specificity": "same_subject",
    "locality.Forgetfulness": "preservation",
}


def _case(record: Record, id: str) -> Case:
    new = text(record, "target_new")
    true = nested_texts(get(record, "ground_truth") or [], "ground_truth")
    edit = make_edit(text(record, "prompt"), text(record, "subject"), new, true[0] if true else None)
    rephrased = distinct((*texts(record, "rephrase"), *texts(record, "rephrase_prompt")))
    probes = [Probe("paraphrase", prompt, (new,)) for prompt in rephrased]
    return Case(id, (edit,), (*probes, *_criteria_probes(record)))


def _wikibio_case(record: Record, id: str) -> Case:
    """Behind a passage, the sentence that replaces one that a model made up (GRACE's task).

    The whole passage stands for a subject that it does not contain.
    """
    passage, subject, sentence = (text(record, key) for key in ("text", "concept", "labels"))
    contained = subject.casefold() in passage.casefold()
    edit = make_edit(passage, subject if contained else None, sentence)
    return Case(id, (edit,), tuple(_criteria_probes(record)))


def _criteria_probes(record: Record) -> Iterator[Probe]:
    """The questions of each criterion; those without an answer are left out, as EasyEdit leaves them out.

    A question that comes again with another answer has several, as a relation with several objects: any is right.
    """
    for path, kind in CRITERIA.items():
        questions: dict[str, tuple[str, ...]] = {}
        for item in objects(record, path):
            answers = nested_texts(get(item, "ground_truth") or [], f"ground_truth of {path}")
            for prompt in texts(item, "prompt"):
                questions[prompt] = distinct((*questions.get(prompt, ()), *answers))
        for prompt, answers in questions.items():
            if answers:
                yield Probe(kind, prompt, answers, label=path.partition(".")[2])


KNOWEDIT = Format(
    "subject prompt target_new locality",
    lambda path: _case,
    "ground_truth portability rephrase rephrase_prompt cond",
)
WIKIBIO = Format("concept text labels", lambda path: _wikibio_case, "locality")
