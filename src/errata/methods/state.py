"""What a method computes once for a model, in a file like a patch's; and the cache, in which such files are kept."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from errata.errors import BadInput, WrongModel
from errata.files import cache_file, check_writable
from errata.locks import in_turn
from errata.model.hf import HFLM
from errata.patch.header import Model, Record
from errata.patch.schema import Shape, Sizes, bound, held, read
from errata.tensor_files import read_tensors, write_tensors

log = logging.getLogger(__name__)


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
