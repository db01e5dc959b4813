# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The patch: what an edit is. Applied, undone, saved, added and shown by code that does not know which method made it.

with patch.applied(lm) as edited:
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

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported, WrongModel
from errata.files import folder_written_whole
from errata.model.asked import Asked
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.weights import FLOATS
from errata.patch.delta import Delta
from errata.patch.digest import digest_of
from errata.patch.file import read_patch, write_patch
from errata.patch.memory import joined_memory, sites_of
from errata.patch.parts import Adapter, P, Part, Wrapper, same_tensors, widths
from errata.patch.peft import CONFIG, LoRAFiles, check_parts, lora_files
from errata.printable import listed
from errata.types import Edit

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Patch:
    """What an edit is: a value that can be applied, undone, added, saved and measured.

    ``Patch()`` is empty and false. Patches are equal where parts and memory are, bit for bit.
    """

    parts: tuple[Part, ...] = ()
    """What to change: :class:`Delta`, :class:`Adapter` and :class:`Wrapper`, in the order in which they were made."""
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    """What further edits need and inference does not: the keys of earlier edits, say."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON: ``model`` (name and fingerprint of the base model) and ``made``, one record for each call of ``edit``
    (method, settings as resolved, edits, how each ended, versions, time)."""

    @property
    def edits(self) -> list[Edit]:
        """Every edit that was made, in order; ``entries()`` of a memory's part says which of them are in use."""
        return [Edit.from_json(edit) for made in self.meta.get("made", ()) for edit in made["edits"]]

    @property
    def digest(self) -> str:
        """SHA-256 of the parts: equal for patches that do the same, whenever they were made and with or without memory.

        Not that of a file, which also holds the time.
        """
        return digest_of(self.parts)

    def of_kind(self, kind: type[P]) -> list[P]:
        """The parts of a class."""
        return [part for part in self.parts if isinstance(part, kind)]

    def swap(self, old: Part, new: Part | None) -> "Patch":
        """The patch with ``new`` in the place of part ``old``, or at the end where it has no such part.

        None for ``new`` takes the part out.
        """
        put = (new,) if new is not None else ()
        if not any(part is old for part in self.parts):
            return replace(self, parts=(*self.parts, *put))
        return replace(self, parts=tuple(p for part in self.parts for p in (put if part is old else (part,))))

    def without_wrappers(self) -> "Patch":
        """The patch without its wrappers."""
        return replace(self, parts=tuple(part for part in self.parts if not isinstance(part, Wrapper)))

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self.parts == other.parts and same_tensors(self.memory, other.memory)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:  # in one line: the numbers themselves fill screens
        made = self.meta.get("made", ())
        count = sum(len(record["edits"]) for record in made)
        methods = " + ".join(dict.fromkeys(record["method"] for record in made))
        words = [f"{count} edit{'s' * (count != 1)} by {methods}"] if made else []
        words += [f"of the model {name}"] if (name := self.meta.get("model", {}).get("name")) else []
        return f"<Patch: {', '.join([*words, ' + '.join(part.kind for part in self.parts) or 'empty'])}>"

    # Applying --------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, lm: HFLM, *, force: bool = False) -> Generator[Any, None, None]:
        """Context manager that yields the edited model: an :class:`HFLM`, or an :class:`LM` if there are wrappers.

        Deltas are applied first, then adapters in order, wrappers outermost. Meanwhile ``lm`` itself raises
        :class:`InForce`. Afterwards the model is bit for bit as before. Raises :class:`WrongModel` for a patch of
        another model, unless ``force`` (which is logged).
        """

        def put_on(edited: HFLM, undo: ExitStack) -> LM:
            edited.bare = lm.bare and not self.parts
            if deltas := self.of_kind(Delta):
                undo.enter_context(_total(deltas).in_force(lm.model))
            for adapter in self.of_kind(Adapter):
                undo.enter_context(adapter.in_force(edited))
            outermost: LM = edited
            for wrapper in self.of_kind(Wrapper):
                outermost = wrapper.wrap(outermost)
            return outermost

        self.check(lm, force=force)
        with lm.changed(put_on) as edited:
            yield edited

    def check(self, lm: HFLM, *, force: bool = False) -> None:
        """Raises :class:`WrongModel` or :class:`Unsupported` unless the patch can be applied to ``lm``.

        Edits that are asked otherwise now than when they were made are warned of: in a chat or in plain text, under
        another template or system message.
        """
        if not isinstance(cast(Any, lm), HFLM):
            raise Unsupported(
                f"a patch goes on a model that errata.load gave, found {type(lm).__name__}; "
                "join the patches with + to put them on together"
            )
        made_for = self.meta.get("model", {})
        if made_for and made_for["fingerprint"] != lm.fingerprint:
            message = (
                f"this patch is of the model {made_for.get('name') or '?'} ({made_for['fingerprint']}), "
                f"and this model is {lm.name or '?'} ({lm.fingerprint})"
            )
            if not force:
                raise WrongModel(f"{message}{_rounded(lm)}; load the patch's own model, or add --force (force=True)")
            log.warning("%s; applied all the same", message)
        self._check_asked(lm)
        for part in self.parts:
            part.check_model(lm)
        for site, width in sites_of(self.memory).items():
            if widths(lm, site, "memory")[1] != width:
                raise WrongModel(f"the patch remembers keys of {site} that are {width} wide; here they are not")

    def _check_asked(self, lm: HFLM) -> None:
        """Warns of edits that were made under another chat template or system message than ``lm`` is asked under."""
        ways = dict.fromkeys(Asked.said_by(made) for made in self.meta.get("made", ()))
        if others := [way for way in ways if way.differs(lm.asked)]:
            log.warning(
                "the model is asked %s, and edits of this patch were made %s; %s",
                lm.asked.words,
                " and ".join(way.words for way in others),
                others[0].way_from(lm.asked),
            )

    def rounded_away(self, lm: HFLM) -> dict[str, float]:
        """Parameter name -> the share of its change that the model's type leaves, where that is below 99 %.

        Such a change runs as a side product while the patch is applied, and nothing of it is lost.
        """
        deltas = self.of_kind(Delta)
        return _total(deltas).rounded_away(lm.model) if deltas else {}

    def merge(self, lm: HFLM, *, force: bool = False) -> None:
        """Changes the model's weights for good. Raises :class:`Unsupported` if there are other parts than deltas, and
        :class:`Refused` where a weight would not be finite."""
        with self._to_merge(lm, force):
            _total(self.of_kind(Delta)).merge(lm.model)
            lm.forget_fingerprint()

    def merged(self, lm: HFLM, *, force: bool = False) -> dict[str, Tensor]:
        """Parameter name -> the whole of it with the change in it, in new storage and in the model's type.

        The model stays as it is; what rounding leaves too little of is logged. Raises what :meth:`merge` raises.
        """
        with self._to_merge(lm, force):
            deltas = self.of_kind(Delta)
            return _total(deltas).merged(lm.model) if deltas else {}

    @contextmanager
    def _to_merge(self, lm: HFLM, force: bool) -> Generator[None, None, None]:
        """Context manager: nobody else runs the model, which has no patch in force; this one is deltas alone, of it."""
        check_parts(self.parts, Delta, "merged")
        with lm.alone():
            lm.check()
            self.check(lm, force=force)
            if not lm.unedited:
                raise Unsupported("another patch is in force here; merge into the model itself")
            yield

    def as_lora(self, lm: HFLM | None = None, *, rank: int | None = None, force: bool = False) -> LoRAFiles:
        """What the files of :meth:`to_peft` hold. Raises what that raises."""
        if rank is not None and (type(cast(Any, rank)) is not int or rank < 1):
            raise BadInput(f"rank is a whole number of at least 1; found {rank!r}")
        check_parts(self.parts, Delta, "made a LoRA adapter")
        if lm is not None:
            self.check(lm, force=force)
        base = (None if lm is None else lm.name) or self.meta.get("model", {}).get("name") or ""
        deltas = self.of_kind(Delta)
        made = lora_files(_total(deltas).weights if deltas else {}, lm, base=base, rank=rank)
        for name, lost in made.lost.items():
            log.warning("cut to rank %d, %.2g%% of the change of %s is lost", rank, 100 * lost, name)
        return made

    def to_peft(
        self, folder: str | Path, lm: HFLM | None = None, *, rank: int | None = None, force: bool = False
    ) -> Path:
        """Writes a LoRA adapter that peft and vLLM load, whole or not at all, and returns its folder.

        The adapter adds exactly what the patch does, up to float32. With ``lm`` the patch is checked to be of that
        model, and changes outside of the blocks can be told to fit. ``rank`` cuts what has a larger one, which is
        logged with the share that is lost. Raises :class:`Unsupported` for what no LoRA adapter holds (other parts
        than changes of weights, tied weights, a dense change of large rank, experts where ``lm`` is not given),
        :class:`BadInput` where the folder exists, unless ``force``.
        """
        made = self.as_lora(lm, rank=rank)
        with folder_written_whole(folder, replace=CONFIG if force else None) as part:
            made.write(part)
        return Path(folder)

    # Algebra ---------------------------------------------------------------------------------------

    def __add__(self, other: "Patch") -> "Patch":
        """Both patches, in order. Neighbouring deltas become one; low-rank ones stay so while that is smaller."""
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
        """The patch with its changes of weights scaled. :class:`TypeError` if it has other parts."""
        if others := [part.kind for part in self.parts if not isinstance(part, Delta)]:
            raise TypeError(f"only changes of weights can be scaled; this patch also holds {', '.join(others)}")
        parts = tuple(part * factor for part in self.of_kind(Delta))
        return replace(self, parts=parts, meta={**self.meta, "scaled": factor * self.meta.get("scaled", 1.0)})

    __rmul__ = __mul__

    def __neg__(self) -> "Patch":
        """The patch that undoes this one, if it has no other parts than deltas."""
        return self * -1.0

    def without(self, edit_id: str) -> "Patch":
        """The patch as if that edit had never been made.

        Raises :class:`Unsupported` where that cannot be had exactly, :class:`BadInput` for an id that it does not hold.
        """
        ids: list[str] = [edit["id"] for made in self.meta.get("made", ()) for edit in made["edits"]]
        if edit_id not in ids:
            raise BadInput(f"no edit {edit_id!r} in this patch; it holds {listed(ids)}")
        if len(ids) == 1:
            return EMPTY
        parts = [part.without(edit_id) for part in self.parts]
        made = [
            {
                **m,
                "edits": [e for e in m["edits"] if e["id"] != edit_id],
                "outcomes": {id: outcome for id, outcome in m.get("outcomes", {}).items() if id != edit_id},
            }
            for m in self.meta.get("made", ())
        ]
        kept = tuple(part for part in parts if part is not None)
        return replace(self, parts=kept, meta={**self.meta, "made": [m for m in made if m["edits"]]})

    def summary(self) -> list[dict[str, Any]]:
        """A JSON record for each site: kind, shape, rank and norm."""
        return [record for part in self.parts for record in part.summary()]

    @property
    def nbytes(self) -> int:
        """Bytes of what inference needs, texts included, memory not."""
        tensors = sum(t.nbytes for part in self.parts for t in part.tensors().values())
        return tensors + sum(len(json.dumps(part.config()).encode()) for part in self.parts)

    # The file --------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, memory: bool = True) -> Path:
        """Writes one safetensors file, whole or not at all, and returns its path.

        ``memory=False`` leaves out what only further edits need. Raises :class:`BadInput` if it cannot be written, or
        holds a number that is not finite.
        """
        if where := self.not_finite():
            raise BadInput(f"{where} is no finite number, so {path} was not written; make the patch anew")
        write_patch(Path(path), self.parts, self.memory if memory else {}, self.meta)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Patch":
        """The patch in a file, which cannot run code.

        Raises :class:`BadInput`, which names the file and the field, for a file that is no patch, that was damaged, or
        that holds anything else than its parts read; and for a number that is not finite.
        """
        return cls(*read_patch(Path(path)))

    def not_finite(self) -> str | None:
        """Where the first NaN or infinity stands, in the parts or in the memory; None where every number is finite."""
        for i, part in enumerate(self.parts):
            of = f"part {i} ({part.kind})"
            try:
                json.dumps(part.config(), allow_nan=False)
            except ValueError:
                return f"a setting of {of}"
            if name := _first_not_finite(part.tensors()):
                return f"an entry of {name} in {of}"
        name = _first_not_finite(self.memory)
        return f"an entry of {name} in the memory" if name else None


EMPTY = Patch()
"""The patch that changes nothing."""


def _total(deltas: Sequence[Delta]) -> Delta:
    total = deltas[0]
    for delta in deltas[1:]:
        total = total + delta
    return total


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, t in tensors.items() if t.dtype in FLOATS and not bool(t.isfinite().all())), None)


def _rounded(lm: HFLM) -> str:
    """What makes a copy of a model another model."""
    if lm.quantised:
        return ", quantised, which makes it another model"
    return ", in float16, which rounds weights of float32 to another model" if lm.dtype == torch.float16 else ""


def _same_model(a: Patch, b: Patch) -> None:
    models = [patch.meta["model"] for patch in (a, b) if patch.meta.get("model")]
    if len({model["fingerprint"] for model in models}) > 1:
        raise WrongModel("these patches are of two models: " + " and ".join(str(m.get("name")) for m in models))
