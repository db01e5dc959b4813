"""What a method is: a frozen dataclass of hyper-parameters with ``prepare`` and ``edit``, which returns a patch."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, cast

from errata.answers import normalise
from errata.errors import BadInput, NeedsPrepare, Refused, Unsupported
from errata.methods.isolation import alone, frozen_rng, undisturbed
from errata.methods.outcomes import Outcome, amended, answered, searched, warn
from errata.methods.restating import restated
from errata.methods.settings import checked, setting
from errata.methods.state import State as State  # who writes a method finds it here
from errata.model.fingerprint import versions
from errata.model.hf import HFLM
from errata.model.size import Size, Step, Work
from errata.patch.patch import EMPTY, Patch
from errata.patch.schema import Sizes
from errata.types import Edit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tags:
    """What code that runs all methods must know of each, so that it holds no list of names (as scikit-learn's tags).

    ``quick``: settings under which an edit of a tiny random model takes seconds and raises the edit's own score.
    ``reads_context``: edits act through the context or the contrast of prompts, which a random model cannot use.
    ``runs_model``: ``edit`` runs the model. ``memory``: each edit is an entry of one part, which acts for its own
    prompts alone, in every verb. ``prepares_with``: what ``prepare`` reads; of what reads either, cases say more.
    ``mixtures``: whether it edits mixtures of experts. ``restates``: an earlier edit that a new one contradicts in
    other words is made again beside it, with its answer (:mod:`errata.methods.restating`); of changes of weights alone.
    """

    quick: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reads_context: bool = False
    runs_model: bool = True
    memory: bool = False
    prepares_with: Literal["texts", "cases", "either"] = "texts"
    mixtures: bool = True
    restates: bool = False


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A frozen dataclass of hyper-parameters with two verbs: ``prepare`` once per model, ``edit`` once per batch.

    A setting that is None is resolved relative to the model when ``edit`` runs; its value stands in ``patch.meta``. A
    setting of a wrong type or out of bounds raises :class:`BadInput` at construction.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    stores: ClassVar[str]
    needs_prepare: ClassVar[bool] = False
    tags: ClassVar[Tags] = Tags()
    holds: ClassVar[type[Any] | None] = None  # declares what a state must hold (errata.patch.schema)

    seed: int = setting(0, "of all random numbers", most=2**32 - 1)

    def __init_subclass__(cls, **options: Any) -> None:
        """``prepare`` is for the model itself, as ``edit`` is."""
        super().__init_subclass__(**options)
        if "prepare" in cls.__dict__:
            cls.prepare = alone(cls.prepare)

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, checked(type(self), f.name, getattr(self, f.name)))

    @property
    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """What the method must compute once for a model before its first edit; an empty state where that is nothing."""
        return State()

    def check_state(self, lm: HFLM, state: State) -> None:
        """Raises :class:`BadInput` unless the state is of this model and holds what the method reads, and
        :class:`NeedsPrepare` for an empty one that must hold something."""
        state.check(lm)
        if self.needs_prepare and not (state.tensors or state.info):
            raise NeedsPrepare(f"{self.name} needs a state: state = method.prepare(lm), then edit(lm, edits, state)")
        if self.holds is not None and (state.tensors or state.info):
            state.check_holds(self.holds, self.name, self.state_sizes(lm))

    def state_sizes(self, lm: HFLM) -> Sizes:
        """The sizes in the shapes of a state that the model says."""
        return {}

    def resolve(self, lm: HFLM, state: State) -> Self:
        """The method with every setting that was None filled in for this model."""
        return self

    def edit(self, lm: HFLM, edits: Sequence[Edit], state: State | None = None, prior: Patch = EMPTY) -> Patch:
        """The whole next patch: ``prior`` and these edits. The model is left as it was.

        How each edit ended stands in ``patch.meta`` (``made[-1]["outcomes"]``, by id): ``loss``, the mean −log p of a
        target token with the patch in force; ``met``, whether every one is the arg-max; of a text ``recalled``, the
        share of them in front of the first that is not; and of methods that search, ``search_loss``, where the search
        ended, and ``search_met``, whether that is what it was to reach. Edits that are not met are named in a warning,
        and so are edits that contradict each other.

        Raises :class:`NeedsPrepare` without a state that the method needs, :class:`WrongModel` for the state or patch
        of another model, :class:`BadInput` for what is no edit, :class:`Refused` where a number of the new patch is not
        finite.
        """
        is_hflm = isinstance(cast(Any, lm), HFLM)  # a wrapper in force is another LM
        if not is_hflm:
            raise Unsupported(
                f"a method edits a model that errata.load gave, found {type(lm).__name__}; "
                "where a patch is in force, edit the model itself, with that patch as `prior`"
            )
        state = State() if state is None else state
        with undisturbed(lm):
            edits = _edits(edits)
            prior.check(lm)
            if not edits:
                return prior
            self.check_state(lm, state)
            return self._made(lm, edits, state, prior)

    def _made(self, lm: HFLM, edits: list[Edit], state: State, prior: Patch) -> Patch:
        """The patch of :meth:`edit`, whose arguments are checked."""
        start = time.perf_counter()
        with frozen_rng(self.seed), searched() as found:
            resolved = self.resolve(lm, state)
            again = restated(lm, edits, prior) if self.tags.restates else []
            patch = resolved._edit(lm, [*edits, *again], state, prior)
        if where := patch.not_finite():
            raise Refused(
                f"{self.name} made a patch in which {where} is no finite number, so there is none; load the model in "
                "float32, or lower the method's steps or rate"
            )
        answers = answered(lm, edits, patch) if self.tags.runs_model else {}
        outcomes = {e.id: {**answers.get(e.id, {}), **found.get(e.id, {})} for e in edits}
        warn(self.name, edits, outcomes)
        earlier = {id: outcome for id, outcome in found.items() if id not in outcomes}
        meta = {**prior.meta, "made": [amended(made, earlier) for made in prior.meta.get("made", ())]}
        seconds = time.perf_counter() - start
        return self._with_meta(patch, lm, resolved, edits, replace(prior, meta=meta), outcomes, seconds)

    def record(self, lm: HFLM) -> dict[str, Any]:
        """What a call's record in ``patch.meta`` says besides; the settings of ``self`` are resolved."""
        return {}

    def without(
        self, lm: HFLM, patch: Patch, edit_id: str, state: State | None = None, *, search: bool = False
    ) -> tuple[Patch, str]:
        """The patch as if an edit that this method made had never been made, and how that was had, in words.

        Without a ``state`` the method prepares one. ``search``: what depends on the edit is searched for anew. Raises
        :class:`Unsupported` where the method cannot. :func:`errata.reverted` calls it.
        """
        raise Unsupported(
            f"{self.name} cannot take one edit out of a patch exactly; keep the patch from before it, and make the "
            "later edits again"
        )

    def cost(self, size: Size, work: Work) -> list[Step]:
        """What the method takes, step by step. A method that does not say so gets bounds of its memory by its tags."""
        activations = size.kept * size.depth * max(size.lm.budget, work.prompt)
        counted: Any = {"flop": None, "verb": "edit"}
        before = [Step("prepare", "prepare", None, note="not counted")] if self.needs_prepare else []
        if self.tags.reads_context or not self.tags.runs_model:
            note = "operations are not counted"
            return [*before, Step("edit", **counted, device=size.passing(size.lm.budget), note=note)]
        if self.tags.memory:
            note = "operations are not counted; no weight is copied"
            return [*before, Step("edit", **counted, device=activations, note=note)]
        copies = 8.0 * size.parameters
        note = "operations are not counted; at most: a copy and a gradient of every weight, float32"
        return [*before, Step("edit", **counted, device=copies + activations, host=4.0 * size.parameters, note=note)]

    def lighter(self, lm: HFLM) -> Mapping[str, "Method"]:
        """The method with settings that take less memory, by what to set: tried where a plan does not fit."""
        return {}

    @abstractmethod
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        """``prior`` and these edits, with ``parts`` and ``memory``; the settings of ``self`` are resolved."""

    def _with_meta(
        self,
        patch: Patch,
        lm: HFLM,
        resolved: "Method",
        edits: Sequence[Edit],
        prior: Patch,
        outcomes: Mapping[str, Outcome],
        seconds: float,
    ) -> Patch:
        record = {
            "method": self.name,
            "settings": self.settings,
            "resolved": resolved.settings,
            "edits": [edit.to_json() for edit in edits],
            "outcomes": {id: outcome for id, outcome in outcomes.items() if outcome},
            "versions": versions(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "dtype": str(lm.dtype).removeprefix("torch."),
            **lm.asked.record,
            **resolved.record(lm),
        }
        if rounded := patch.rounded_away(lm):
            record["rounded"] = {name: round(share, 4) for name, share in rounded.items()}
        meta = {
            **prior.meta,
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "made": [*prior.meta.get("made", ()), record],
        }
        return replace(patch, meta=meta)


def _edits(edits: Sequence[Edit]) -> list[Edit]:
    if isinstance(edits, Edit):
        raise BadInput("edit takes a list of edits: method.edit(lm, [edit])")
    for edit in edits:
        if not isinstance(cast(Any, edit), Edit):
            raise BadInput(f"expected errata.Edit, found {type(edit).__name__}: {edit!r}")
    first: dict[str, Edit] = {}
    for edit in edits:
        other = first.setdefault(" ".join(edit.prompt.casefold().split()), edit)
        if normalise(other.target_new) != normalise(edit.target_new):
            log.warning(
                "two edits contradict each other: %r shall be answered %r (edit %s) and %r (edit %s); at most one can "
                "hold: leave one out, or make the later one in a call of its own, with the first patch as prior",
                *(edit.prompt, other.target_new, other.id, edit.target_new, edit.id),
            )
    return list(edits)
