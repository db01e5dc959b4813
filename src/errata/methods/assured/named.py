"""Methods as settings of another method: a text of name and settings, and what each prepared within one state.

named("memit preserve=8 layers=1,2")        # errata.method("memit", preserve=8.0, layers=(1, 2))
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from errata.errors import BadInput
from errata.methods.base import Method
from errata.methods.registry import method, method_class
from errata.methods.settings import from_text
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.types import Case


def named(text: str) -> Method:
    """The method that a text names, with the settings behind its name, as ``name=value``.

    Raises :class:`BadInput` for another text, ``UnknownName`` with near matches for what there is not.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"{text!r} is no method and its settings ({error}); write 'memit preserve=8'") from error
    if not words or any("=" not in word for word in words[1:]):
        raise BadInput(f"expected a method's name and settings, as 'memit preserve=8'; found {text!r}")
    settings = dict(word.split("=", 1) for word in words[1:])
    return method(words[0], **from_text(method_class(words[0]), settings))


def text_of(made: Method) -> str:
    """The text that :func:`named` makes the same method of: settings that are the default are left out."""
    values = {f.name: getattr(made, f.name) for f in fields(made)}
    changed = {name: value for name, value in values.items() if value != getattr(type(made)(), name)}
    return shlex.join([made.name, *(f"{name}={_typed(value)}" for name, value in changed.items())])


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_by(made: Method, data: Iterable[Any] | None) -> list[Any] | None:
    """What of the given data the method prepares with: cases, texts or either; None where nothing of it is."""
    items = list(data or ())
    cases = [item for item in items if isinstance(item, Case)]
    texts = [item for item in items if not isinstance(item, Case)]
    kinds = {"cases": cases, "texts": texts, "either": cases or texts}
    return kinds[made.tags.prepares_with] or None


def joined(states: Mapping[str, State]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of several states, each under its state's name, and what the states say, by name."""
    tensors = {f"{name}/{key}": t for name, state in states.items() for key, t in state.tensors.items()}
    return tensors, {name: dict(state.info) for name, state in states.items()}


def part_of(state: State, name: str) -> State:
    """One of the states that :func:`joined` put into ``state``; made once, so that it keeps what it computed."""

    def make() -> State:
        tensors = {key.partition("/")[2]: t for key, t in state.tensors.items() if key.startswith(f"{name}/")}
        return State(tensors, state.info["states"].get(name, {}))

    return state.once(f"state of {name}", make)


def check_state(lm: HFLM, made: Method, state: State, name: str) -> None:
    """Raises :class:`BadInput` where the state that was prepared as ``name`` is none of this method."""
    try:
        made.check_state(lm, part_of(state, name))
    except BadInput as error:
        raise BadInput(f"of the state for {name}, {made.name}: {error}") from error
