"""What a method is: hyper-parameters in the constructor, ``prepare`` and ``edit``, a patch in return."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from errata.errors import BadInput, NeedsPrepare, Unsupported, WrongModel
from errata.files import cache_file, read_tensors, write_tensors
from errata.methods.settings import checked, setting
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What ``prepare`` computed once for a model: tensors, and facts about them as JSON."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, make: Any) -> Any:
        """What ``make()`` gives, computed the first time (factors of a large matrix, say); never saved."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def check(self, lm: HFLM) -> None:
        """Raises :class:`WrongModel` if this was computed for another model."""
        made_for = self.info.get("model")
        if made_for and made_for["fingerprint"] != lm.fingerprint:
            raise WrongModel(
                f"this state was prepared for {made_for['name'] or '?'} ({made_for['fingerprint']}), and the model is "
                f"{lm.name or '?'} ({lm.fingerprint}); call prepare on this model"
            )

    def check_for(self, **wanted: Any) -> None:
        """Raises :class:`BadInput` unless this was prepared for what is wanted (a method, a layer), by its ``info``."""
        for name, value in wanted.items():
            if (found := self.info.get(name)) != value:
                raise BadInput(f"this state was prepared for {name} = {found}, not {value}; prepare anew")

    def save(self, path: str | Path) -> None:
        write_tensors(Path(path), self.tensors, self.info)

    @classmethod
    def load(cls, path: str | Path) -> "State":
        tensors, info = read_tensors(Path(path), "state")
        return cls(tensors, info)


def cached_state(kind: str, content: Any, make: Callable[[], State]) -> State:
    """The state that the cache holds for ``content`` (JSON), else what ``make`` gives, which is kept."""
    file = cache_file(kind, content)
    if file.is_file():
        return State.load(file)
    state = make()
    try:
        state.save(file)
    except BadInput as error:  # a full disk, a folder that cannot be written: the state is good all the same
        log.warning("%s", error)
    return state


@dataclass(frozen=True)
class Tags:
    """What code that runs every method must know of one, so that none holds a list of names (as scikit-learn's tags).

    ``quick``: settings under which an edit of a tiny random model takes seconds and raises the edit's own score.
    ``reads_context``: edits act through the context or the contrast of prompts, which a random model cannot use.
    ``runs_model``: ``edit`` runs the model. ``prepares_with``: what ``prepare`` reads.
    """

    quick: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reads_context: bool = False
    runs_model: bool = True
    prepares_with: Literal["texts", "cases"] = "texts"


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A frozen dataclass of hyper-parameters with two verbs.

    A setting that is None is resolved relative to the model when ``edit`` runs; ``patch.meta`` says to what. A wrong
    type raises :class:`BadInput` when the method is made.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    stores: ClassVar[str]
    needs_prepare: ClassVar[bool] = False
    tags: ClassVar[Tags] = Tags()

    seed: int = setting(0, "of everything that is drawn")

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, checked(type(self), f.name, getattr(self, f.name)))

    @property
    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """What the method needs to know of the model before the first edit; empty where it needs nothing."""
        return State()

    def resolve(self, lm: HFLM, state: State) -> Self:
        """The method with every setting that was None filled in for this model."""
        return self

    def edit(self, lm: HFLM, edits: Sequence[Edit], state: State | None = None, prior: Patch = EMPTY) -> Patch:
        """The whole next patch: ``prior`` and these edits. The model is left as it was.

        Raises :class:`NeedsPrepare` without a state that the method needs, :class:`WrongModel` for the state or patch
        of another model, :class:`BadInput` for what is no edit.
        """
        speaks = isinstance(cast(Any, lm), HFLM)  # what a wrapper in force makes of a model is none
        if speaks:
            lm.check()
        if not speaks or not lm.bare:
            raise Unsupported("a patch is in force here; edit the model itself, with that patch as `prior`")
        edits = _edits(edits)
        prior.check(lm)
        if not edits:
            return prior
        if state is None or (not (state.tensors or state.info) and self.needs_prepare):
            if self.needs_prepare:
                raise NeedsPrepare(
                    f"{self.name} needs a state: state = method.prepare(lm), then edit(lm, edits, state)"
                )
            state = State()
        state.check(lm)
        began = time.perf_counter()
        with frozen_rng(self.seed):
            resolved = self.resolve(lm, state)
            patch = resolved._edit(lm, edits, state, prior)
        return self._signed(patch, lm, resolved, edits, prior, time.perf_counter() - began)

    @abstractmethod
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        """``prior`` and these edits, with ``parts`` and ``memory``; the settings of ``self`` are resolved."""

    def _signed(
        self, patch: Patch, lm: HFLM, resolved: "Method", edits: Sequence[Edit], prior: Patch, seconds: float
    ) -> Patch:
        made = {
            "method": self.name,
            "settings": self.settings,
            "resolved": resolved.settings,
            "edits": [edit.to_json() for edit in edits],
            "versions": versions(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
        }
        meta = {
            **prior.meta,
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "made": [*prior.meta.get("made", ()), made],
        }
        return replace(patch, meta=meta)


def versions() -> dict[str, str]:
    """Of the packages that a result depends on."""
    found: dict[str, str] = {}
    for package in ("errata", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


@contextmanager
def frozen_rng(seed: int) -> Iterator[None]:
    """Draws inside the block depend on ``seed`` alone, and those outside do not notice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _edits(edits: Sequence[Edit]) -> list[Edit]:
    if isinstance(edits, Edit):
        raise BadInput("edit takes a list of edits: method.edit(lm, [edit])")
    for edit in edits:
        if not isinstance(cast(Any, edit), Edit):
            raise BadInput(f"expected errata.Edit, found {type(edit).__name__}: {edit!r}")
    return list(edits)


CLOSE = 1e-2  # by how much two preparations of one model may differ


def close(a: Any, b: Any) -> bool:
    """Whether two resolved settings are the same, but for the rounding of what they were resolved from."""
    return abs(a - b) <= CLOSE * abs(a) if isinstance(a, float) and isinstance(b, float) else a == b
