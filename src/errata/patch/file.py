# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The file of a patch: one safetensors file whose header is JSON. Nothing in it can run code."""

import gc
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from errata.errors import BadInput
from errata.patch.header import Header
from errata.patch.memory import check_memory
from errata.patch.parts import Part, part_class
from errata.patch.schema import read
from errata.printable import shown
from errata.tensor_files import copied, read_tensors, write_tensors

PART, MEMORY = "part.", "memory."  # what stands before names of tensors; a part's number comes next


def write_patch(path: Path, parts: Sequence[Part], memory: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a patch's content to one file, whole or not at all. Raises :class:`BadInput`."""
    tensors = {f"{PART}{i}.{name}": t for i, part in enumerate(parts) for name, t in part.tensors().items()}
    tensors |= {f"{MEMORY}{name}": t for name, t in memory.items()}
    header = {"parts": [{"kind": part.kind, "config": part.config()} for part in parts], "meta": meta}
    write_tensors(path, tensors, header, "patch")


def read_patch(path: Path) -> tuple[tuple[Part, ...], dict[str, Tensor], dict[str, Any]]:
    """The parts, memory and meta in a file.

    Raises :class:`BadInput` for a file that is no patch, and for one that holds anything else than parts declare: the
    message names the file, the part and the field.
    """
    with uncollected():
        return _read(path)


def _read(path: Path) -> tuple[tuple[Part, ...], dict[str, Tensor], dict[str, Any]]:
    """What :func:`read_patch` gives."""
    tensors, content = read_tensors(path, "patch", mapped=True)
    again = "make the patch again, or fetch it anew"
    try:
        header, configs = _header_of(content)
        of_part, memory = _divided(tensors, len(header.parts))
        check_memory(memory := {name: copied(tensor) for name, tensor in memory.items()})
    except BadInput as error:
        raise BadInput(f"{path}: {error}; {again}") from error
    parts: list[Part] = []
    for i, record in enumerate(header.parts):
        where = f"{path}, part {i} ({shown(record.kind)})"
        try:
            cls = part_class(record.kind)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        try:
            parts.append(_built(cls, configs[i], of_part.get(i, {})))
        except BadInput as error:
            raise BadInput(f"{where}: {error}; {again}") from error
        except Exception as error:  # of a class that does not check by itself
            raise BadInput(f"{where} cannot be read ({type(error).__name__}: {str(error)[:200]}); {again}") from error
    return tuple(parts), memory, content["meta"]


def _header_of(content: Mapping[str, Any]) -> tuple[Header, list[dict[str, Any]]]:
    """The header, in which the configs of parts are left out, and those: what they may say the parts know."""
    found: Any = content.get("parts")
    records: list[Any] = found if isinstance(found, list) else []
    if not all(isinstance(record, dict) and isinstance(record.get("config"), dict) for record in records):
        records = []
    parts = [{**record, "config": {}} for record in records]
    header: Header = read(Header, {**content, "parts": parts} if records else content)
    return header, [record["config"] for record in records]


@contextmanager
def uncollected() -> Generator[None, None, None]:
    """Context manager: no search for garbage, which would look at all that is read, again and again, for cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _built(cls: type[Part], config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Part:
    """The part of a config, which says no more and no less than the part itself says again."""
    if not cls.by_rows:
        tensors = {name: copied(tensor) for name, tensor in tensors.items()}
    part = cls.build(config, tensors)
    part.sizes()
    part.check_content()
    if part.config() != config:
        raise BadInput("its config says more than is read")
    if strange := part.tensors().keys() ^ tensors.keys():
        raise BadInput(f"nothing reads the tensor {shown(min(strange))}")
    return part


def _divided(tensors: Mapping[str, Tensor], parts: int) -> tuple[dict[int, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of each part by its number, and those of the memory, by their own names."""
    of_part: dict[int, dict[str, Tensor]] = {}
    memory: dict[str, Tensor] = {}
    numbers = {str(i): i for i in range(parts)}
    for name, tensor in tensors.items():
        number, _, own = name.removeprefix(PART).partition(".")
        if name.startswith(MEMORY):
            memory[name.removeprefix(MEMORY)] = tensor
        elif name.startswith(PART) and number in numbers:
            of_part.setdefault(numbers[number], {})[own] = tensor
        else:
            raise BadInput(f"nothing reads the tensor {shown(name)}: it is of none of the {parts} parts")
    return of_part, memory
