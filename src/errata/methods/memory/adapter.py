"""The adapter that every memory inside the model is: a log of edits, a look-up, a payload.

    entry = lookup.find(...)              (b,) where the prompts end, -1 for none; kept in ``call.memo``
    y_new = payload.apply(..., entry)     from then on, also while decoding

A method's part is a subclass that names the two: ``class GraceCodebook(EditMemory[Spheres, Values])``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args

from torch import Tensor
from typing_extensions import TypedDict, override

from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.memory.packing import pack, unpack
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.weights import is_linear
from errata.patch.parts import Adapter
from errata.patch.schema import STRICT, Declared, Saved, held


class Component(Saved):
    """One half of a memory: a frozen dataclass of settings (JSON) and tensors, which is saved field by field.

    Shapes may name ``n``, the number of edits, and ``in`` and ``out``, the widths at the memory's site.
    """

    mostly_zero: ClassVar[tuple[str, ...]] = ()  # tensors that are saved without their zeros

    @override
    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, packed."""
        packed: dict[str, Tensor] = {}
        for name, value in super().tensors().items():
            packed |= pack(name, value, name in self.mostly_zero)
        return packed

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The component with that config and these packed tensors."""
        return super().build(config, unpack(tensors, cls.mostly_zero))

    def kept(self, log: EditLog, keep: Sequence[int]) -> Self:
        """The component as if only the edits ``keep`` of ``log`` had been made, exactly; else :class:`Unsupported`."""
        raise Unsupported("one edit cannot be taken out of this memory exactly; keep the earlier patch instead")

    def details(self, log: EditLog, i: int) -> dict[str, Any] | None:
        """What is worth showing of edit i, by name; None where nothing is left of it."""
        return {}

    def totals(self) -> dict[str, Any]:
        """What is worth showing of the whole, by name."""
        return {}

    def on(self, name: str, like: Tensor) -> Tensor:
        """The tensor ``name`` on the device and in the type of another, copied there once."""
        copies: dict[Any, Tensor] = self.__dict__.setdefault("_copies", {})
        where = name, like.device, like.dtype
        if where not in copies:
            copies[where] = getattr(self, name).to(like)
        return copies[where]


class Lookup(Component, ABC):
    """Finds the edit that a prompt is about."""

    @abstractmethod
    def find(self, call: Call, x: Tensor, y: Tensor, payload: Any) -> Tensor:
        """The entry for each row of a pass that has read the prompts, -1 for none. (b,)"""

    def rows(self, entry: Tensor) -> Tensor:
        """The rows of the payload that act for entries (b,): the same, unless entries share one."""
        return entry

    def told(self, entry: Tensor) -> Tensor:
        """The edits that entries (b,) answer with, for people: by default those that they are named after."""
        return entry

    def due(self, call: Call, found: bool) -> bool:
        """Whether to look up in this pass: by default in the one that reads the prompts to their end."""
        return call.prompt_end is not None


class Payload(Component, ABC):
    """Acts at the site for the entry that was found."""

    reads: str | None = None  # a module whose input is x, where that is not the site itself (Adapter.reads)

    @abstractmethod
    def apply(self, call: Call, x: Tensor, y: Tensor, entry: Tensor) -> Tensor:
        """The site's output, with the entries (b,) in force. (b, t, d)"""

    def unrouted(self, x: Tensor, y: Tensor) -> Tensor:
        """The site's output while no look-up has run (keys are being read, say): by default unchanged. (b, t, d)"""
        return y

    def describe(self, log: EditLog, entry: int) -> str:
        """The entry, for people."""
        return str(log[entry])


L = TypeVar("L", bound=Lookup, covariant=True)
P = TypeVar("P", bound=Payload, covariant=True)


