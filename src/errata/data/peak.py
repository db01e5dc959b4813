"""PEAK: a further object for a relation that has several; what stands beside it must stay.

Ma et al. 2024 (https://arxiv.org/abs/2401.17623, mjy1111/PEAK: data/, neighbor.py). Its additivity (AFF, ANF) compares
the probabilities of ``postive_list`` and ``negtive_list`` behind the edit's own prompt; these are not asked here.
"""

from collections.abc import Iterator
from typing import Any, cast

from errata.data import counterfact
from errata.data.fields import (
    Record,
    as_list,
    as_text,
    asked_once,
    case_id,
    distinct,
    get,
    make_edit,
    optional_text,
    text,
    texts,
)
from errata.data.formats import Format
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Probe

REWRITE = "requested_rewrite"


def relations(record: Record) -> list[str]:
    """The relation's id with the object, since a relation here has several; empty where it has none."""
    relation = counterfact.relations(record)
    return [f"{relation[0]} {text(record, f'{REWRITE}.target_new.str')}"] if relation else []


def _case(record: Record, id: str) -> Case:
    new = text(record, f"{REWRITE}.target_new.str")
    true = optional_text(record, f"{REWRITE}.target_true.str")
    edit = make_edit(text(record, f"{REWRITE}.prompt"), text(record, f"{REWRITE}.subject"), new, true)
    probes = [
        Probe("paraphrase", prompt, (new,), rival=edit.target_true) for prompt in texts(record, "para_add_prompts")
    ]
    return Case(
        case_id(record, "case_id", "peak", id), (edit,), asked_once((edit,), [*probes, *_neighbours(record, new)])
    )


def _neighbours(record: Record, new: str) -> Iterator[Probe]:
    """The facts beside the new object and the old ones; to a prompt that comes again any of its answers is right."""
    answers: dict[str, tuple[str, ...]] = {}
    for pair in as_list(get(record, "neighborhood_prompts") or [], "neighborhood_prompts"):
        if not isinstance(pair, list) or len(cast("list[Any]", pair)) != 2:
            raise BadInput(f"each of neighborhood_prompts is a prompt and its answer, found {shown(pair)}")
        prompt, answer = (as_text(part, "each of neighborhood_prompts") for part in cast("list[Any]", pair))
        answers[prompt] = distinct((*answers.get(prompt, ()), answer))
    for prompt, accepted in answers.items():
        if prompt.strip() and accepted:
            yield Probe("neighborhood", prompt, accepted, rival=new)


PEAK = Format(
    f"{REWRITE}.subject {REWRITE}.target_new.str postive_list negtive_list",  # as they are spelt there
    lambda path: _case,
    "case_id para_add_prompts neighborhood_prompts negtive_random_list",
    relations,
)
