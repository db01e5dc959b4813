# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The kinds of part that a patch consists of, and the registry by which files name them."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from errata.errors import BadInput, Unsupported, WrongModel
from errata.model import hooks, weights
from errata.model.hf import HFLM
from errata.model.lm import LM, Call
from errata.model.passes import hidden_of, unflattened, with_hidden
from errata.model.projection import flow_shape
from errata.patch.schema import Saved, Sizes, bound
from errata.printable import shown

KINDS: "dict[str, type[Part]]" = {}  # kind -> class, of every class that has been defined
METHODS = "errata.methods.registry"  # imports the modules of all methods, and with them the classes of their parts


class Part(Saved, ABC):
    """One thing that a patch does to a model; a value. ``config()`` and ``tensors()`` are the whole of it.

    A dataclass gets both, and ``build``, from its fields: :mod:`errata.patch.schema`.
    """

    kind: ClassVar[str]
    """Name of the class in patch files."""

    by_rows: ClassVar[bool] = False
    """Whether large tensors may stay in the file that they are read from: only rows of them are ever looked at."""

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

    def sizes(self) -> Sizes:
        """The sizes in the shapes that the part declares.

        Raises :class:`BadInput` where a tensor is of another type or shape, or an index out of bounds.
        """
        return bound(self.declared())

    def check_model(self, lm: HFLM) -> None:
        """Raises :class:`WrongModel` unless the model has what the part acts on, in the sizes that it has."""

    def without(self, edit_id: str) -> "Part | None":
        """The part as if that edit had never been made; None if nothing is left of it.

        Raises :class:`Unsupported` where that cannot be had exactly.
        """
        raise Unsupported(f"one edit cannot be taken out of a {self.kind} exactly; keep the earlier patch instead")

    def entries(self) -> list[dict[str, Any]]:
        """A JSON record for each entry of a memory (its edit, its radius); none for a change of weights."""
        return []

    def summary(self) -> list[dict[str, Any]]:
        """A JSON record for each site: what is there and how large."""
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
    """Computes the output of one module anew, from its input and output.

    It has no state between calls; what it decides at the prompt and needs while decoding it keeps in ``call.memo``.
    """

    site: str
    """Path of the module."""

    @property
    def reads(self) -> str | None:
        """Path of a module that runs before the site and whose input :meth:`out` gets as x; None: the site's own."""
        return None

    @abstractmethod
    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        """The new output, given input x and output y of the module in this pass; all (b, t, width)."""

    def explain(self, call: Call) -> Sequence[str | None]:
        """For each row of a call whose prompt has run: a line about the entry that is used, or None."""
        return [None] * len(call.mask)

    @override
    def check_model(self, lm: HFLM) -> None:
        """The modules are there; where ``in`` and ``out`` are declared sizes, they are as wide."""
        sizes = self.sizes()
        for path, name, side in ((self.reads or self.site, "in", 1), (self.site, "out", 0)):
            width = widths(lm, path, self.kind)[side]
            if width is not None and sizes.get(name, width) != width:
                raise WrongModel(
                    f"the {self.kind} part of this patch expects what goes {name} at {path} to be {sizes[name]} wide; "
                    f"here it is {width}"
                )

    def check_block(self, lm: HFLM) -> None:
        """Raises :class:`WrongModel` unless the site is a block of the model: for changes of hidden states."""
        if self.site not in lm.sites.layer:
            raise WrongModel(
                f"the {self.kind} part of this patch sits at {self.site!r}, which is no block of this model"
            )

    @contextmanager
    def in_force(self, lm: HFLM) -> Generator[None, None, None]:
        """Context manager: the adapter acts in every pass of ``lm``, the view that ``Patch.applied`` made."""
        lm.explainers.append(self.explain)
        with output_replaced(lm, self.site, self.out, self.reads):
            yield


def widths(lm: HFLM, path: str, kind: str) -> tuple[int | None, int | None]:
    """(out, in): the widths of what comes out of a module and goes into it; None where they are not known.

    Raises :class:`WrongModel`, about a part of that kind, where the model has no such module.
    """
    try:
        if weights.indexed(path)[1] is not None:  # one matrix of a stack of experts
            out, into = weights.shape_of(lm.model, path)
            return out, into
        module = lm.model.get_submodule(path)
    except AttributeError as error:
        raise WrongModel(
            f"the {kind} part of this patch sits at {shown(path)}, which this model does not have"
        ) from error
    if weights.is_linear(module):
        out, into = weights.shape_of(lm.model, f"{path}.weight")
        return out, into
    if path in lm.sites.mlp_out:
        return flow_shape(lm.model, lm.sites, path)
    hidden: int | None = getattr(lm.text_config, "hidden_size", None) if path in lm.sites.layer else None
    return hidden, hidden


@contextmanager
def output_replaced(
    lm: HFLM, site: str, out: Callable[[Any, Tensor, Tensor], Tensor], reads: str | None = None
) -> Generator[None, None, None]:
    """Context manager: the output of module ``site`` is ``out(call, x, y)``, as for an :class:`Adapter`.

    ``reads`` is as :attr:`Adapter.reads`.
    """
    held = threading.local()  # two threads may use one model

    def keep(args: hooks.Args, kwargs: hooks.Kwargs, y: Any) -> None:
        held.x = args[0]  # as the module itself got it: a pass may give it fewer tokens

    def change(args: hooks.Args, kwargs: hooks.Kwargs, y: Any) -> Any:
        call, hidden = lm.call, hidden_of(y)
        x = hidden_of(held.__dict__.pop("x") if reads else args[0])
        b = len(x) if x.ndim == 3 else 1 if call is None else len(call.mask)  # Llama 4's experts flatten y alone
        x = unflattened(x, b).to(hidden.device)  # a block's input comes from the device of the one before
        return with_hidden(y, out(call, x, unflattened(hidden, b)).view_as(hidden))

    with ExitStack() as stack:
        if reads:
            stack.enter_context(hooks.after(lm.model.get_submodule(reads), keep))
        stack.enter_context(hooks.after(lm.model.get_submodule(site), change))
        yield


class Wrapper(Part):
    """Stands around the language model: changes prompts, routes them elsewhere, or answers itself."""

    @abstractmethod
    def wrap(self, inner: LM) -> LM:
        """The language model around ``inner``. A verb that it cannot honour raises :class:`Unsupported`."""


P = TypeVar("P", bound=Part)


def part_class(kind: str) -> type[Part]:
    """The class of a kind of part. Raises :class:`BadInput` for a kind that nothing installed defines.

    For a kind that is not known yet, the modules of all methods are imported, those of other packages included (see
    :mod:`errata.methods.registry`).
    """
    if kind not in KINDS:
        import_module(METHODS).import_all()
    if kind not in KINDS:
        raise BadInput(
            f"the patch holds a part of kind {shown(kind)}, which nothing here defines; "
            "install the package of the method that made it, or update Errata"
        )
    return KINDS[kind]


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two mappings have the same names, types, shapes and values, bit for bit."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )
