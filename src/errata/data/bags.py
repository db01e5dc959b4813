"""KN's bags: a fact in the phrasings of ParaRel, each with a [MASK] for its object. Edits state what is true.

Dai et al. 2022 (https://arxiv.org/abs/2104.08696, Hunter-DDM/knowledge-neurons: data/PARAREL/data_all.json,
preprocess.py). Bags name no subject.
"""

from typing import Any, cast

from errata.data.fields import Excluded, Record, as_list, as_text, distinct, make_edit
from errata.data.formats import Format
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Probe

MASK = "[MASK]"
END = " .?!"  # behind the object


def relations(record: Record) -> list[str]:
    """The relation with the object: what is true contradicts nothing."""
    return [" ".join(_phrasings(record)[0][1:])]


def _case(record: Record, id: str) -> Case:
    """The first phrasing that ends with the object; the other ones that do are paraphrases: text goes left to right."""
    phrasings = _phrasings(record)
    answer = phrasings[0][1]
    cut = (prompt.partition(MASK) for prompt, _, _ in phrasings)
    prompts = distinct(start.strip() for start, mask, rest in cut if mask and not rest.strip(END))
    if not prompts:
        raise Excluded(f"no phrasing of {phrasings[0][2]} ends with the object")
    return Case(
        id, (make_edit(prompts[0], None, answer),), tuple(Probe("paraphrase", p, (answer,)) for p in prompts[1:])
    )


def _phrasings(record: Record) -> list[tuple[str, str, str]]:
    """Prompt, answer and relation of each phrasing."""
    found: list[tuple[str, str, str]] = []
    for item in as_list(record.get("items"), "phrasings of a fact"):
        if not isinstance(item, list) or len(cast("list[Any]", item)) != 3:
            raise BadInput(f"a phrasing is a prompt with {MASK}, its answer and its relation, found {shown(item)}")
        prompt, answer, relation = (as_text(part, "each part of a phrasing") for part in cast("list[Any]", item))
        found.append((prompt, answer, relation))
    if not found:
        raise BadInput("a fact has no phrasing")
    return found


KN_BAGS = Format("items.0.2", lambda path: _case, "", relations)
