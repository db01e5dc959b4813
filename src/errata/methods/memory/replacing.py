"""Which earlier edits a new one replaces, so that the newest answer wins."""

from collections.abc import Sequence
from typing import Any

from errata.conflicts.rewording import same_fact
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord
from errata.model.hf import HFLM
from errata.patch.patch import Patch


def replaced(lm: HFLM, old: EditMemory[Any, Any], live: Sequence[int], log: Sequence[EditRecord]) -> list[list[int]]:
    """For each new edit those of the ``live`` edits of ``old`` that it replaces (indices).

    They are those of its prompt, and those that it contradicts in other words: of its subject, with the same answer as
    its prompt before all edits, and given as the answer to its prompt where they are told before it (and the other way
    round), or while ``old`` is in force.
    """
    asking: dict[tuple[int, ...], list[int]] = {tuple(new.prompt_ids): [] for new in log}
    about: dict[str, list[int]] = {new.subject: [] for new in log}
    for i in live:
        if (held := old.log[i]).subject in about:
            about[held.subject].append(i)
        if (prompt := tuple(held.prompt_ids)) in asking:
            asking[prompt].append(i)
    found = [[*asking[tuple(new.prompt_ids)]] for new in log]
    pairs = [
        (j, i)
        for j, new in enumerate(log)
        for i in about[new.subject]
        if old.log[i].prompt_ids != new.prompt_ids and old.log[i].target_new.strip() != new.target_new.strip()
    ]
    same = same_fact(lm, [(old.log[i], log[j]) for j, i in pairs], Patch((old,))) if pairs else []
    for (j, i), told in zip(pairs, same, strict=True):
        found[j] += [i] if told else []
    return found
