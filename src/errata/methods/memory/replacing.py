"""Which earlier edits a new one replaces, so that the newest answer wins."""

from collections.abc import Sequence
from typing import Any

from errata.answers import answer_of
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord
from errata.model.hf import HFLM
from errata.patch.patch import Patch


def replaced(lm: HFLM, old: EditMemory[Any, Any], live: Sequence[int], log: Sequence[EditRecord]) -> list[list[int]]:
    """For each new edit those of the ``live`` edits of ``old`` that it replaces (indices).

    They are those of its prompt, and those that it contradicts in other words: of its subject, with the same answer as
    its prompt before all edits, and given as the answer to its prompt while ``old`` is in force.
    """
    found = [[i for i in live if old.log[i].prompt_ids == new.prompt_ids] for new in log]
    about: dict[str, list[int]] = {}
    for i in live:
        about.setdefault(old.log[i].subject, []).append(i)
    pairs = [
        (j, i)
        for j, new in enumerate(log)
        for i in about.get(new.subject, ())
        if old.log[i].prompt_ids != new.prompt_ids and old.log[i].target_new.strip() != new.target_new.strip()
    ]
    pairs = [
        (j, i)
        for (j, i), same in zip(pairs, _asks_the_same(lm, [(log[j], old.log[i]) for j, i in pairs]), strict=True)
        if same
    ]
    if pairs:
        with Patch((old,)).applied(lm) as edited:
            told = edited.score([log[j].prompt for j, _ in pairs], [old.log[i].target_new for _, i in pairs])
        for (j, i), score in zip(pairs, told, strict=True):
            found[j] += [i] if score.correct else []
    return found


def _asks_the_same(lm: HFLM, pairs: Sequence[tuple[EditRecord, EditRecord]]) -> list[bool]:
    """Whether both edits of each pair have one old answer: the one that they name, else the model's own."""
    prompts = list(dict.fromkeys(e.prompt for pair in pairs for e in pair if e.target_true is None))
    texts = lm.generate(prompts, until_answer=True) if prompts else []
    own = dict(zip(prompts, texts, strict=True))
    answers = [[answer_of(own[e.prompt]) if e.target_true is None else e.target_true for e in pair] for pair in pairs]
    return [one.strip().lower() == two.strip().lower() for one, two in answers]
