"""A short digest that identifies a model: of its configuration, shapes and sampled weights."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from errata.model.weights import packed

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
        for values in pieces(stored(model, name, tensor).detach()):
            digest.update(_sampled(values))
    for path, module in packed(model):  # GPTQ's and AWQ's integers are no parameters
        for name, values in sorted(module.named_buffers()):
            digest.update(f"{path}.{name} {tuple(values.shape)}".encode())
            digest.update(_sampled(stored(model, f"{path}.{name}", values)))
    return digest.hexdigest()[:16]


def pieces(values: Tensor) -> list[Tensor]:
    """The plain tensors that a value consists of: itself, or those that a tensor subclass packs (torchao)."""
    flatten: Any = getattr(values, "__tensor_flatten__", None)
    return [values] if flatten is None else [x for name in flatten()[0] for x in pieces(getattr(values, name))]


def _sampled(values: Tensor) -> bytes:
    n = values.numel()
    at = torch.arange(0, n, max(1, n // SAMPLES), device=values.device)[:SAMPLES]
    values = values.reshape(-1)[at]
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
