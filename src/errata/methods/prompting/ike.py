"""IKE and ICE: facts, and examples of how to use them, before the prompt."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, ClassVar

from typing_extensions import TypedDict, override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.prompting.method import PromptMethod
from errata.methods.prompting.prompted import Example
from errata.methods.retrieval import default_encoder
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.tokens import joined
from errata.types import Case

UPDATES, RETAINS = ("paraphrase", "question"), ("neighborhood", "same_subject", "unrelated")
RATIO = {"copy": 1, "update": 3, "retain": 4}  # of examples: IKE, section 4.1
NEAREST: dict[str, Any] = {  # the settings of both parts: the nearest fact, however far
    "most": 1,
    "near": -2.0,  # below every cosine
    "named": 0.0,
    "fact": "New Fact: {fact}\n",  # as released, without a full stop: https://github.com/Zce1112zslx/IKE, icl.py
    "layout": "{facts}Prompt: {prompt}",
    "ended": False,
}


@dataclass(frozen=True, kw_only=True)
class ICE(PromptMethod):
    """The new fact before every prompt, the nearest where there are many."""

    name: ClassVar[str] = "ice"
    paper: ClassVar[str] = "Zheng et al. 2023, Can We Edit Factual Knowledge by In-Context Learning?, arXiv:2305.12740"
    tags: ClassVar[Tags] = replace(PromptMethod.tags, memory=True)

    @override
    def part_settings(self, lm: HFLM, state: State) -> dict[str, Any]:
        return NEAREST


class Pool(TypedDict):
    """What IKE's state holds."""

    encoder: str
    examples: list[Example]


@dataclass(frozen=True, kw_only=True)
class IKE(PromptMethod):
    """ICE after examples of facts that are copied, that update what is asked, and that leave it as it is.

    The last example is the fact itself, copied. Where not all fit, each kind is cut alike, the farthest first.
    """

    name: ClassVar[str] = "ike"
    paper: ClassVar[str] = ICE.paper
    stores: ClassVar[str] = "the facts and a pool of examples as text; no weight changes"
    needs_prepare: ClassVar[bool] = True
    holds: ClassVar[type[Any] | None] = Pool
    tags: ClassVar[Tags] = replace(PromptMethod.tags, memory=True, prepares_with="cases")

    shown: int = setting(32, "examples before each prompt: the paper's", above=0)
    fill: float = setting(
        0.5, "of what the model reads, that they may take (paper: 32 of 40 tokens each, in 2,048: 0.6)"
    )

    @override
    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """The pool of examples: from the cases given, else those that go with the model. :class:`BadInput` for none."""
        if data is None:
            if lm.resources.cases is None:
                raise BadInput(
                    f"ike's examples are made of cases, and none go with {lm.name or 'this model'}: "
                    "prepare(lm, errata.cases(...)), or --data with a file of cases; the method ice does "
                    "without"
                )
            data = lm.resources.cases()
        pool = [example for case in data for example in examples_of(case)]
        if missing := [kind for kind in RATIO if kind not in {example.kind for example in pool}]:
            raise BadInput(f"no case has what an example of kind {' or '.join(missing)} is made of; give other cases")
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": f"{len(pool)} examples",
            "encoder": self.encoder or default_encoder(),
            "examples": [asdict(example) for example in pool],
        }
        return State({}, info)

    @override
    def examples(self, state: State) -> tuple[Example, ...]:
        return tuple(Example(**example) for example in state.info["examples"])

    @override
    def part_settings(self, lm: HFLM, state: State) -> dict[str, Any]:
        parts = sum(RATIO.values())
        shown = {kind: -(-self.shown * part // parts) for kind, part in RATIO.items()}
        return {**NEAREST, "fill": self.fill, "shown": shown, "own": True}


def examples_of(case: Any) -> Iterator[Example]:
    """Examples that a case gives, in the paper's ratio: its edit itself, in other words, and beside what stays."""
    if not isinstance(case, Case):
        raise BadInput(f"examples are made of cases; found {type(case).__name__}")
    edit = case.edits[0]
    fact = joined(edit.prompt, edit.target_new)
    yield Example(fact, edit.prompt, edit.target_new, "copy")
    for kind, kinds in (("update", UPDATES), ("retain", RETAINS)):
        for probe in islice((p for p in case.probes if p.kind in kinds and p.answers), RATIO[kind]):
            yield Example(fact, probe.prompt, probe.answers[0], kind)
