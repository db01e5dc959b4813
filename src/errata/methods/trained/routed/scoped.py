"""The part of SERAC: a log of edits, and the small models that say which edit a prompt asks for and answer from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict, override

from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.memory.log import EditLog, EditRecord, newest
from errata.methods.memory.logged import LoggedWrapper
from errata.methods.trained.routed.helpers import Helpers, Sizes
from errata.methods.trained.routed.reading import PROMPT, QUERY, TARGET, Row, words
from errata.methods.trained.routed.router import BUDGET, RoutedLM
from errata.methods.trained.routed.scope import distances
from errata.model import passes, weights
from errata.model.decoding import Choose, StopRule
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.tokens import Tokens
from errata.patch.schema import APART, STRICT, held
from errata.types import Edit


class Settings(TypedDict):
    """The settings of a :class:`ScopedAnswers`."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    threshold: Annotated[float, Field(gt=0, le=1)]


def recorded(edit: Edit, tokens: Tokens) -> EditRecord:
    """The record of an edit, with the ids that the small models read."""
    return replace(
        EditRecord.of(edit), prompt_ids=words(tokens, edit.prompt), target_ids=words(tokens, edit.target_new)
    )


def edit_row(record: EditRecord) -> Row:
    """What is read of an edit."""
    return Row.of((record.prompt_ids, PROMPT), (record.target_ids, TARGET), text=record.text)


def question(ids: Sequence[int], text: str) -> Row:
    """What the scope classifier reads of a prompt: the role is that of an edit's prompt."""
    return Row.of((ids, PROMPT), text=text.strip())


def asked(edit: Row, query: Sequence[int]) -> Row:
    """What the counterfactual model reads: an edit and what is asked."""
    return edit + Row.of((query, QUERY))


@torch.no_grad()
def embedded(helpers: Helpers, rows: Sequence[Row]) -> Tensor:
    """emb of each row, (n, ·), in batches."""
    some = list(passes.budgeted([len(row) for row in rows], BUDGET))
    found = [helpers.scope(helpers.vectors, [rows[i] for i in batch]) for batch in some]
    order = torch.tensor([i for batch in some for i in batch], device=helpers.vectors.device)
    return torch.cat(found)[order.argsort()]


@dataclass(frozen=True, eq=False)
class ScopedAnswers(LoggedWrapper):
    """Edits, each of which is answered by the counterfactual model where the scope classifier says so.

    Of the edits that are in use the nearest one answers, if exp(−d²) is above ``settings["threshold"]``; otherwise the
    model inside does. An edit is in use unless a later one of the same subject has its prompt in this one's scope.
    """

    kind: ClassVar[str] = "scoped answers"

    log: EditLog
    settings: Settings
    sizes_of: Sizes
    networks: Annotated[Mapping[str, Tensor], APART]

    @override
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.networks)

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(**held(cls, config, {}), networks=dict(tensors))

    @override
    def check_content(self) -> None:
        self.helpers  # noqa: B018  raises where sizes and tensors do not go together
        for record in self.log:
            ids = [*record.prompt_ids, *record.target_ids]
            if not record.prompt_ids or not record.target_ids or max(ids) >= self.sizes_of.vocabulary:
                raise BadInput(f"log: {record} has no token ids, or one above {self.sizes_of.vocabulary - 1}")

    @override
    def check_model(self, lm: HFLM) -> None:
        rows = vocabulary(lm)
        if rows != self.sizes_of.vocabulary:
            raise WrongModel(
                f"the small models of this patch have {self.sizes_of.vocabulary} tokens, and this model has {rows}"
            )

    @cached_property
    def helpers(self) -> Helpers:
        """The small models, on the CPU."""
        return Helpers.built(self.sizes_of, self.networks)

    @cached_property
    def rows(self) -> list[Row]:
        """What the small models read of each edit."""
        return [edit_row(record) for record in self.log]

    @cached_property
    def in_use(self) -> list[int]:
        """Indices of the edits that answer, in order."""
        about: dict[str, list[int]] = {}
        for i, record in enumerate(self.log):
            about.setdefault(" ".join(record.subject.split()).casefold(), []).append(i)
        replaced = {i for same in about.values() if len(same) > 1 for i in self._replaced(same)}
        latest = newest(tuple(record.prompt_ids) for record in self.log)
        return [i for i in latest if i not in replaced]

    def _replaced(self, same: Sequence[int]) -> list[int]:
        """Those of some edits of one subject in whose scope the prompt of a later one is."""
        records = [self.log[i] for i in same]
        edits = embedded(self.helpers, [self.rows[i] for i in same])
        asks = embedded(self.helpers, [question(record.prompt_ids, record.prompt) for record in records])
        near = torch.exp(-distances(edits, asks)).triu(1)  # (edit, later edit)
        return [same[k] for k, most in enumerate(near.amax(1).tolist()) if most > self.settings["threshold"]]

    @override
    def wrap(self, inner: LM) -> LM:
        return ScopedLM(self, inner)

    @override
    def summary(self) -> list[dict[str, Any]]:
        numbers = {"scope": 0, "counterfactual": 0, "vectors": 0}
        for name, value in self.networks.items():
            numbers[name.split(".")[0]] += value.numel()
        sites = [{"kind": self.kind, "site": name, "numbers": count} for name, count in numbers.items()]
        return [{"kind": self.kind, "edits": len(self.log), **self.settings}, *sites]


