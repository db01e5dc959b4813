"""What the search for targets minimises: its hyper-parameters, and the positions whose predictions count for a fact.

For each fact, a vector δ added at the subject's last token (ROME, arXiv:2202.05262 eq. 4), to minimise

    mean over contexts of −log P[o* | x + p]  +  w_KL · KL(P_δ[· | "{s} is a"] ‖ P)  +  w_decay · ‖δ‖ / ‖v‖²

The KL is of the word behind "is a", as in the paper; the released code of ROME, MEMIT and PMET takes that of the word
behind the subject. Of 40 edits by MEMIT on the bundled model's validation cases every figure is the same either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from errata.methods.base import Method
from errata.methods.settings import setting
from errata.model.added import Held
from errata.model.hf import HFLM
from errata.types import Edit

ESSENCE = "{} is a"  # ROME's prompt for what the subject is


@dataclass(frozen=True, kw_only=True)
class TargetSettings(Method):
    """The hyper-parameters that the search reads; ``lr`` is None until resolved."""

    argmax_weight: ClassVar[float] = 1.0  # of an answer's loss once it is the arg-max (PMET)
    kl_stop: ClassVar[float | None] = None  # the KL below which the search then ends (PMET)

    steps: int = setting(25, "MEMIT, appendix B", key="v_num_grad_steps", above=0)
    lr: float | None = setting(None, "RATE x length / √d: the first step, of each coordinate", key="v_lr", above=0)
    optimizer: Literal["normalised", "adam"] = setting(
        "normalised", "steps along the gradient that fall in length; the papers take Adam"
    )
    search_contexts: int = setting(2, "of the contexts, beside none, that δ is searched in; the papers search in all")
    clamp: float = setting(0.75, "x length of the hidden state; MEMIT, released code", key="clamp_norm_factor")
    kl: float = setting(0.0625, "ROME, released code", key="kl_factor")
    decay: float = setting(0.5, "ROME, released code", key="v_weight_decay")
    stop: float = setting(0.05, "loss that ends the search; ROME, released code")
    preserve: float = setting(
        0.0, "weight of keeping what the model says of the bare subject (4 is a good one); not in the papers"
    )
    preserve_samples: int = setting(4, "continuations of the subject, sampled from the unedited model")
    preserve_tokens: int = setting(6, "of each continuation")
    preserve_at_once: int = setting(1, "continuations that a step looks at, in turn", above=0)
    plain: bool = setting(False, "the reference: one fact at a time, full passes")


@dataclass
class FactRows:
    """The token rows of one fact, and its entries: the positions whose next-token distribution is in the loss.

    Per row: ``ids``, the subject's last token ``position`` and the ``columns`` of its entries, counted from there. Per
    entry: the ``target`` token, or −1 where the distribution is held to the unedited model's; its ``weight``; and
    whether that is by KL(P ‖ P_δ) (``forward``) instead of KL(P_δ ‖ P). ``held`` are the δ that a row has at earlier
    positions already.
    """

    ids: list[list[int]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    forward: list[bool] = field(default_factory=list)

    def add(
        self,
        ids: list[int],
        position: int,
        columns: list[int],
        targets: list[int],
        weight: float,
        forward: bool = False,
        held: Held | None = None,
    ) -> None:
        """Adds a row with an entry at each of its ``columns``, which share ``weight``."""
        self.ids.append(ids)
        self.positions.append(position)
        self.held.append(held or {})
        self.columns.append([column - position for column in columns])
        self.targets += targets
        self.weights += [weight / len(columns)] * len(columns)
        self.forward += [forward] * len(columns)

    @property
    def cost(self) -> int:
        """Tokens of the padded rows."""
        return len(self.ids) * max(map(len, self.ids))

    @property
    def suffix(self) -> int:
        """Tokens from the subject's last one on, in the row that has most of them."""
        return max(len(row) - position for row, position in zip(self.ids, self.positions, strict=True))


