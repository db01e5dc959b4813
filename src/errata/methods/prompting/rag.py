"""RAG and MemPrompt: the facts that a prompt asks for, looked up and prepended.

A fact is told where its subject is named and the prompt asks for the same relation. Both are compared as templates,
``{}`` in the subject's place: the words of the subject are alike in all that is asked of it. Two templates ask the
same where the phrasings nearest to them are known from cases to do so; where one is near none, where their cosine says
so. ``near`` is the cosine that ``share`` of pairs about one subject, that ask for different relations, pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, islice, pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict, override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.memory.log import EditRecord
from errata.methods.memory.reading import GRID, quantile
from errata.methods.prompting.method import PromptMethod
from errata.methods.prompting.prompted import ALL, FactPrompt, FactSettings
from errata.methods.retrieval import default_encoder, index
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.texts import texts_of
from errata.patch.schema import Floats
from errata.phrasings import group_index, templates_of
from errata.subjects import mentions, template_of
from errata.types import Case, Kind

if TYPE_CHECKING:
    import numpy.typing as npt

SAME: tuple[Kind, ...] = ("paraphrase", "question")  # what asks for the edited fact in other words


class RelationSettings(FactSettings):
    """The settings of a :class:`RelationPrompt`."""

    phrasings: list[list[str]]


class RelationPrompt(FactPrompt):
    """Facts for prompts that ask for their relation; ``settings`` hold the known ``phrasings``, in groups, too."""

    kind: ClassVar[str] = "facts by relation"
    declares: ClassVar[type[Any]] = RelationSettings

    @cached_property
    def known(self) -> dict[str, int]:
        """Phrasing -> the number of its group."""
        return group_index(self.settings["phrasings"])

    @override
    def keys(self) -> Sequence[str]:
        return [*self.known, *(template_of(fact.prompt, fact.subject, fact.at) for fact in self.facts)]

    @override
    def similarity(self, questions: Sequence[str]) -> "tuple[npt.NDArray[Any], npt.NDArray[Any]]":
        share = self.names.named(questions)  # (b, n)
        near = np.full(share.shape, -1.0, np.float32)
        pairs = np.argwhere(share >= self.settings["named"] - ALL)
        near[tuple(pairs.T)] = self._near(questions, pairs)
        return near, share

    @override
    def retrieved(self, questions: Sequence[str]) -> list[list[EditRecord]]:
        """As of :class:`FactPrompt`; where a subject must be named, by way of the facts of named subjects alone."""
        if not questions or self.settings["named"] <= ALL:
            return super().retrieved(questions)
        pairs, share = self.names.naming(questions, self.settings["named"] - ALL)
        near = self._near(questions, pairs)
        fires = (near >= self.settings["near"]) & np.array([bool(questions[int(i)].strip()) for i in pairs[:, 0]], bool)
        rows, facts, wanted = pairs[fires, 0], pairs[fires, 1], (near + share)[fires]
        ends = np.searchsorted(rows, np.arange(len(questions) + 1)).tolist()
        return [self._chosen(wanted[a:b], facts[a:b]) for a, b in pairwise(ends)]

    def _near(self, questions: Sequence[str], pairs: "npt.NDArray[Any]") -> "npt.NDArray[np.float32]":
        """(p,): how alike questions and facts are, by pairs of their numbers (p, 2), without the fact's subject."""
        asked = [_template(questions[int(i)], self.facts[int(j)].subject) for i, j in pairs]
        row = {template: u for u, template in enumerate(dict.fromkeys(asked))}
        at = np.array([row[template] for template in asked], np.int64)
        return self._alike(list(row), at, pairs[:, 1]).astype(np.float32) if asked else np.empty(0, np.float32)

    def _alike(self, templates: Sequence[str], at: "npt.NDArray[Any]", facts: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
        """(p,): the cosine of the templates ``at`` (p,) with those of ``facts`` (p,); at least ``near`` where both are
        known to ask the same, and -1 where they are known not to."""
        product, of, k = self.index.product(templates), self.index.of, len(self.known)
        cosine, asked, groups = product[at, of[k + facts]], self._groups(product[:, of[:k]])[at], self.groups[facts]
        both = (asked >= 0) & (groups >= 0)
        by_group = np.where(asked == groups, np.maximum(cosine, self.settings["near"]), -1.0)
        return np.where(both, by_group, cosine)

    @cached_property
    def groups(self) -> "npt.NDArray[Any]":
        """(n,): the group of each fact's template; -1 where no known phrasing is near."""
        k, index = len(self.known), self.index
        return self._groups(index.product(index.texts)[:, index.of[:k]])[index.of[k:]]

    def _groups(self, near: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
        """(u,): the group of the nearest phrasing, from cosines with all (u, k); -1 where none is near."""
        if not near.shape[1]:
            return np.full(len(near), -1)
        numbers = np.array(list(self.known.values()))
        return np.where(near.max(1) >= self.settings["near"], numbers[near.argmax(1)], -1)


class Alike(TypedDict):
    """What the state holds: quantiles of how alike questions are, by an encoder, and phrasings in groups."""

    alike: Annotated[Tensor, Floats(f"{GRID}")]
    encoder: str
    phrasings: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Threshold(PromptMethod):
    """Prepends facts that a prompt asks for: ``prepare`` learns how alike questions are that ask for other facts."""

    part: ClassVar[type[FactPrompt]] = RelationPrompt
    needs_prepare: ClassVar[bool] = True
    holds: ClassVar[type[Any] | None] = Alike
    tags: ClassVar[Tags] = replace(PromptMethod.tags, memory=True, prepares_with="either")

    named: float = setting(
        1.0, "the share of the subject's words that a question must name; 0 where it may go by another name", most=1
    )
    near: float | None = setting(
        None, "the least cosine of prompts, without their subjects, that ask the same: what `share` of others pass"
    )
    share: float = setting(0.02, "of pairs that ask for different facts", most=1)
    texts: int = setting(512, "cases, or sentences, that are compared", least=2)

    @override
    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """State with the phrasings of the cases given, else of those that go with the model, and with quantiles of
        cosines: of what cases ask of one subject, an edit's prompt and its ``same_subject`` probes; where there are
        none, of phrasings that ask for different facts. Without cases there are no phrasings, and different sentences
        of texts are compared: given, the model's or sampled from it. Raises :class:`BadInput` for too few."""
        encoder = self.encoder or default_encoder()
        if data is None:
            data = lm.resources.cases() if lm.resources.cases else texts_of(lm, None, self.seed, sentences=True)
        items = list(islice(data, self.texts))
        cases, sentences = [item for item in items if isinstance(item, Case)], _sentences(items)
        groups = templates_of(cases, SAME)
        number = group_index([*groups, *([sentence] for sentence in sentences)])
        pairs = _other_questions(cases) or [(a, b) for a, b in combinations(number, 2) if number[a] != number[b]]
        if not pairs:
            raise BadInput("fewer than two different questions to compare; give more texts or cases")
        row = {template: i for i, template in enumerate(dict.fromkeys(one for pair in pairs for one in pair))}
        near = index(encoder, tuple(row)).near(list(row))
        alike = np.sort([near[row[a], row[b]] for a, b in pairs])
        grid = np.linspace(0, len(alike) - 1, GRID).round().astype(int)
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": f"how alike {len(row)} questions are",
            "encoder": encoder,
            "phrasings": groups,
        }
        return State({"alike": torch.from_numpy(alike[grid])}, info)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        """With ``near`` as the state has it."""
        resolved = super().resolve(lm, state)
        if self.near is not None:
            return resolved
        return replace(resolved, near=quantile(state.tensors["alike"], 1 - self.share))

    def told(self, state: State) -> dict[str, Any]:
        """What decides which facts are told, as settings of the part."""
        return {"near": self.near, "named": self.named, "phrasings": state.info["phrasings"]}


@dataclass(frozen=True, kw_only=True)
class RAG(Threshold):
    """Facts whose subject is named and whose relation is asked for; any other prompt goes to the model unchanged."""

    name: ClassVar[str] = "rag"
    paper: ClassVar[str] = "Lewis et al. 2020, Retrieval-Augmented Generation, arXiv:2005.11401 (edits as documents)"

    most: int = setting(4, "facts before a prompt", above=0)

    @override
    def part_settings(self, lm: HFLM, state: State) -> dict[str, Any]:
        layout = {"fact": lm.resources.templates.get("fact", "Fact: {fact}\n"), "layout": "{facts}{prompt}"}
        return {**self.told(state), "most": self.most, **layout}


@dataclass(frozen=True, kw_only=True)
class MemPrompt(Threshold):
    """The nearest fact behind a prompt that asks for it, and the prompt again."""

    name: ClassVar[str] = "memprompt"
    paper: ClassVar[str] = "Madaan et al. 2022, Memory-assisted prompt editing, arXiv:2201.06009"

    @override
    def part_settings(self, lm: HFLM, state: State) -> dict[str, Any]:
        layout = lm.resources.templates.get("reminder", "{prompt}\nclarification: {facts}\n{prompt}")
        return {**self.told(state), "most": 1, "fact": "{fact}", "layout": layout}


def _template(question: str, subject: str) -> str:
    """The question with ``{}`` in the subject's place; as it is where the subject is not there word by word."""
    return template_of(question, subject) if mentions(question, subject) else question


def _other_questions(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Pairs of templates, each once: the prompt of a case's edit, and of what else is asked of its subject."""
    return list(
        dict.fromkeys(
            (case.edits[0].template, _template(probe.prompt, case.edits[0].subject))
            for case in cases
            for probe in case.probes
            if probe.kind == "same_subject"
        )
    )


def _sentences(items: Sequence[Any]) -> list[str]:
    """The first sentence of each text among the items; :class:`BadInput` for what is neither text nor case."""
    for item in items:
        if not isinstance(item, str | Case):
            raise BadInput(f"questions are compared by means of texts or cases; found {type(item).__name__}")
    return [first for text in items if isinstance(text, str) and (first := text.strip().split("\n")[0].split(". ")[0])]
