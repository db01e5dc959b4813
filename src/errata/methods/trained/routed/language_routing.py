"""Which patch a query is under: the gate of each, asked of the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from errata.methods.trained.routed.language_gate import SURE, Gate, read
from errata.methods.trained.routed.language_rules import Rule, filled
from errata.model.hf import HFLM
from errata.model.lm import listed
from errata.subjects import mentions

if TYPE_CHECKING:
    import numpy.typing as npt

MOST = 1 - 1e-4  # of a gate: what the patch does not say keeps a log-probability


@dataclass(frozen=True, eq=False)
class Routing:
    """The rules of some patches, with what each condition's clause ends with, and the gate that looks them up.

    ``own`` are the patches' own prompts, which are under them in any case.
    """

    model: HFLM
    gate: Gate
    layers: Sequence[int]
    threshold: float
    own: Sequence[str]
    rules: Sequence[Rule]
    objects: Sequence[str]

    @torch.no_grad()
    def gates(self, prompts: Sequence[str]) -> "npt.NDArray[np.float64]":
        """The gate of each patch for each prompt. (b, n)"""
        prompts = listed(prompts)
        g = np.zeros((len(prompts), len(self.rules)))
        asked = [(i, x) for i, x in enumerate(prompts) if isinstance(cast(Any, x), str) and x.strip()]
        pairs = [(i, j, who) for i, x in asked for j, who in self._named(x)]
        pairs += self._about(asked)
        pairs = [(i, j, who) for i, j, who in pairs if self._fits(self.rules[j], who)]
        pairs, what = self._asked(prompts, pairs)
        held = self._held(pairs)
        for (i, j, _), one, two in zip(pairs, what, held, strict=True):
            g[i, j] = min(MOST, torch.sigmoid(one).item() * torch.sigmoid(two).item())
        for i, x in asked:
            for j, own in enumerate(self.own):
                g[i, j] = MOST if x.strip() == own.strip() else g[i, j]
        return g

    def _named(self, x: str) -> list[tuple[int, str]]:
        """The patches about one subject that a query names."""
        some = enumerate(self.rules)
        return [(j, rule.subject) for j, rule in some if rule.subject is not None and mentions(x, rule.subject)]

    def _about(self, asked: Sequence[tuple[int, str]]) -> list[tuple[int, int, str]]:
        """Queries and the patches with a clause, with whom the query is about."""
        clauses = [j for j, rule in enumerate(self.rules) if rule.clause is not None]
        if not clauses or not asked:
            return []
        reads = read(self.model, [x for _, x in asked], self.layers)
        whom = [one.subject(int(self.gate.spans(one).argmax())) if one.spans else None for one in reads]
        return [(i, j, who) for (i, _), who in zip(asked, whom, strict=True) if who is not None for j in clauses]

    def _fits(self, rule: Rule, who: str) -> bool:
        """Whether the model can read what a rule is about, said of somebody."""
        limit, texts = self.model.tokens.limit, [rule.about(who), filled(rule.clause or "", who)]
        return limit is None or all(
            len(text.encode()) + 4 < limit or self.model.tokens.count(text) < limit for text in texts
        )

    def _asked(
        self, prompts: Sequence[str], pairs: Sequence[tuple[int, int, str]]
    ) -> tuple[list[tuple[int, int, str]], list[Tensor]]:
        """The pairs in which the query may ask for what the patch is about, and the log-odds that it does."""
        own = [self.rules[j].about(who) for _, j, who in pairs]
        texts = list(dict.fromkeys([*(prompts[i] for i, _, _ in pairs), *own]))
        ends = {one.text: one.end for one in read(self.model, texts, self.layers, words=False)} if texts else {}
        left, odds = list[tuple[int, int, str]](), list[Tensor]()
        for pair, text in zip(pairs, own, strict=True):
            found = self.gate.asks(ends[prompts[pair[0]]][None], ends[text][None])[0]
            if torch.sigmoid(found) > self.threshold:  # the gate is at most that
                left.append(pair)
                odds.append(found)
        return left, odds

    def _held(self, pairs: Sequence[tuple[int, int, str]]) -> list[Tensor]:
        """The log-odds that each pair's subject meets the patch's condition."""
        clauses = [self.rules[j].clause for _, j, _ in pairs]
        some = [k for k, clause in enumerate(clauses) if clause is not None]
        sure = torch.full((len(pairs),), SURE)
        if some:
            objects = [self.objects[pairs[k][1]] for k in some]
            stems = [cast(str, clauses[k]).removesuffix(o).rstrip() for k, o in zip(some, objects, strict=True)]
            prompts = [filled(stem, pairs[k][2]) for k, stem in zip(some, stems, strict=True)]
            scores = self.model.score(prompts, objects)
            sure[some] = self.gate.holds(torch.tensor([score.total for score in scores]))
        return list(sure)
