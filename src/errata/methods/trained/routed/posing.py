"""A batch of training: edits as the small models read them, and what is asked in and out of their scope."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from errata.methods.trained.examples import Asked, Example
from errata.methods.trained.routed.helpers import Helpers
from errata.methods.trained.routed.reading import Row, words
from errata.methods.trained.routed.router import budget_of
from errata.methods.trained.routed.scope import distances
from errata.methods.trained.routed.scoped import asked, edit_row, question, recorded
from errata.methods.trained.routed.varying import crossed, renamed
from errata.model import passes
from errata.model.tokens import Tokens
from errata.subjects import mentions


@dataclass(frozen=True)
class Query:
    """What is asked about the edit of this number, whether it is in its scope, and the prompt's ids."""

    edit: int
    asked: Asked
    inside: bool
    ids: list[int]


@dataclass(frozen=True)
class Posed:
    """Examples, the rows of their edits, and their queries."""

    examples: list[Example]
    edits: list[Row]
    queries: list[Query]

    @classmethod
    def of(cls, tokens: Tokens, examples: Sequence[Example], twins: Sequence[Sequence[str]] = ()) -> "Posed":
        """All that the examples ask; ``twins``: more prompts out of the scope of each."""
        edits = [edit_row(recorded(e.edit, tokens)) for e in examples]
        told = [(i, a, True) for i, e in enumerate(examples) for a in (e.asked, *e.follow)]
        told += [(i, a, False) for i, e in enumerate(examples) for a in e.keep]
        told += [(i, Asked(text, "", "twin"), False) for i, texts in enumerate(twins) for text in texts]
        return cls(list(examples), edits, [Query(i, a, inside, words(tokens, a.prompt)) for i, a, inside in told])

    @property
    def of_edit(self) -> list[int]:
        """The number of each query's own edit."""
        return [query.edit for query in self.queries]

    @cached_property
    def inside(self) -> Tensor:
        """Whether each query is in the scope of its own edit. (q,)"""
        return torch.tensor([query.inside for query in self.queries])

    def own(self) -> Tensor:
        """Whether it is a query's own edit. (q, n)"""
        return torch.tensor(self.of_edit)[:, None] == torch.arange(len(self.edits))

    def unclear(self) -> Tensor:
        """Whether a query names the subject of another example's edit: it may ask for that fact or not. (q, n)"""
        subjects = [example.edit.subject for example in self.examples]
        named = [
            [i != query.edit and s in query.asked.prompt for i, s in enumerate(subjects)] for query in self.queries
        ]
        return torch.tensor(named)

    def distances(self, network: Helpers) -> Tensor:
        """‖emb(edit) − emb(query)‖². (q, n)"""
        n = len(self.edits)
        rows = [*self.edits, *(question(query.ids, query.asked.prompt) for query in self.queries)]
        emb = network.scope(network.vectors, rows)
        return distances(emb[n:], emb[:n])

    def answers(self, tokens: Tokens, network: Helpers) -> tuple[Tensor, Tensor, list[int]]:
        """Log-probabilities (m, V) and ids (m,) of each token of the answers of all queries in scope, given their own
        edits, and how many each answer has, its end among them."""
        rows, targets = self._answered(tokens)
        logprobs, lengths = network.counterfactual.answered(network.vectors, rows, targets)
        return logprobs, torch.tensor([id for ids in targets for id in ids], device=logprobs.device), lengths

    def right(self, tokens: Tokens, network: Helpers) -> Tensor:
        """Whether all tokens of the answer are the likeliest, for each query in scope: :meth:`answers`, in batches."""
        rows, targets = self._answered(tokens)
        found = torch.zeros(len(rows), dtype=torch.bool)
        lengths = [len(row) + len(ids) for row, ids in zip(rows, targets, strict=True)]
        for batch in passes.budgeted(lengths, budget_of(len(network.vectors))):
            wanted = [targets[i] for i in batch]
            logprobs, sizes = network.counterfactual.answered(network.vectors, [rows[i] for i in batch], wanted)
            said = logprobs.argmax(-1).cpu().split(sizes)
            found[batch] = torch.tensor([x.tolist() == ids for x, ids in zip(said, wanted, strict=True)])
        return found

    def _answered(self, tokens: Tokens) -> tuple[list[Row], list[list[int]]]:
        """What is read of each query in scope, and the ids of its answer."""
        inside = [query for query in self.queries if query.inside]
        pairs = [query.asked for query in inside]
        targets = [tokens.ended(tokens.prompt(a.prompt), tokens.target(a.prompt, a.answer)) for a in pairs]
        return [asked(self.edits[query.edit], query.ids) for query in inside], targets


def twins(example: Example, others: Sequence[Example], rng: Random) -> list[str]:
    """Some of the example's own questions, about those who share the beginning of the subject's name, or its end."""
    subject, other = example.edit.subject, rng.choice(others).edit.subject
    names = [name for name in (crossed(subject, other), crossed(other, subject)) if not mentions(name, subject)]
    about = [a.prompt for a in (example.asked, *example.follow) if mentions(a.prompt, subject)]
    return [renamed(rng.choice(about), subject, name) for name in names]
