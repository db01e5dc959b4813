"""RAG and MemPrompt: the facts that a prompt is about, looked up and prepended."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import State, Tags
from errata.methods.memory.reading import GRID, quantile
from errata.methods.prompting.method import PromptMethod
from errata.methods.prompting.retrieval import default_encoder, index
from errata.methods.settings import setting
from errata.methods.texts import texts_of
from errata.model.hf import HFLM
from errata.types import Case


@dataclass(frozen=True, kw_only=True)
class Threshold(PromptMethod):
    """Prepends facts that are near a prompt: ``prepare`` measures how near other questions lie to each other."""

    needs_prepare: ClassVar[bool] = True
    tags: ClassVar[Tags] = replace(PromptMethod.tags, memory=True)

    named: float = setting(
        1.0, "the share of the subject's words that a question must name; 0 where it may go by another name", most=1
    )
    near: float | None = setting(None, "the least cosine of prompts: what `share` of pairs of different questions pass")
    share: float = setting(0.02, "of such pairs", most=1)
    texts: int = setting(512, "questions that are compared", least=2)

    @override
    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """State with quantiles of the cosines of pairs of different questions: of the texts or cases given, else the
        cases or texts that go with the model, else text sampled from it. Raises :class:`BadInput` for too few."""
        lm.check()
        encoder = self.encoder or default_encoder()
        if data is None:
            data = lm.resources.cases() if lm.resources.cases else texts_of(lm, None, self.seed)
        questions = tuple(dict.fromkeys(islice((q for q in map(_question, data) if q), self.texts)))
        if len(questions) < 2:
            raise BadInput("fewer than two different questions to compare; give more texts or cases")
        pairs = np.sort(index(encoder, questions).near(questions)[np.triu_indices(len(questions), 1)])
        grid = np.linspace(0, len(pairs) - 1, GRID).round().astype(int)
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": f"how alike {len(questions)} questions are",
            "encoder": encoder,
        }
        return State({"alike": torch.from_numpy(pairs[grid].copy())}, info)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        """With ``near`` as the state has it. Raises :class:`BadInput` for one that does not say."""
        resolved = super().resolve(lm, state)
        if "alike" not in state.tensors:
            raise BadInput("this state does not say how alike questions are; make one with this method's prepare")
        if self.near is not None:
            return resolved
        return replace(resolved, near=quantile(state.tensors["alike"], 1 - self.share))


@dataclass(frozen=True, kw_only=True)
class RAG(Threshold):
    """Facts whose subject is named and whose prompt is similar; any other prompt goes to the model unchanged."""

    name: ClassVar[str] = "rag"
    paper: ClassVar[str] = "Lewis et al. 2020, Retrieval-Augmented Generation, arXiv:2005.11401 (edits as documents)"

    most: int = setting(4, "facts before a prompt", above=0)

    @override
    def part_settings(self, lm: HFLM) -> dict[str, Any]:
        layout = {"fact": lm.resources.templates.get("fact", "Fact: {fact}\n"), "layout": "{facts}{prompt}"}
        return {"near": self.near, "named": self.named, "most": self.most, **layout}


@dataclass(frozen=True, kw_only=True)
class MemPrompt(Threshold):
    """The nearest fact behind a prompt that is near the one it corrects, and the prompt again."""

    name: ClassVar[str] = "memprompt"
    paper: ClassVar[str] = "Madaan et al. 2022, Memory-assisted prompt editing, arXiv:2201.06009"

    @override
    def part_settings(self, lm: HFLM) -> dict[str, Any]:
        layout = lm.resources.templates.get("reminder", "{prompt}\nclarification: {facts}\n{prompt}")
        return {"near": self.near, "named": self.named, "most": 1, "fact": "{fact}", "layout": layout}


def _question(item: Any) -> str:
    """The prompt of a case, or the first sentence of a text."""
    if isinstance(item, Case):
        return item.edits[0].prompt
    if not isinstance(item, str):
        raise BadInput(f"questions are compared by means of texts or cases; found {type(item).__name__}")
    return item.strip().split("\n")[0].split(". ")[0]
