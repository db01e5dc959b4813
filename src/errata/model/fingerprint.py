"""Which model is this? A short name for its configuration, shapes and sampled weights."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 64  # entries of each tensor
SAYS_NOTHING = {"torch_dtype", "dtype", "_name_or_path", "transformers_version", "use_cache", "architectures"}


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits, equal for the same model loaded in float32, float16 and bfloat16.

    Entries are rounded to bfloat16's precision. Costs milliseconds, whatever the size.
    """
    digest = hashlib.sha256()
    config: Any = model.config
    told = {k: v for k, v in config.to_dict().items() if k not in SAYS_NOTHING}
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in sorted(model.named_parameters()):
        if name in tied:  # offloaded, they are listed twice
            continue
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = stored(model, name, tensor).detach()
        n = values.numel()
        picked = torch.arange(0, n, max(1, n // SAMPLES), device=values.device)[:SAMPLES]
        digest.update(_rounded(values.reshape(-1)[picked]))
    return digest.hexdigest()[:16]


def _rounded(values: Tensor) -> bytes:
    if not values.is_floating_point():
        return values.cpu().contiguous().numpy().tobytes()
    return values.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes()


def stored(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The values of a parameter, also where it has been offloaded and only its shape is in the model."""
    if tensor.device.type != "meta":
        return tensor
    path, _, leaf = name.rpartition(".")
    hook = getattr(model.get_submodule(path), "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            return weights[leaf]
    raise ValueError(f"{name} has no values: the model was made on the meta device and never loaded")
