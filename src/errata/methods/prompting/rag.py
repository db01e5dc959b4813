"""RAG and MemPrompt: the facts that a prompt is about, looked up and told before it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch

from errata.errors import BadInput
from errata.methods.base import State
from errata.methods.prompting.base import Prompting
from errata.methods.prompting.retrieval import default_encoder, index
from errata.methods.settings import setting
from errata.methods.texts import texts_of
from errata.model.hf import HFLM
from errata.types import Case

GRID = 10_001  # quantiles of a state


@dataclass(frozen=True, kw_only=True)
class Near(Prompting):
    """A fact is told where it is near: its subject is named, and its prompt is alike."""

    needs_prepare: ClassVar[bool] = True

    named: float = setting(
        1.0, "the share of the subject's words that a question must name; 0 where it may go by another name"
    )
    near: float | None = setting(None, "the least cosine of prompts: what `share` of pairs of different questions pass")
    share: float = setting(0.02, "of such pairs")
    texts: int = setting(512, "questions that are told apart", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1 or self.named > 1 or self.texts < 2:
            raise BadInput(
                f"{self.name} needs a share and a `named` from 0 to 1 and two texts; "
                f"found {self.share}, {self.named} and {self.texts}"
            )

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """How alike different questions are: of the texts or cases given, else the cases or the corpus that go with the
        model, else text sampled from it."""
        lm.check()
        encoder = self.encoder or default_encoder()
        if data is None:
            data = lm.resources.cases() if lm.resources.cases else texts_of(lm, None, self.seed)
        asked = tuple(dict.fromkeys(islice((q for q in map(_question, data) if q), self.texts)))
        if len(asked) < 2:
            raise BadInput("fewer than two different texts to tell questions apart by; give more")
        pairs = np.sort(index(encoder, asked).near(asked)[np.triu_indices(len(asked), 1)])
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": f"how alike {len(asked)} questions are",
            "encoder": encoder,
        }
        grid = np.linspace(0, len(pairs) - 1, GRID).round().astype(int)
        return State({"alike": torch.from_numpy(pairs[grid].copy())}, info)

    def resolve(self, lm: HFLM, state: State) -> Self:
        if "alike" not in state.tensors:
            raise BadInput(f"this state does not say how alike questions are; make one with {self.name}'s prepare")
        alike = state.tensors["alike"]
        near = float(alike[round((1 - self.share) * (len(alike) - 1))]) if self.near is None else self.near
        return replace(super().resolve(lm, state), near=near)

    def rule(self, lm: HFLM) -> dict[str, Any]:
        return {"encoder": self.encoder, "near": self.near, "named": self.named}


def _question(item: Any) -> str:
    """What is asked in a case, or the first sentence of a text."""
    if isinstance(item, Case):
        return item.edits[0].prompt
    if not isinstance(item, str):
        raise BadInput(f"questions are told apart by means of texts or cases; found {type(item).__name__}")
    return item.strip().split("\n")[0].split(". ")[0]


@dataclass(frozen=True, kw_only=True)
class RAG(Near):
    """The facts that are near a prompt are told before it; any other prompt goes to the model unchanged."""

    name: ClassVar[str] = "rag"
    paper: ClassVar[str] = "Lewis et al. 2020, Retrieval-Augmented Generation, arXiv:2005.11401 (edits as documents)"

    most: int = setting(4, "facts that are told at once", above=0)

    def rule(self, lm: HFLM) -> dict[str, Any]:
        layout = {"told": lm.resources.templates.get("fact", "Fact: {fact}\n"), "layout": "{facts}{prompt}"}
        return super().rule(lm) | layout | {"most": self.most}


@dataclass(frozen=True, kw_only=True)
class MemPrompt(Near):
    """What was once put right is said again behind a prompt that is near the one it was about."""

    name: ClassVar[str] = "memprompt"
    paper: ClassVar[str] = "Madaan et al. 2022, Memory-assisted prompt editing, arXiv:2201.06009"

    def rule(self, lm: HFLM) -> dict[str, Any]:
        layout = lm.resources.templates.get("reminder", "{prompt}\nclarification: {facts}\n{prompt}")
        return super().rule(lm) | {"told": "{fact}", "layout": layout, "most": 1}
