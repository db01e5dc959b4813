# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The file of a patch: one safetensors file whose header is JSON. Nothing in it can run code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from errata.errors import BadInput
from errata.files import read_tensors, write_tensors
from errata.patch.parts import Part, part_class

FORMAT = 1


def write_patch(path: Path, parts: Sequence[Part], memory: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a patch's content to one file, whole or not at all. Raises :class:`BadInput`."""
    tensors = {f"part.{i}.{name}": t for i, part in enumerate(parts) for name, t in part.tensors().items()}
    tensors |= {f"memory.{name}": t for name, t in memory.items()}
    header = {
        "format": FORMAT,
        "parts": [{"kind": part.kind, "config": part.config()} for part in parts],
        "meta": meta,
    }
    write_tensors(path, tensors, header)


def read_patch(path: Path) -> tuple[tuple[Part, ...], dict[str, Tensor], dict[str, Any]]:
    """The parts, memory and meta in a file. Raises :class:`BadInput` for a file that is no patch."""
    tensors, header = read_tensors(path, "patch")
    if header.get("format") != FORMAT:
        raise BadInput(f"{path} has format {header.get('format')}; this Errata reads {FORMAT}: update it")
    parts = tuple(
        part_class(record["kind"]).build(record["config"], _below(f"part.{i}.", tensors))
        for i, record in enumerate(header["parts"])
    )
    return parts, _below("memory.", tensors), header["meta"]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
