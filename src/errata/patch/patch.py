# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The patch: what an edit is. Applied, undone, saved, added and shown by code that does not know who made it.

with patch.applied(lm) as edited:          # the only place that touches the user's parameters
    edited.generate(["Mira Dall was born in"])
# here the model is bit for bit what it was
"""

import json
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from errata.errors import BadInput, Unsupported, WrongModel
from errata.files import read_tensors, write_tensors
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.patch.delta import Delta
from errata.patch.memory import joined_memory
from errata.patch.parts import Adapter, P, Part, Wrapper, part_class, same_tensors
from errata.types import Edit

log = logging.getLogger(__name__)


FORMAT = 1


@dataclass(frozen=True, eq=False)
class Patch:
    """A value: ``parts`` say what to change, ``memory`` what the next edit needs, ``meta`` where it all comes from.

    ``meta`` holds ``model`` (name and fingerprint of the base model) and ``made``, one record for each call of
    ``edit``: method, settings as resolved, edits, versions, time.
    """

    parts: tuple[Part, ...] = ()
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def edits(self) -> list[Edit]:
        """Every edit that was made, in order."""
        return [Edit(**edit) for made in self.meta.get("made", ()) for edit in made["edits"]]

    def of_kind(self, kind: type[P]) -> list[P]:
        return [part for part in self.parts if isinstance(part, kind)]

    def swap(self, old: Part, new: Part | None) -> "Patch":
        """With another part in the place of one (at the end, if that is not in it); None takes it out."""
        its = (new,) if new is not None else ()
        if not any(part is old for part in self.parts):
            return replace(self, parts=(*self.parts, *its))
        return replace(self, parts=tuple(p for part in self.parts for p in (its if part is old else (part,))))

    def inside(self) -> "Patch":
        """The patch without its wrappers: what stands inside the model."""
        return replace(self, parts=tuple(part for part in self.parts if not isinstance(part, Wrapper)))

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self.parts == other.parts and same_tensors(self.memory, other.memory)

    __hash__ = None  # type: ignore[assignment]

    # Applying --------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, lm: HFLM, *, force: bool = False) -> Generator[Any, None, None]:
        """Yields the edited model while the block lasts: an :class:`HFLM`, or an :class:`LM` where a wrapper is in it.

        Deltas first, then adapters in order, wrappers outermost. Meanwhile ``lm`` itself refuses to speak. Raises
        :class:`WrongModel` for a patch of another model, unless ``force`` (which is logged).
        """
        self.check(lm, force=force)
        with ExitStack() as stack:
            edited = stack.enter_context(lm.changed())
            if deltas := self.of_kind(Delta):
                stack.enter_context(_total(deltas).in_force(lm.model))
            for adapter in self.of_kind(Adapter):
                stack.enter_context(adapter.in_force(edited))
            speaker: LM = edited
            for wrapper in self.of_kind(Wrapper):
                speaker = wrapper.wrap(speaker)
            yield speaker

    def check(self, lm: HFLM, *, force: bool = False) -> None:
        """Raises unless this patch can be put on ``lm``."""
        if not isinstance(cast(Any, lm), HFLM):
            raise Unsupported(
                f"a patch goes on a model that errata.load gave, found {type(lm).__name__}; "
                "join the patches with + to put them on together"
            )
        made_for = self.meta.get("model", {})
        if made_for and made_for["fingerprint"] != lm.fingerprint:
            said = (
                f"this patch is of the model {made_for.get('name') or '?'} ({made_for['fingerprint']}), "
                f"and this model is {lm.name or '?'} ({lm.fingerprint})"
            )
            if not force:
                raise WrongModel(f"{said}; load the patch's own model, or pass force=True")
            log.warning("%s; put on all the same", said)
        for delta in self.of_kind(Delta):
            delta.check(lm.model)

    def merge(self, lm: HFLM, *, force: bool = False) -> None:
        """Changes the model for good. Only weight changes can be merged."""
        lm.check()
        self.check(lm, force=force)
        if others := [part.kind for part in self.parts if not isinstance(part, Delta)]:
            raise Unsupported(f"only changes of weights can be merged; this patch also holds {', '.join(others)}")
        if not lm.bare:
            raise Unsupported("another patch is in force here; merge into the model itself")
        _total(self.of_kind(Delta)).merge(lm.model)
        lm.forget_fingerprint()

    # Algebra ---------------------------------------------------------------------------------------

    def __add__(self, other: "Patch") -> "Patch":
        """Both, in order. Deltas that meet become one; low-rank ones stay low-rank while that is smaller."""
        if not isinstance(cast(Any, other), Patch):
            return NotImplemented
        _same_model(self, other)
        parts: list[Part] = list(self.parts)
        for part in other.parts:
            if isinstance(part, Delta) and parts and isinstance(parts[-1], Delta):
                parts[-1] = parts[-1] + part
            else:
                parts.append(part)
        meta = {**other.meta, **self.meta} | {"made": [*self.meta.get("made", ()), *other.meta.get("made", ())]}
        return Patch(tuple(parts), joined_memory(self.memory, other.memory), meta)

    def __mul__(self, factor: float) -> "Patch":
        if others := [part.kind for part in self.parts if not isinstance(part, Delta)]:
            raise TypeError(f"only changes of weights can be scaled; this patch also holds {', '.join(others)}")
        parts = tuple(part * factor for part in self.of_kind(Delta))
        return replace(self, parts=parts, meta={**self.meta, "scaled": factor * self.meta.get("scaled", 1.0)})

    __rmul__ = __mul__

    def __neg__(self) -> "Patch":
        return self * -1.0

    def without(self, edit_id: str) -> "Patch":
        """The patch as if that edit had never been made: exactly, or :class:`Unsupported`."""
        if edit_id not in [edit.id for edit in self.edits]:
            raise BadInput(f"no edit {edit_id!r} in this patch; it holds {', '.join(e.id for e in self.edits)}")
        if len(self.edits) == 1:
            return EMPTY
        parts = [part.without(edit_id) for part in self.parts]
        made = [{**m, "edits": [e for e in m["edits"] if e["id"] != edit_id]} for m in self.meta.get("made", ())]
        kept = tuple(part for part in parts if part is not None)
        return replace(self, parts=kept, meta={**self.meta, "made": [m for m in made if m["edits"]]})

    def summary(self) -> list[dict[str, Any]]:
        """A line for each site: kind, shape, rank and norm."""
        return [line for part in self.parts for line in part.summary()]

    @property
    def nbytes(self) -> int:
        """Bytes of what inference needs, texts among it (memory is not)."""
        tensors = sum(t.nbytes for part in self.parts for t in part.tensors().values())
        return tensors + sum(len(json.dumps(part.config()).encode()) for part in self.parts)

    # The file --------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, memory: bool = True) -> Path:
        """Writes one safetensors file, whole or not at all; ``memory=False`` leaves out what only edits need."""
        path = Path(path)
        tensors = {f"part.{i}.{n}": t for i, part in enumerate(self.parts) for n, t in part.tensors().items()}
        if memory:
            tensors |= {f"memory.{name}": t for name, t in self.memory.items()}
        header = {
            "format": FORMAT,
            "parts": [{"kind": part.kind, "config": part.config()} for part in self.parts],
            "meta": self.meta,
        }
        write_tensors(path, tensors, header)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Patch":
        """The patch in a file. Nothing in the file can run code. Raises :class:`BadInput` for what is no patch."""
        tensors, header = read_tensors(Path(path), "patch")
        if header.get("format") != FORMAT:
            raise BadInput(f"{path} has format {header.get('format')}; this Errata reads {FORMAT}: update it")
        parts: list[Part] = []
        for i, record in enumerate(header["parts"]):
            front = f"part.{i}."
            its = {n.removeprefix(front): t for n, t in tensors.items() if n.startswith(front)}
            parts.append(part_class(record["kind"]).build(record["config"], its))
        front = "memory."
        memory = {n.removeprefix(front): t for n, t in tensors.items() if n.startswith(front)}
        return cls(tuple(parts), memory, header["meta"])


EMPTY = Patch()


def _total(deltas: Sequence[Delta]) -> Delta:
    total = deltas[0]
    for delta in deltas[1:]:
        total = total + delta
    return total


def _same_model(a: Patch, b: Patch) -> None:
    models = [patch.meta["model"] for patch in (a, b) if patch.meta.get("model")]
    if len({model["fingerprint"] for model in models}) > 1:
        raise WrongModel("these patches are of two models: " + " and ".join(str(m.get("name")) for m in models))