@dataclass(frozen=True, eq=False)
class EditMemory(Adapter, Generic[L, P]):
    """A log of edits, the look-up over it, and the payload of its entries, at one site."""

    site: str
    log: EditLog
    lookup: L
    payload: P

    @property
    @override
    def reads(self) -> str | None:
        return self.payload.reads

    @property
    def settings(self) -> dict[str, Any]:
        """What another edit must agree on to join this memory: its site and the settings of its components."""
        return {"site": self.site, **self.lookup.config(), **self.payload.config()}

    @override
    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        entry = None if call is None else self.entry(call, x, y)
        if call is None or entry is None:
            return self.payload.unrouted(x, y)
        return self.payload.apply(call, x, y, self.lookup.rows(entry))

    def entry(self, call: Call, x: Tensor, y: Tensor) -> Tensor | None:
        """The entry of each row, -1 for none: looked up once and kept. None before that. (b,)"""
        key = id(self)
        if self.log and self.lookup.due(call, key in call.memo):
            call.memo[key] = self.lookup.find(call, x, y, self.payload)
        return call.memo.get(key)

    @override
    def explain(self, call: Call) -> Sequence[str | None]:
        if id(self) not in call.memo:
            return [None] * len(call.mask)
        entries = self.lookup.told(call.memo[id(self)]).tolist()
        return [f"{self.kind}: {self.payload.describe(self.log, i)}" if i >= 0 else None for i in entries]

    @override
    def without(self, edit_id: str) -> "Self | None":
        keep = [i for i, record in enumerate(self.log) if record.id != edit_id]
        if len(keep) == len(self.log) or not keep:
            return self if keep else None
        return replace(
            self,
            log=tuple(self.log[i] for i in keep),
            lookup=self.lookup.kept(self.log, keep),
            payload=self.payload.kept(self.log, keep),
        )

    @override
    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for i, record in enumerate(self.log):
            lookup, payload = self.lookup.details(self.log, i), self.payload.details(self.log, i)
            if lookup is not None and payload is not None:
                found.append({"edit": record.id, "prompt": record.prompt, **lookup, **payload})
        return found

    @override
    def summary(self) -> list[dict[str, Any]]:
        line = {"kind": self.kind, "site": self.site, "edits": len(self.log)}
        return [{**line, **self.lookup.totals(), **self.payload.totals()}]

    # The file --------------------------------------------------------------------------------------

    @override
    def config(self) -> dict[str, Any]:
        log = [record.to_json() for record in self.log]
        return {"site": self.site, "log": log, **{name: half.config() for name, half in self._halves()}}

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {f"{half}.{name}": t for half, part in self._halves() for name, t in part.tensors().items()}

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        values = held(_Config, config, {})
        for half, kind in zip(("lookup", "payload"), get_args(cls.__orig_bases__[0]), strict=True):  # type: ignore[attr-defined]
            own = {n.removeprefix(f"{half}."): t for n, t in tensors.items() if n.startswith(f"{half}.")}
            try:
                values[half] = kind.build(config[half], own)
            except BadInput as error:
                raise BadInput(f"{half}: {error}") from error
        return cls(**values)

    @override
    def declared(self, prefix: str = "") -> list[Declared]:
        halves = [one for name, half in self._halves() for one in half.declared(f"{prefix}{name}.")]
        return [(prefix, _Config, {"log": self.log}), *halves]

    @override
    def check_content(self) -> None:
        for name, half in self._halves():
            try:
                half.check_content()
            except BadInput as error:
                raise BadInput(f"{name}.{error}") from error

    @override
    def check_model(self, lm: HFLM) -> None:
        """It sits at a linear layer or a mixture of experts, and the ids of its log are the model's."""
        super().check_model(lm)
        for path in (self.site, self.reads or self.site):
            if not is_linear(lm.model.get_submodule(path)) and path not in lm.sites.mlp_out:
                raise WrongModel(f"the {self.kind} part of this patch sits at {path}, which is no linear layer here")
        highest = self._highest
        if highest >= (known := getattr(lm.text_config, "vocab_size", highest + 1)):
            raise WrongModel(f"the {self.kind} part of this patch holds the token {highest}; this model has {known}")

    @cached_property
    def _highest(self) -> int:
        """Of the tokens in the log: had once, as applying a patch asks for it each time."""
        return max((i for record in self.log for i in (*record.prompt_ids, *record.target_ids)), default=0)

    def _halves(self) -> list[tuple[str, Component]]:
        return [("lookup", self.lookup), ("payload", self.payload)]


class _Config(TypedDict):
    """What a file says of an :class:`EditMemory` besides its tensors."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    site: str
    log: EditLog
    lookup: dict[str, Any]
    payload: dict[str, Any]


def joint_training(record: EditRecord, log: EditLog, keep: Sequence[int]) -> Unsupported:
    """The error for taking out edits (those of ``log`` that are not kept) that ``record``'s entry was trained with."""
    kept = set(keep)
    gone = log[next(i for i in range(len(log)) if i not in kept)]
    return Unsupported(
        f"what answers {record.prompt!r} was trained together with the edit {gone.id} or on top of it; "
        "keep the patch from before that edit, and make the later ones again"
    )
