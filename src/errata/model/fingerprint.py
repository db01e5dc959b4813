"""A short digest that identifies a model: of its configuration, shapes and sampled weights."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 64  # entries of each tensor
UNSPECIFIC = {  # keys of the configuration that differ between copies of one model
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "transformers_version",
    "use_cache",
    "architectures",
}


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits, equal for the same model loaded in float32, float16 and bfloat16.

    Samples are rounded to bfloat16's precision. Takes milliseconds, whatever the model's size.
    """
    digest = hashlib.sha256()
    config: Any = model.config
    settings = {k: v for k, v in config.to_dict().items() if k not in UNSPECIFIC}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in sorted(model.named_parameters()):
        if name in tied:  # offloaded, they are listed twice
            continue
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = stored(model, name, tensor).detach()
        n = values.numel()
        sampled = torch.arange(0, n, max(1, n // SAMPLES), device=values.device)[:SAMPLES]
        digest.update(_rounded(values.reshape(-1)[sampled]))
    return digest.hexdigest()[:16]


def _rounded(values: Tensor) -> bytes:
    if not values.is_floating_point():
        return values.cpu().contiguous().numpy().tobytes()
    return values.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes()


def stored(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The values of a parameter, also where it is offloaded and the model holds only its shape.

    Raises :class:`ValueError` where there are none: the model was made on the meta device.
    """
    if tensor.device.type != "meta":
        return tensor
    path, _, leaf = name.rpartition(".")
    hook = getattr(model.get_submodule(path), "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            return weights[leaf]
    raise ValueError(f"{name} has no values: the model was made on the meta device and never loaded")
