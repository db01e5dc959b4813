"""HalluEditBench: facts that a model makes up, set right, and questions of many sorts about them.

Huang et al. 2025 (https://arxiv.org/abs/2410.16251, llm-editing/HalluEditBench: data/questions/,
code/edit_all_method.py).
"""

from collections.abc import Iterator, Mapping

from errata.data.fields import Record, asked_once, make_edit, optional_text, subject_in, text
from errata.data.formats import Format
from errata.types import Case, Probe

HOPS = range(2, 7)
YES_NO: Mapping[str, str] = {"yes": "Yes", "no": "No"}


def _case(record: Record, id: str) -> Case:
    question, subject, new = (text(record, key) for key in ("question", "subject", "object"))
    edit = make_edit(question, subject_in(question, subject), new)
    return Case(id, (edit,), asked_once((edit,), _probes(record, subject, new)))


def _probes(record: Record, subject: str, new: str) -> Iterator[Probe]:
    """The questions that a record has; of the one that must stay no answer is known."""
    if asked := optional_text(record, "paraphrased_question"):
        yield Probe("paraphrase", asked, (new,))
    for name, answer in YES_NO.items():
        if asked := optional_text(record, f"{name}_question"):
            yield Probe("question", asked, (answer,), label=name)
    choices, letter = (optional_text(record, f"multiple_choice_{key}") for key in ("with_letters", "labels"))
    if choices and letter:
        yield Probe("question", f"{text(record, 'question')} {choices}", (letter,), label="multiple choice")
    if asked := optional_text(record, "reversed_relation_question"):
        yield Probe("inverse", asked, (subject,))
    for number in HOPS:
        asked, answer = (optional_text(record, f"{key}_{number}hop") for key in ("question", "answer"))
        if asked and answer:
            yield Probe("multi_hop", asked, (answer,), label=f"{number} hops")
    if asked := optional_text(record, "locality_question"):
        yield Probe("same_subject", asked)


HALLUEDITBENCH = Format(
    "subject relation object question",
    lambda path: _case,
    "topic output_* eval_* multiple_choices paraphrased_question multiple_choice_with_letters multiple_choice_labels "
    "yes_question no_question locality_question reversed_relation_question question_*hop answer_*hop",
    lambda record: [text(record, "relation")],
)
