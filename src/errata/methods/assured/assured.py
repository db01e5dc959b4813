"""Assured: edits by one method, asked, tried again, and what still fails given to another."""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

from typing_extensions import override

from errata.errors import BadInput
from errata.methods.assured.asking import Asked, again, answers_to, whole
from errata.methods.assured.endings import MEMORY, WEIGHTS, Made, held, note_endings
from errata.methods.assured.hops import ASK, EXAMPLES, STEP, HopChain
from errata.methods.assured.named import check_state, joined, named, part_of, read_by, text_of
from errata.methods.assured.questions import Asker, Learned, Question, learned, with_answers
from errata.methods.base import Method, Tags
from errata.methods.isolation import frozen_rng
from errata.methods.memory.log import EditRecord
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.size import Size, Step, Work
from errata.patch.patch import Patch
from errata.types import Case, Edit

log = logging.getLogger(__name__)


class Prepared(Learned):
    """What the state holds: what cases teach, and what each of the two methods says of its own state."""

    states: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Assured(Method):
    """Edits by ``weights``, asks, tries again in the words that failed, and gives what still fails to ``memory``.

    Asked are each edit's prompt and its fact in other words, what else is known of its subject and the same of other
    subjects, and the edits of earlier calls. ``weights`` and ``memory`` are methods of the registry and their settings,
    as text ("memit preserve=8") or as what ``errata.method`` gives. With ``hops`` questions over several hops are
    followed through the edits. An edit's outcome says where its answer comes from (``ended``: weights, memory or
    nowhere) and ``why``; ``met`` is whether its prompt is answered with the target, generated.
    """

    name: ClassVar[str] = "assured"
    family: ClassVar[str] = "composed"
    paper: ClassVar[str] = "none: methods of others composed; the chain of hops as Press et al. 2022, arXiv:2210.03350"
    stores: ClassVar[str] = "what its two methods store, and the edits as text"
    needs_prepare: ClassVar[bool] = True
    holds: ClassVar[type[Any] | None] = Prepared
    tags: ClassVar[Tags] = Tags(
        quick={"weights": "memit contexts=0", "memory": "grace steps=30", "asked": 2, "rounds": 1},
        prepares_with="either",
    )

    weights: str = setting("memit preserve=4.0 history=True", "the method that edits, and its settings")
    memory: str = setting("rag", "the method that holds what the weights do not, and its settings")
    asked: int = setting(12, "prompts at most for each edit, and as many of what should stay", above=0)
    earlier: int = setting(4, "prompts for each edit of an earlier call, asked again", above=0)
    rounds: int = setting(3, "times that the weights are edited again where an answer is wrong")
    hops: bool = setting(True, "questions over several hops are followed through the edits")
    most_hops: int = setting(4, "steps of a question over several hops, at most", above=0)

    @override
    def __post_init__(self) -> None:
        for name in (WEIGHTS, MEMORY):
            given: Any = getattr(self, name)
            object.__setattr__(self, name, text_of(given) if isinstance(given, Method) else given)
        super().__post_init__()
        for name in (WEIGHTS, MEMORY):
            if self._named(name).name == self.name:
                raise BadInput(f"assured's {name} is a method that it asks, not assured itself; give another")

    def _named(self, role: str) -> Method:
        return named(getattr(self, role))

    # The two verbs ------------------------------------------------------------------------------------

    @override
    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """What both methods prepare, and templates of what to ask: of the cases given, else of those that go with the
        model. Texts among the data are for the methods that read texts."""
        given = None if data is None else list(data)
        if given is None and lm.resources.cases is not None:
            cases = lm.resources.cases()
        else:
            cases = [item for item in given or () if isinstance(item, Case)]
        if not cases:
            log.warning("no cases given: edits are asked behind contexts, as there are no other words to ask them in")
        states = {role: self._named(role) for role in (WEIGHTS, MEMORY)}
        prepared = {role: made.prepare(lm, read_by(made, given)) for role, made in states.items() if made.needs_prepare}
        tensors, infos = joined(prepared)
        what = f"{' and '.join(made.name for made in states.values())}, and how {len(cases)} cases ask"
        model = {"name": lm.name, "fingerprint": lm.fingerprint}
        return State(tensors, {"model": model, "what": what, "states": infos, **learned(cases)})

    @override
    def check_state(self, lm: HFLM, state: State) -> None:
        super().check_state(lm, state)
        for role in (WEIGHTS, MEMORY):
            check_state(lm, self._named(role), state, role)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        """With the settings of both methods as they resolve."""
        resolved = {role: text_of(self._named(role).resolve(lm, part_of(state, role))) for role in (WEIGHTS, MEMORY)}
        return replace(self, **resolved)

    @override
    def cost(self, size: Size, work: Work) -> list[Step]:
        """What ``weights`` takes; a round more takes as much for the edits that failed."""
        asking = Step("asking", "edit", None, note="and further rounds for what is not answered are not counted")
        return [*self._named(WEIGHTS).cost(size, work), asking]

    @override
    def lighter(self, lm: HFLM) -> dict[str, Self]:
        lighter = [text_of(made) for made in self._named(WEIGHTS).lighter(lm).values()]
        return {f"weights={shlex.quote(text)}": replace(self, weights=text) for text in lighter}

    def _by(self, role: str, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        made = self._named(role)
        with frozen_rng(made.seed):
            return made._edit(lm, edits, part_of(state, role), prior)

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        chain = next((part for part in prior.of_kind(HopChain) if part.settings["method"] == self.name), None)
        before = prior if chain is None else prior.swap(chain, None)
        asker = Asker(lm, cast(Learned, state.info), self.asked, self.seed)
        questions = self._questions(asker, edits, before)
        asked = Asked.of(lm, self._by(WEIGHTS, lm, edits, state, before), questions)
        made = Made(asked, failed=frozenset(question.of for question in asked.wrong), given=held(before))
        known = {edit.id: edit for edit in (*self._earlier(before), *edits)}
        made = self._remembered(lm, self._tried(lm, made, state), state, known)
        patch = made.asked.patch
        if self.hops:
            patch += Patch((self._chain(lm, edits, asker.known, chain),))
        note_endings(lm, patch, made, {edit.id for edit in edits})
        return patch

    # Asking -------------------------------------------------------------------------------------------

    def _questions(self, asker: Asker, edits: Sequence[Edit], prior: Patch) -> list[Question]:
        """All that is asked of these edits, and of those of earlier calls that no newer one has taken the place of."""
        earlier = {asker.fact(edit): edit for edit in self._earlier(prior)}
        for edit in edits:
            earlier.pop(asker.fact(edit), None)
        newest = {asker.fact(edit): edit for edit in edits}
        own = [question for edit in newest.values() for question in asker.own(edit)]
        again = [question for edit in earlier.values() for question in asker.own(edit, self.earlier)]
        staying = asker.staying(edits, list(earlier.values()))
        return [*own, *again, *with_answers(staying, answers_to(asker.lm, prior, staying))]

    def _earlier(self, prior: Patch) -> list[Edit]:
        """The edits that this method made, in order."""
        made = [made for made in prior.meta.get("made", ()) if made["method"] == self.name]
        return [Edit.from_json(edit) for record in made for edit in record["edits"]]

    def _tried(self, lm: HFLM, made: Made, state: State) -> Made:
        """After more rounds, while answers are wrong; a round that makes it worse is none."""
        for _ in range(self.rounds):
            wrong = made.asked.wrong
            if not wrong:
                break
            tried = Asked.of(lm, self._by(WEIGHTS, lm, again(wrong), state, made.asked.patch), made.asked.questions)
            if tried.cost >= made.asked.cost:
                break
            made = replace(made, asked=tried, again=made.again | {question.of for question in wrong})
        return made

    def _remembered(self, lm: HFLM, made: Made, state: State, known: Mapping[str, Edit]) -> Made:
        """With the memory holding what is wrong: first the edits as they were asked for, then in the words that fail.

        What makes it no better is not kept. ``known`` are all edits by their ids.
        """
        for told_of in (lambda wrong: whole(wrong, known), again):
            if not (wrong := made.asked.wrong):
                break
            told = self._by(MEMORY, lm, told_of(wrong), state, made.asked.patch)
            asked = Asked.of(lm, told, made.asked.questions)
            if asked.cost < made.asked.cost:
                made = replace(made, asked=asked, given=made.given | {q.of for q in wrong if not q.stays})
        return made

    def _chain(self, lm: HFLM, edits: Sequence[Edit], known: Learned, chain: HopChain | None) -> HopChain:
        """The part that follows questions over several hops, with these edits too."""
        held = () if chain is None else chain.log
        step = lm.resources.templates.get("step")
        settings = {
            "method": self.name,
            "rounds": self.most_hops,
            "examples": EXAMPLES if step is None else "",
            "step": step or STEP,
            "ask": "{question}" if lm.chat else ASK,
            "asks": [template for group in known["asks"] for template in group],
            "hops": known["hops"],
        }
        return HopChain((*held, *map(EditRecord.of, edits)), settings)
