"""Prompts that look like edits: the same questions in other words, and other questions; and what parts the two."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from errata.methods.memory.log import EditRecord
from errata.model.hf import HFLM

NAMES = 512  # names of a state at most
NAME = re.compile(r"\b[A-ZÀ-Þ][\w'’-]*(?: [A-ZÀ-Þ][\w'’-]*)+")  # words with capitals, two at least


def names_in(texts: Iterable[str]) -> list[str]:
    """What texts call somebody or something, as far as capitals tell; at most NAMES."""
    found = (re.sub(r"['’]s?$", "", name) for text in texts for name in NAME.findall(text))
    return list(dict.fromkeys(found))[:NAMES]


def alike(
    lm: HFLM, log: Sequence[EditRecord], chosen: Sequence[int], names: Sequence[str], n: int, draw: torch.Generator
) -> tuple[list[str], list[str]]:
    """Prompts that ask for the same as one of the ``chosen`` edits (indices) in other words, and prompts that do not.

    They are the chosen edits' prompts about ``n`` other edits' subjects and as many other ``names``, and ``n`` other
    edits' prompts about their subjects. Those of an edit's subject with its next token before all edits are taken to
    ask for the same.
    """
    known, subjects = {edit.prompt for edit in log}, {edit.subject for edit in log}
    pool = [name for name in names if name not in subjects]
    about: dict[str, str] = {}  # text -> its subject
    others: dict[str, None] = {}
    for one in (log[i] for i in chosen):
        for two in (log[j] for j in torch.randint(len(log), (n,), generator=draw).tolist()):
            about |= {one.about(two.subject): two.subject, two.about(one.subject): one.subject}
        drawn = torch.randint(len(pool), (n,), generator=draw).tolist() if pool else ()
        others |= dict.fromkeys(one.about(pool[j]) for j in drawn)
    likeliest = lm.next_logprobs([*(edit.prompt for edit in log), *about]).argmax(-1).tolist()
    taken = set(zip([edit.subject for edit in log], likeliest, strict=False))
    own, same = {log[i].subject for i in chosen}, list[str]()
    for (text, subject), token in zip(about.items(), likeliest[len(log) :], strict=True):
        if (subject, token) not in taken:
            others[text] = None
        elif subject in own and text not in known:
            same.append(text)
    return same, list(others)


def parting(inside: Tensor, outside: Sequence[Tensor]) -> float:
    """The value midway between what all but a tenth of ``inside`` (n,) are above and what 99 in 100 of each of the
    ``outside`` (m,) are below."""
    return float(inside.quantile(0.1) + torch.stack([other.quantile(0.99) for other in outside]).amax()) / 2
