"""What methods are trained on: cases that must not be among those that are edited."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from errata.bench.specs import TrainSpec
from errata.errors import BadInput
from errata.types import Case, Edit

log = logging.getLogger(__name__)

NAMED = 3  # records in a message


def reads_cases(method: Any) -> bool:
    """Whether ``prepare`` of a method reads cases: by its tags, which one that is not Errata's may lack."""
    tags = getattr(method, "tags", None)
    return tags is not None and tags.prepares_with != "texts"


def apart(train: Sequence[Case], edited: Iterable[Case], spec: TrainSpec) -> list[Case]:
    """The training cases, none of which has a fact (subject and prompt, whatever the target) that is edited.

    Those that have one are left out where the table says so, which is logged. Subjects that both have are logged, too.
    Raises :class:`BadInput` for cases in common, which it names, and where none are left.
    """
    facts = {_fact(edit): case for case in edited for edit in case.edits}
    kept = [case for case in train if not any(_fact(edit) in facts for edit in case.edits)]
    both = {_fact(edit) for case in train for edit in case.edits} & facts.keys()
    if both and spec.overlap == "refuse":
        some = [f"{case.id}: {case.edits[0].prompt}" for fact, case in facts.items() if fact in both][:NAMED]
        raise BadInput(
            f"{len(both)} of the {len(facts)} facts that are edited stand in the training data {spec.label!r} too "
            f"({'; '.join(some)}{' …' * (len(both) > NAMED)}): train on another split, or on what is not edited of "
            'this one with overlap = "leave-out"'
        )
    if not kept:
        raise BadInput(f"the training data {spec.label!r} has no case that is not edited; name another file")
    if both:
        log.warning(
            "%d cases of the training data %r are left out: they are edited", len(train) - len(kept), spec.label
        )
    subjects = {subject for subject, _ in facts}
    if shared := subjects & {subject for case in kept for subject, _ in map(_fact, case.edits)}:
        log.warning(
            "%d of the %d subjects that are edited stand in the training data %r too, with other facts",
            *(len(shared), len(subjects), spec.label),
        )
    return kept


def _fact(edit: Edit) -> tuple[str, str]:
    """What an edit is about, in whatever letters and spaces."""
    return " ".join(edit.subject.casefold().split()), " ".join(edit.prompt.casefold().split())
