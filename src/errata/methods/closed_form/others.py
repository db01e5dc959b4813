"""The same prompts about others: where a text is told of one subject, their keys say what is to stay as it is.

A text's first key is the prompt's last token, and there the form of the prompt counts for more than whom it asks about.
"""

from collections.abc import Sequence

from errata.model.hf import HFLM
from errata.model.texts import openings
from errata.types import Edit


def other_subjects(lm: HFLM, n: int, seed: int) -> list[str]:
    """Up to ``n`` subjects: of the training cases that go with the model, else how sentences of its texts begin."""
    if lm.resources.cases is not None:
        subjects = (edit.subject for case in lm.resources.cases() for edit in case.edits)
        return list(dict.fromkeys(subjects))[:n]
    words = (text.split() for text in openings(lm, None, n, seed))
    return list(dict.fromkeys(" ".join(some[: (len(some) + 1) // 2]) for some in words))


def about_others(lm: HFLM, edits: Sequence[Edit], subjects: Sequence[str]) -> list[list[int]]:
    """Token ids of the edits' prompts with other subjects in the place of their own, each prompt once.

    There are as many as subjects, in turn for each edit, or one for each edit where these are more.
    """
    edited = {edit.subject for edit in edits}
    free = [subject for subject in subjects if subject not in edited]
    each = -(-len(free) // len(edits))
    chosen = [(edit, free[(i * each + j) % len(free)]) for i, edit in enumerate(edits) for j in range(each)]
    return [lm.tokens.prompt(text) for text in dict.fromkeys(_about(edit, subject) for edit, subject in chosen)]


def _about(edit: Edit, subject: str) -> str:
    return edit.prompt[: edit.start] + subject + edit.prompt[edit.start + len(edit.subject) :]