def rows_of(
    lm: HFLM,
    edit: Edit,
    contexts: Sequence[str],
    settings: TargetSettings,
    continuations: Sequence[list[int]] = (),
) -> FactRows:
    """The rows of one fact: its prompt after each context, the essence prompt, ``continuations`` of the subject."""
    rows, tokens = FactRows(), lm.tokens
    for context in contexts:
        text = context + edit.prompt
        prompt, target = tokens.prompt(text), tokens.target(text, edit.target_new)
        columns = list(range(len(prompt) - 1, len(prompt) + len(target) - 1))
        position = tokens.last_of_subject(text, edit.subject, len(context) + edit.start)
        rows.add(prompt + target[:-1], position, columns, target, 1 / len(contexts))
    if settings.kl:
        text = ESSENCE.format(edit.subject)
        prompt = tokens.prompt(text)
        rows.add(prompt, tokens.last_of_subject(text, edit.subject, 0), [len(prompt) - 1], [-1], settings.kl)
    subject = tokens.prompt(edit.subject) if continuations else []
    for ids in continuations:
        columns = list(range(len(subject) - 1, len(subject) - 1 + len(ids)))
        position = tokens.last_of_subject(edit.subject, edit.subject, 0)
        weight = settings.preserve / len(continuations)
        rows.add(subject + ids[:-1], position, columns, [-1] * len(ids), weight, forward=True)
    return rows


def continuations_of(lm: HFLM, edits: Sequence[Edit], settings: TargetSettings) -> list[list[list[int]]]:
    """For each edit what the model writes behind its bare subject, but for what states the old answer.

    Sampled for all edits at once, though what it writes of one does not depend on the others.
    """
    if not settings.preserve:
        return [[] for _ in edits]
    some, tokens = range(settings.preserve_samples), settings.preserve_tokens
    seeds = [settings.seed + i for i in some]
    written = iter(lm.sample([edit.subject for edit in edits for _ in some], tokens, seed=seeds * len(edits)))
    asked = [edit.prompt for edit in edits if not edit.target_true]
    answers = iter(lm.generate(asked, 8, until_answer=True) if asked else [])
    kept: list[list[list[int]]] = []
    for edit in edits:
        old = (edit.target_true or next(answers).strip(" .\n")).lower()
        of_subject = [next(written) for _ in some]
        kept.append([ids for ids in of_subject if ids and not (old and old in lm.tokens.decode(ids).lower())])
    return kept


@dataclass
class Entries:
    """The entries of a group's facts (see :class:`FactRows`), each (entries,): whose they are, and what they count."""

    fact: Tensor
    row: Tensor
    target: Tensor
    weight: Tensor
    forward: Tensor

    @classmethod
    def of(cls, facts: Sequence[FactRows], device: torch.device) -> "Entries":
        """All entries of the facts, in the order of their rows."""
        columns = [columns for fact in facts for columns in fact.columns]
        return cls(
            torch.tensor([i for i, fact in enumerate(facts) for _ in fact.targets], device=device),
            torch.tensor([row for row, some in enumerate(columns) for _ in some], device=device),
            torch.tensor([target for fact in facts for target in fact.targets], device=device),
            torch.tensor([weight for fact in facts for weight in fact.weights], device=device),
            torch.tensor([forward for fact in facts for forward in fact.forward], device=device),
        )

    @property
    def anchored(self) -> Tensor:
        """(entries,): which have no target and are held to the unedited model."""
        return self.target < 0

    def per_fact(self, chosen: Tensor, values: Tensor, n: int) -> Tensor:
        """(n,): for each fact the weighted sum of the values of its ``chosen`` entries."""
        sums = torch.zeros(n, dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.fact[chosen], values * self.weight[chosen])

    def kept(self, rows: Sequence[int]) -> Tensor:
        """(entries,): which are in these rows."""
        return self._numbers(rows)[self.row] >= 0

    def _numbers(self, rows: Sequence[int]) -> Tensor:
        number = torch.full((int(self.row.max()) + 1,), -1, device=self.row.device)
        number[list(rows)] = torch.arange(len(rows), device=self.row.device)
        return number

    def of_rows(self, rows: Sequence[int]) -> "Entries":
        """The entries of some rows, in their order, which are then numbered from 0."""
        number = self._numbers(rows)
        kept = number[self.row] >= 0
        return Entries(
            self.fact[kept], number[self.row[kept]], self.target[kept], self.weight[kept], self.forward[kept]
        )
