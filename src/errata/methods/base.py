"""What a method is: a frozen dataclass of hyper-parameters with ``prepare`` and ``edit``, which returns a patch."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from errata.answers import normalise
from errata.errors import BadInput, NeedsPrepare, Refused, Unsupported, WrongModel
from errata.files import cache_file, check_writable
from errata.locks import in_turn
from errata.methods.outcomes import Outcome, amended, answered, searched, warn
from errata.methods.restating import restated
from errata.methods.settings import checked, setting
from errata.model.fingerprint import versions
from errata.model.hf import HFLM
from errata.model.size import Size, Step, Work
from errata.patch.header import Model, Record
from errata.patch.patch import EMPTY, Patch
from errata.patch.schema import Shape, Sizes, bound, held, read
from errata.tensor_files import read_tensors, write_tensors
from errata.types import Edit

log = logging.getLogger(__name__)
_DRAWING = threading.RLock()


@dataclass(frozen=True)
class State:
    """What ``prepare`` computed once for a model: tensors, and facts about them as JSON."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _checked: set[str] = field(default_factory=set[str], repr=False, compare=False)

    def once(self, name: str, make: Any) -> Any:
        """The result of ``make()``, computed the first time (factors of a large matrix, say); never saved."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def check(self, lm: HFLM) -> None:
        """Raises :class:`WrongModel` if this was computed for another model."""
        model = self.info.get("model")
        if model and model["fingerprint"] != lm.fingerprint:
            raise WrongModel(
                f"this state was prepared for {model.get('name') or '?'} ({model['fingerprint']}), and the model is "
                f"{lm.name or '?'} ({lm.fingerprint}); call prepare on this model"
            )

    def check_for(self, **expected: Any) -> None:
        """Raises :class:`BadInput` unless ``info`` has these values (of a method, a layer)."""
        for name, value in expected.items():
            if name not in self.info:
                raise BadInput(
                    f"this state is another method's: {name} = {value} is expected, and it has no {name}; "
                    "make one with this method's prepare"
                )
            if (found := self.info[name]) != value:
                raise BadInput(f"this state was prepared for {name} = {found}, not {value}; prepare anew")

    def tensor(self, name: str, shape: Shape, **sizes: int) -> Tensor:
        """The tensor of that name. Raises :class:`BadInput` where there is none of that type and shape."""
        if name not in self.tensors:
            raise BadInput(f"this state holds no {name}; make one with this method's prepare")
        try:
            shape.bind(name, self.tensors[name], sizes)
            shape.check(name, self.tensors[name], sizes)
        except BadInput as error:
            raise BadInput(f"of this state {error}; prepare anew") from error
        return self.tensors[name]

    def check_holds(self, declares: type[Any], method: str, sizes: Sizes) -> None:
        """Raises :class:`BadInput`, naming what is missing or of another kind, unless the state holds all that a class
        declares (:mod:`errata.patch.schema`); ``sizes`` are known ones. Looked at once."""
        if (what := f"{declares.__qualname__} {sizes}") in self._checked:
            return
        try:
            bound([("", declares, held(declares, self.info, self.tensors, more=True))], dict(sizes))
        except BadInput as error:
            raise BadInput(
                f"this state is of another method or of an earlier version: {error}; make one with {method}'s prepare"
            ) from error
        self._checked.add(what)

    def save(self, path: str | Path) -> None:
        """Writes the tensors and ``info`` to one safetensors file. Raises :class:`BadInput`."""
        write_tensors(Path(path), self.tensors, self.info, "state")

    @classmethod
    def load(cls, path: str | Path, *, mapped: bool = False) -> "State":
        """The state that :meth:`save` wrote. Raises :class:`BadInput` where there is none, or it is damaged.

        With ``mapped`` its tensors stay in the file, which the system reads as they are used.
        """
        tensors, info = read_tensors(Path(path), "state", mapped=mapped)
        try:
            read(Info, info)
        except BadInput as error:
            raise BadInput(f"{path}: {error}; prepare anew") from error
        return cls(tensors, info)


class Info(Record):
    """``State.info``: what all methods' states say."""

    model: Model | None = None


