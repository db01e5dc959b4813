# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The kinds of part that a patch is made of, and where a kind of part is found by its name."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.lm import LM, Call
from errata.model.passes import part_of, rowwise, with_part

KINDS: "dict[str, type[Part]]" = {}  # every kind of part whose class has been defined
METHODS = "errata.methods.registry"  # knows where the others are: a method's parts are defined beside it


class Part(ABC):
    """One thing that a patch does to a model. ``config`` is JSON; with ``tensors`` it is the whole part."""

    kind: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the class under its ``kind``, by which patch files name it; :class:`BadInput` if that is taken."""
        super().__init_subclass__(**options)
        if kind := cls.__dict__.get("kind"):
            other = KINDS.setdefault(kind, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise BadInput(
                    f"the kind of part {kind!r} is taken by {other.__module__}.{other.__qualname__}; "
                    f"give {cls.__module__}.{cls.__qualname__} another"
                )
            KINDS[kind] = cls

    @abstractmethod
    def config(self) -> dict[str, Any]: ...
    @abstractmethod
    def tensors(self) -> dict[str, Tensor]: ...
    @classmethod
    @abstractmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Part": ...

    def without(self, edit_id: str) -> "Part | None":
        """The part as if that edit had never been made (None if nothing is left), exactly or not at all."""
        raise Unsupported(f"one edit cannot be taken out of a {self.kind} exactly; keep the earlier patch instead")

    def entries(self) -> list[dict[str, Any]]:
        """What a memory holds, a record for each entry (its edit, its radius); a change of weights holds none."""
        return []

    def summary(self) -> list[dict[str, Any]]:
        """A line for each site: what is there and how large."""
        return [{"kind": self.kind, "site": name, "numbers": t.numel()} for name, t in self.tensors().items()]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Part)
            and self.kind == other.kind
            and self.config() == other.config()
            and same_tensors(self.tensors(), other.tensors())
        )

    __hash__ = None  # type: ignore[assignment]


class Adapter(Part):
    """Sits at a site: sees its input x and output y, both (b, t, width), and says what should come out.

    Holds no state between calls; what it decides at the prompt it keeps in ``call.memo``.
    """

    site: str  # module path

    @property
    def reads(self) -> str | None:
        """A module that runs before the site, if x is to be what goes in there (the MLP's own input, say)."""
        return None

    @abstractmethod
    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor: ...

    def explain(self, call: Call) -> Sequence[str | None]:
        """For each row of a call, after its prompt has run: which entry fired."""
        return [None] * len(call.mask)

    @contextmanager
    def in_force(self, lm: HFLM) -> Generator[None, None, None]:
        lm.reporters.append(self.explain)
        with sitting(lm, self.site, self.out, self.reads):
            yield


@contextmanager
def sitting(
    lm: HFLM, site: str, out: Callable[[Any, Tensor, Tensor], Tensor], reads: str | None = None
) -> Generator[None, None, None]:
    """A block in which ``out(call, x, y)`` says what comes out of ``site``, as an :class:`Adapter` does."""
    read = threading.local()  # two threads may ask one model

    def note(args: hooks.Args, kwargs: hooks.Kwargs, y: Any) -> None:
        read.x = args[0]  # as the module itself had it: a pass may hand it fewer tokens

    def change(args: hooks.Args, kwargs: hooks.Kwargs, y: Any) -> Any:
        call, hidden = lm.call, part_of(y)
        b = 1 if call is None else len(call.mask)
        x = read.__dict__.pop("x") if reads else args[0]
        return with_part(y, out(call, rowwise(part_of(x), b), rowwise(hidden, b)).view_as(hidden))

    with ExitStack() as stack:
        if reads:
            stack.enter_context(hooks.after(lm.model.get_submodule(reads), note))
        stack.enter_context(hooks.after(lm.model.get_submodule(site), change))
        yield


class Wrapper(Part):
    """Stands around the LM: changes the prompt, routes, answers."""

    @abstractmethod
    def wrap(self, inner: LM) -> LM: ...


P = TypeVar("P", bound=Part)


def part_class(kind: str) -> type[Part]:
    """The class of a kind of part, as files name it. Raises :class:`BadInput` for one that nobody has defined.

    A kind whose method has not been imported yet is looked for in the modules of all methods, those of other packages
    included (see :mod:`errata.methods.registry`).
    """
    if kind not in KINDS:
        import_module(METHODS).import_all()
    if kind not in KINDS:
        raise BadInput(
            f"the patch holds a part of kind {kind!r}, which nothing here defines; "
            "install the package of the method that made it, or update Errata"
        )
    return KINDS[kind]


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two mappings hold the same names, types, shapes and values, bit for bit."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )
