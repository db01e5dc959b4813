"""A short digest that identifies a model: of its configuration, its shapes and every weight. And what runs it."""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from errata.model.weights import packed

ROW, PIECE = 1024, 2**22  # eight-byte words of a sum; entries that are read at a time
FLUSHED = 2.0**-15  # what is smaller counts as 0
UNSPECIFIC = {  # keys of the configuration that differ between copies of one model
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "transformers_version",
    "use_cache",
    "architectures",
    "pad_token_id",  # which tokens pad, begin and end a text is the tokenizer's business
    "bos_token_id",
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
}


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits, which any change of a weight changes that bfloat16 can hold.

    Weights are rounded to bfloat16, and what is smaller than 2⁻¹⁵ counts as 0, so that one model has one fingerprint in
    float32 and bfloat16, and in float16 too unless it was saved in float32: float16 then rounds otherwise. Sums are
    formed on the model's device; a billion weights take some seconds on a CPU and milliseconds on a GPU.
    """
    digest = hashlib.sha256()
    config: Any = model.config
    settings = specific(config.to_dict())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        for values in pieces(stored(model, name, tensor).detach()):
            digest.update(_sums(values))
    return digest.hexdigest()[:16]


def specific(settings: dict[str, Any]) -> dict[str, Any]:
    """What a configuration, and those of the parts in it, say of the model itself."""
    return {
        key: specific(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in settings.items()
        if key not in UNSPECIFIC
    }


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, and the buffers that are saved with them, as GPTQ's and AWQ's integers; in order."""
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in sorted(model.named_parameters()):
        if name not in tied:  # offloaded, they are listed twice
            yield name, tensor
    whole = {path for path, _ in packed(model)}
    for path, module in model.named_modules():
        saved = module._buffers.keys() - (set() if path in whole else module._non_persistent_buffers_set)
        for name in sorted(saved):
            if (values := module._buffers[name]) is not None:
                yield f"{path}.{name}" if path else name, values


def pieces(values: Tensor) -> list[Tensor]:
    """The plain tensors that a value consists of: itself, or those that a tensor subclass packs (torchao)."""
    flatten: Any = getattr(values, "__tensor_flatten__", None)
    return [values] if flatten is None else [x for name in flatten()[0] for x in pieces(getattr(values, name))]


@torch.no_grad()
def _sums(values: Tensor) -> bytes:
    """A digest of all entries, in order: of each row of words the sum Σ mᵢ xᵢ mod 2⁶⁴ with odd mᵢ, so that a change of
    any word changes it."""
    sums = [_sums_of(some).cpu() for some in values.reshape(-1).split(PIECE)]
    return hashlib.sha256(torch.cat(sums).numpy().tobytes()).digest() if sums else b""


def _sums_of(values: Tensor) -> Tensor:
    """The sums of one piece of entries (n,), int64."""
    if values.is_floating_point():
        values = values.to(torch.bfloat16)
        values = torch.where(values.abs() < FLUSHED, 0.0, values)
    octets = values.contiguous().view(torch.uint8)
    words = nn.functional.pad(octets, (0, -len(octets) % (8 * ROW))).view(torch.int64).view(-1, ROW)
    factors = torch.arange(1, 2 * ROW, 2, device=words.device) * 0x1E3779B97F4A7C15
    return (words * factors).sum(1)


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


def versions() -> dict[str, str]:
    """Package -> version, of those that a result depends on."""
    return {package: _version(package) for package in ("errata", "torch", "transformers")}


@cache
def _version(package: str) -> str:
    """The version of a package; of one process it stays the same, and to look it up takes files to be read."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