def cached_state(
    kind: str, content: Any, make: Callable[[], State], check: Callable[[State], object], *, mapped: bool = False
) -> State:
    """The state that the cache holds for ``content`` (JSON), else the result of ``make()``, which is cached.

    With ``mapped`` its tensors stay in the file, in both cases. A file that is damaged, or whose state ``check``
    refuses by :class:`BadInput`, is made again. That is logged, and, before the work, that the cache cannot be written:
    the state is in memory alone then. While another process makes it, this one waits, and reads what that has made.
    """
    try:
        file = cache_file(kind, content)
        there = file.is_file()
        if there and (state := _kept(file, check, mapped)) is not None:
            return state
        check_writable(file)
    except (BadInput, OSError) as error:  # where a folder above cannot even be looked into, is_file says so
        log.warning("what is prepared now is kept in memory alone: %s (ERRATA_CACHE names the folder)", error)
        return make()
    with in_turn(file.with_name(f".{file.name}.lock"), f"{kind} are prepared") as waited:
        if (waited or not there) and file.is_file() and (state := _kept(file, check, mapped)) is not None:
            return state
        state = make()
        try:
            state.save(file)
        except BadInput as error:  # the disk is full by now: the state is good all the same
            log.warning("%s", error)
            return state
        return State.load(file, mapped=True) if mapped else state


def _kept(file: Path, check: Callable[[State], object], mapped: bool) -> State | None:
    """The state in a file of the cache; None, which is logged, where that is of no use."""
    try:
        state = State.load(file, mapped=mapped)
        check(state)
        return state
    except BadInput as error:
        log.warning("what the cache holds is of no use, and computed again: %s: %s", file.name, error)
        return None


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
            cls.prepare = _undisturbed(cls.prepare)

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


@contextmanager
def undisturbed(lm: HFLM) -> Iterator[None]:
    """Context manager: ``lm`` is the model itself, nobody else runs it, and gradients are formed in its own type.

    Raises :class:`Unsupported` for a view with a patch in force.
    """
    device = lm.device.type
    automatic = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    with lm.alone(), torch.inference_mode(False), torch.enable_grad(), automatic:
        lm.check()
        if not lm.unedited:
            raise Unsupported("a patch is in force here; edit the model itself, with that patch as `prior`")
        yield


def _undisturbed(prepare: Callable[..., State]) -> Callable[..., State]:
    """``prepare``, on an undisturbed model."""

    @wraps(prepare)
    def alone(self: Method, lm: HFLM, data: Iterable[Any] | None = None, **more: Any) -> State:
        with undisturbed(lm):
            return prepare(self, lm, data, **more)

    return alone


@contextmanager
def frozen_rng(seed: int) -> Iterator[None]:
    """Context manager: random numbers inside depend on ``seed`` alone, and those outside are as without it.

    That holds for the CPU's generator and those of every accelerator in use. There is one of each in a process, so
    threads take turns, whatever models they edit.
    """
    with _DRAWING, _seeded(seed):
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices: Any = None if accelerator is None else torch.get_device_module(accelerator)
    if devices is not None and not getattr(devices, "is_initialized", lambda: True)():
        devices = None  # nothing is on them, and to ask them would claim their memory
    every = "_all" if hasattr(devices, "get_rng_state_all") else ""
    of_cpu, of_devices = torch.get_rng_state(), devices and getattr(devices, f"get_rng_state{every}")()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach those that are not in use, too
        if devices is not None:
            getattr(devices, f"manual_seed{every}")(seed)
        yield
    finally:
        torch.set_rng_state(of_cpu)
        if devices is not None:
            getattr(devices, f"set_rng_state{every}")(of_devices)


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


CLOSE = 1e-2  # relative difference of two preparations of one model at most


def close(a: Any, b: Any) -> bool:
    """Whether two resolved settings are equal within the rounding of what they were resolved from."""
    return abs(a - b) <= CLOSE * abs(a) if isinstance(a, float) and isinstance(b, float) else a == b
