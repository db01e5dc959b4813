"""Prompts that look like edits: the same questions in other words, and other questions; and what parts the two."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from errata.methods.memory.log import EditRecord
from errata.methods.side_memory.matrix import At, deciding
from errata.methods.side_memory.training import site_tensors
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted
from errata.patch.parts import output_replaced

NAMES = 512  # names of a state at most
NAME = re.compile(r"\b[A-ZÀ-Þ][\w'’-]*(?: [A-ZÀ-Þ][\w'’-]*)+")  # words with capitals, two at least


def names_in(texts: Iterable[str]) -> list[str]:
    """What texts call somebody or something, as far as capitals tell; at most NAMES."""
    found = (re.sub(r"['’]s?$", "", name) for text in texts for name in NAME.findall(text))
    return list(dict.fromkeys(found))[:NAMES]


class Asked:
    """Prompts before all edits: the likeliest next token, and the ``site``'s input where it decides, in one pass.

    Those of edits are asked once, others are known until the next are asked.
    """

    def __init__(self, lm: HFLM, site: str, at: At) -> None:
        self.lm, self.site = lm, site
        self.at: At = at
        self.edits: dict[str, tuple[Tensor, int]] = {}  # text -> (x (t, f), token)
        self.others: dict[str, tuple[Tensor, int]] = {}

    def likeliest(self, log: Sequence[EditRecord], texts: Sequence[str], also: Sequence[str] = ()) -> list[int]:
        """The likeliest next token (id) of each edit's prompt, and of each text; other texts are ``also`` read where
        they do not take another pass."""
        prompts, self.others = [edit.prompt for edit in log], {}
        left = list(dict.fromkeys(text for text in (*prompts, *texts) if text not in self.edits))
        more = list(dict.fromkeys([*left, *(text for text in also if text not in self.edits)]))
        lengths = [len(self.lm.tokens.prompt(text)) for text in more if left]
        read = more if len([*budgeted(lengths, self.lm.budget)]) == 1 else left
        self.others = dict(zip(read, self._read(read), strict=True))
        self.edits |= {prompt: self.others[prompt] for prompt in prompts if prompt in self.others}
        return [(self.edits.get(text) or self.others[text])[1] for text in (*prompts, *texts)]

    def of(self, log: Iterable[EditRecord]) -> list[Tensor]:
        """The site's input (t, f) at the deciding tokens of each edit's prompt."""
        return self.inputs([edit.prompt for edit in log])

    def inputs(self, texts: Sequence[str]) -> list[Tensor]:
        """The site's input (t, f) at the deciding tokens of each text."""
        known = self.others | self.edits
        left = [text for text in dict.fromkeys(texts) if text not in known]
        xs = site_tensors(self.lm, self.site, [self.lm.tokens.prompt(text) for text in left])[0]
        found = dict(zip(left, xs, strict=True))
        return [deciding(found[text], self.at) if text in found else known[text][0] for text in texts]

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> list[tuple[Tensor, int]]:
        rows, found = [self.lm.tokens.prompt(text) for text in texts], dict[int, tuple[Tensor, int]]()
        for batch in budgeted([len(row) for row in rows], self.lm.budget):
            kept: list[Tensor] = []

            def keep(call: Call, x: Tensor, y: Tensor, batch: list[int] = batch, kept: list[Tensor] = kept) -> Tensor:
                kept += [deciding(at_least_float32(x[j, : len(rows[i])]), self.at).clone() for j, i in enumerate(batch)]
                return y

            with output_replaced(self.lm, self.site, keep):
                logits = self.lm.target_logits([(rows[i], [self.lm.tokens.fill]) for i in batch])
            found |= dict(zip(batch, zip(kept, logits.argmax(-1).tolist(), strict=True), strict=True))
        return [found[i] for i in range(len(rows))]


def alike(
    asked: Asked, log: Sequence[EditRecord], chosen: Sequence[int], names: Sequence[str], n: int, draw: torch.Generator
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
    likeliest = asked.likeliest(log, list(about), list(others))
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
