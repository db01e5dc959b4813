"""Files that lie: whatever content, with the checksum that belongs to it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from errata import tensor_files
from errata.patch.patch import Patch

Content = tuple[dict[str, Any], dict[str, Tensor]]  # a header, and tensors


def content_of(patch: Patch) -> Content:
    """What the file of a patch holds."""
    tensors = {f"part.{i}.{name}": t for i, part in enumerate(patch.parts) for name, t in part.tensors().items()}
    tensors |= {f"memory.{name}": t for name, t in patch.memory.items()}
    parts = [{"kind": part.kind, "config": part.config()} for part in patch.parts]
    return json.loads(json.dumps({"parts": parts, "meta": patch.meta})), tensors


def forge(path: Path, header: Any, tensors: Mapping[str, Tensor], what: str = "patch", **described: str) -> Path:
    """Writes them with a right checksum, unchecked; a text is taken for the header's JSON as it is."""
    text = header if isinstance(header, str) else json.dumps(header)
    described = {"what": what, "format": tensor_files.FORMAT, "errata": text, **described}
    stored = {name: t.contiguous().clone() for name, t in tensors.items()}
    checksum = tensor_files.checksum(described, stored)
    save_file(stored, path, {"checksum": checksum, **described})
    return path
