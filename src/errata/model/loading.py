"""Makes an :class:`HFLM` of a folder, a hub id or a model in memory. The only module that chooses device and dtype."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.model.sites import Sites

log = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.bin")  # files of them in a folder


def load(
    model: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    sites: Sites | None = None,
    **from_pretrained: Any,
) -> HFLM:
    """The model as an :class:`HFLM`.

    ``model`` is a folder, a hub id, or a transformers model in memory (which needs its ``tokenizer``). ``device`` is by
    default the best that is available; ``"auto"`` spreads the model over all of them (extra ``accelerate``). ``dtype``
    is by default float32 on the CPU, and as saved elsewhere. ``sites`` are found where they are not given. Everything
    else goes to ``from_pretrained``. Raises :class:`BadInput`, and :class:`UnknownSites` where sites cannot be found.
    """
    chosen_dtype = _dtype(dtype)
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise BadInput("a model in memory needs its tokenizer: load(model, tokenizer=tokenizer)")
        name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
        if device is not None or chosen_dtype is not None:
            model = _moved(name, model, device=None if device == "auto" else device, dtype=chosen_dtype)
        return HFLM(_with_gradients(model), tokenizer, sites=sites, name=name)
    name = str(model)
    config = _config(name, from_pretrained)
    target = _best_device() if device is None else device
    if chosen_dtype is None and str(target) == "cpu":
        chosen_dtype = torch.float32
    network = _network(name, config, target, chosen_dtype, from_pretrained)
    return HFLM(_with_gradients(network), tokenizer or _tokenizer(name, from_pretrained), sites=sites, name=name)


def check(name: str) -> None:
    """Raises :class:`BadInput` unless a folder or hub id has a model; weights are not read."""
    options = {"trust_remote_code": False}
    _config(name, options)
    _tokenizer(name, options)
    if Path(name).is_dir() and not [file for pattern in WEIGHTS for file in Path(name).glob(pattern)]:
        raise BadInput(f"the folder {name} holds no weights ({' or '.join(WEIGHTS)}); save the model there again")


def _config(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise BadInput(
            f"there is no model {name!r}: no such folder; give a folder with a saved model, a hub id, or 'world'"
        )
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise BadInput(f"the folder {name} holds no config.json; expected a model saved by save_pretrained")
    try:
        return AutoConfig.from_pretrained(name, **_hub_options(options))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(
            f"there is no model {name!r}: not 'world', not a folder here, and the hub gave: {first}"
        ) from error


def _network(name: str, config: Any, device: Any, dtype: torch.dtype | None, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    options = {"dtype": dtype or "auto"} | options
    spread = str(device) == "auto"
    if spread or "quantization_config" in options or getattr(config, "quantization_config", None):
        _need_accelerate()
        options = {"device_map": "auto" if spread else {"": device}} | options  # where weights are quantised
    try:
        network = auto.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"{name} cannot be loaded as a language model: {first}") from error
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _no_place(name, device, error) from error
    return network if "device_map" in options else _moved(name, network, device=device)


def _moved(name: str, model: Any, **to: Any) -> Any:
    try:
        return model.to(**to)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch refuses a device that is not there
        raise _no_place(name, to["device"], error) from error
    except ValueError as error:  # as transformers refuses to cast what is quantised
        raise BadInput(f"{name}: {str(error).strip().splitlines()[0]}; leave device and dtype out") from error


def _no_place(name: str, device: Any, error: Exception) -> BadInput:
    return BadInput(f"{name} cannot be put on {device!r} ({str(error).strip().splitlines()[0]}); try cpu")


def _with_gradients(model: Any) -> Any:
    """The model, with no layer of bitsandbytes packed anew for a kernel of the CPU that passes no gradient on."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # undoes the packing where it has been done
    return model


def _tokenizer(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if _declared_tokenizer(name) in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            # AutoTokenizer would rebuild it from the model's type (Qwen 2): read the file as it is
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, **_hub_options(options))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"{name} has no tokenizer that can be loaded ({first}); pass tokenizer=") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # it was made from the model's type alone
        raise BadInput(f"{name} has no tokenizer; save one beside the model, or pass tokenizer=")
    return tokenizer


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``from_pretrained`` about where files come from, which config and tokenizer need too."""
    names = ("trust_remote_code", "revision", "token", "cache_dir", "local_files_only", "subfolder")
    return {name: options[name] for name in names if name in options}


def _declared_tokenizer(name: str) -> str | None:
    """The class that a folder's own tokenizer_config.json names."""
    file = Path(name) / "tokenizer_config.json"
    return json.loads(file.read_text()).get("tokenizer_class") if file.is_file() else None


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    chosen = getattr(torch, dtype, None)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise BadInput(f"unknown dtype {dtype!r}; expected float32, bfloat16 or float16")
    return chosen


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _need_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise BadInput(
            'device="auto" and quantised weights need accelerate: pip install "errata[accelerate]"'
        ) from error
