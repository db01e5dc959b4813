"""Hallucination: behind a passage that GPT-3 made up, the right sentence; SelfCheckGPT's passages in WISE's form.

Wang et al. 2024 (https://arxiv.org/abs/2405.14768, zjunlp/EasyEdit: examples/run_wise_editing.py), after Manakul et al.
2023 (https://arxiv.org/abs/2303.08896) and Hartvigsen et al. 2023 (https://arxiv.org/abs/2211.11031).
"""

from errata.data.fields import Record, make_edit, subject_in, text, texts
from errata.data.formats import Format
from errata.types import Case, Probe


def _case(record: Record, id: str) -> Case:
    """The passage is answered by the sentence; it stands whole for a subject that it does not contain."""
    passage = text(record, "prompt")
    edit = make_edit(passage.rstrip(), subject_in(passage, text(record, "subject")), text(record, "target_new"))
    answers = texts(record, "locality_ground_truth")
    return Case(id, (edit,), tuple(Probe("unrelated", other, answers) for other in texts(record, "locality_prompt")))


HALLUCINATION = Format("prompt subject target_new locality_prompt locality_ground_truth", lambda path: _case)