Scoped = tuple[int, Row]  # an edit's index, and what the counterfactual model reads


class ScopedLM(RoutedLM[Scoped]):
    """The inner model, and the counterfactual model for prompts in the scope of an edit."""

    def __init__(self, part: ScopedAnswers, inner: LM) -> None:
        """The edits' embeddings are computed here."""
        super().__init__(inner)
        tensors = {name: value.to(self.device) for name, value in part.networks.items()}
        self.part, self.helpers = part, Helpers.built(part.sizes_of, tensors)
        self.edits = embedded(self.helpers, [part.rows[i] for i in part.in_use])  # (n, ·)

    @override
    def read(self, prompts: Sequence[str]) -> list[Scoped | None]:
        ids = [words(self.tokens, prompt) for prompt in prompts]
        questions = [question(row, prompt) for row, prompt in zip(ids, prompts, strict=True)]
        d = distances(embedded(self.helpers, questions), self.edits)  # (b, n)
        score, nearest = torch.exp(-d).max(-1)
        inside = (score > self.part.settings["threshold"]).tolist()
        edits = [self.part.in_use[j] for j in nearest.tolist()]
        return [
            (i, asked(self.part.rows[i], row)) if near else None
            for i, row, near in zip(edits, ids, inside, strict=True)
        ]

    @override
    def size(self, row: Scoped) -> int:
        return len(row[1])

    @override
    def logprobs(self, rows: Sequence[Scoped], targets: Sequence[Sequence[int]]) -> list[Tensor]:
        h = self.helpers
        found, lengths = h.counterfactual.answered(h.vectors, [row for _, row in rows], targets)
        return list(found.cpu().split(lengths))

    @override
    def written(
        self, rows: Sequence[Scoped], stop: StopRule, choose: Choose, numbers: Sequence[int]
    ) -> list[list[int]]:
        h = self.helpers
        return h.counterfactual.continued(h.vectors, [row for _, row in rows], stop, choose, numbers)

    @override
    def lines(self, rows: Sequence[Scoped]) -> list[str]:
        log = self.part.log
        return [f"{self.part.kind}: edit {log[i].id}, {log[i].text!r}" for i, _ in rows]


def vocabulary(lm: HFLM) -> int:
    """How many tokens the model reads and predicts. Raises :class:`Unsupported` where these are two numbers."""
    (rows, *_), (out, *_) = (
        weights.shape_of(lm.model, f"{path}.weight") for path in (lm.sites.embed, lm.sites.lm_head)
    )
    if rows != out:
        raise Unsupported(f"the model reads {rows} tokens and predicts {out}; a small model beside it needs as many")
    return rows
