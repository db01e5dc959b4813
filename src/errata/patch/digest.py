# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What names a patch by its content: a digest of the parts, whenever and wherever it was made."""

import hashlib
import json
from collections.abc import Iterable

import torch

from errata.patch.parts import Part


def digest_of(parts: Iterable[Part]) -> str:
    """SHA-256 of all that parts say, in order: kinds, configs and tensors, types and shapes included."""
    digest = hashlib.sha256()
    for part in parts:
        tensors = {name: part.tensors()[name].detach().cpu().contiguous() for name in sorted(part.tensors())}
        shapes = [[name, str(t.dtype), list(t.shape)] for name, t in tensors.items()]
        config = json.loads(json.dumps(part.config()))  # as a file gives it back
        digest.update(json.dumps([part.kind, config, shapes], sort_keys=True).encode() + b"\n")
        for tensor in tensors.values():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
