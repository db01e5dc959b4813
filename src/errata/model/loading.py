"""Makes an :class:`HFLM` of a folder, a hub id or a model in memory. The only module that chooses device and dtype."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from errata.errors import BadInput, first_line
from errata.model import folder, hub
from errata.model.asked import label_of
from errata.model.chat import Template, chosen
from errata.model.configuration import auto_class
from errata.model.hf import HFLM
from errata.model.sites import Sites
from errata.model.view import stops_of
from errata.model.whole import check_whole, name_of

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")  # in which torch can compute all that a model does
BACKENDS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # tokenizers that are wholly in their file
WEIGHTS = ("*.safetensors", "*.bin")  # files of them in a folder


def load(
    model: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    sites: Sites | None = None,
    chat: bool | None = None,
    system: str | None = None,
    trust_remote_code: bool = False,
    **from_pretrained: Any,
) -> HFLM:
    """The model as an :class:`HFLM`.

    ``model`` is a folder, a hub id, or a transformers model in memory (which needs its ``tokenizer``). ``device`` is by
    default the best that is available; ``"auto"`` spreads it over all of them (extra ``accelerate``). ``dtype``
    is by default float32 on the CPU, and as saved elsewhere. ``sites`` are found where they are not given. Code that
    comes with a model runs with ``trust_remote_code`` alone. Everything else goes to ``from_pretrained``.

    With ``chat`` a prompt is a user's turn under the tokenizer's chat template, behind the message ``system`` or the
    template's own. By default it is where the model stops at the end of the template's turns, as instruct models do
    (which is logged); ``chat=False`` asks in plain text.

    Raises :class:`BadInput`, also for a model of which weights are missing, have another shape than its configuration
    says, or are no finite numbers; and :class:`UnknownSites` where sites cannot be found.
    """
    chosen_dtype, chosen_device = _dtype(dtype), _device(device)
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise BadInput("a model in memory needs its tokenizer: load(model, tokenizer=tokenizer)")
        name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
        if device is not None or chosen_dtype is not None:
            where = None if device in (None, "auto") else chosen_device
            model = _moved(name, model, device=where, dtype=chosen_dtype)
        template = _template(model, tokenizer, chat, system, name)
        return HFLM(_with_gradients(model), tokenizer, sites=sites, name=name, template=template)
    name = str(model)
    options = _from_where(name, from_pretrained | {"trust_remote_code": trust_remote_code})
    config = _config(name, options)
    if chosen_dtype is None and str(chosen_device) == "cpu":
        chosen_dtype = torch.float32
    read_by = tokenizer or _tokenizer(name, options)
    network = _with_gradients(_network(name, config, chosen_device, chosen_dtype, options))
    template = _template(network, read_by, chat, system, name)
    with folder.named(name, "cannot be run", options):
        lm = HFLM(network, read_by, sites=sites, name=name, template=template)
    rows, vocabulary = lm.tokens.rows, int(getattr(read_by, "vocab_size", 0))
    if rows is not None and vocabulary > rows:  # added tokens are told where a text has one
        raise BadInput(
            f"the tokenizer of {name} has {vocabulary} tokens and the model's embedding {rows} rows: "
            "the two belong to different models"
        )
    return lm


def outline(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    chat: bool | None = None,
    system: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[HFLM, torch.device]:
    """The model without its numbers (on the meta device), and where :func:`load` would put it.

    Of its files only the configuration and the tokenizer are read. Raises what :func:`load` raises, also for a model
    that is spread over several devices, and :class:`UnknownSites` where sites cannot be told without numbers.
    """
    chosen_dtype, chosen_device = _dtype(dtype), _device(device)
    if str(chosen_device) == "auto":
        raise BadInput("a plan is of one device, and auto spreads a model over several; name one (cuda, cpu)")
    chosen_device = torch.device(chosen_device)
    name = str(model)
    options = _from_where(name, {"trust_remote_code": trust_remote_code})
    config = _config(name, options)
    if chosen_dtype is None:
        saved = getattr(config, "dtype", None)
        chosen_dtype = saved if isinstance(saved, torch.dtype) and chosen_device.type != "cpu" else torch.float32
    if getattr(config, "quantization_config", None):
        log.warning("%s is saved quantised; what follows is of its weights in %s", name, name_of(chosen_dtype))
    with folder.named(name, "cannot be made as its config.json says", options), torch.device("meta"):
        auto = auto_class(config)  # the plain attention: others look into the mask's numbers
        making: Any = {"dtype": chosen_dtype, "attn_implementation": "eager", "trust_remote_code": trust_remote_code}
        network = auto.from_config(config, **making)
    tokenizer = _tokenizer(name, options)
    with folder.named(name, "cannot be run without its numbers", options):
        template = _planned_template(name, config, tokenizer, options, chat, system)
        return HFLM(network, tokenizer, name=name, template=template), chosen_device


def asked_label(
    name: str, *, chat: bool | None = None, system: str | None = None, trust_remote_code: bool = False
) -> str:
    """How :func:`load` would ask a folder's or hub id's model, as ``HFLM.asked_label`` says it; weights are not read.

    Raises :class:`BadInput`, as :func:`load` does.
    """
    options = _from_where(name, {"trust_remote_code": trust_remote_code})
    config, tokenizer = _config(name, options), _tokenizer(name, options)
    template = _planned_template(name, config, tokenizer, options, chat, system)
    return label_of(tokenizer, template, _is_seq2seq(config))


def check(name: str, *, trust_remote_code: bool = False) -> None:
    """Raises :class:`BadInput` unless a folder or hub id has a model; weights are not read."""
    options = _from_where(name, {"trust_remote_code": trust_remote_code})
    _config(name, options)
    _tokenizer(name, options)
    if Path(name).is_dir() and not [file for pattern in WEIGHTS for file in Path(name).glob(pattern)]:
        raise BadInput(f"the folder {name} holds no weights ({' or '.join(WEIGHTS)}); save the model there again")


def config_of(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a folder's or hub id's model. Raises :class:`BadInput` where there is none."""
    return _config(name, _from_where(name, {"trust_remote_code": trust_remote_code}))


def _from_where(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with ``local_files_only`` for a hub id where the hub cannot be reached."""
    if Path(name).is_dir() or options.get("local_files_only"):
        return options
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BadInput(
            f"there is no model {name!r}: no such folder; give a folder with a saved model, a hub id, or 'world'"
        )
    why = hub.unreachable(name, "config.json", token=options.get("token"))
    if why is None:
        return options
    options = options | {"local_files_only": True}
    if folder.read_json(name, "config.json", options) is None:
        raise BadInput(
            f"there is no model {name!r}: not 'world', not a folder here, not in the hub's cache, "
            f"and the hub cannot be reached ({why})"
        )
    log.warning("the hub cannot be reached (%s); %s is taken from its cache", why, name)
    return options


def _config(name: str, options: dict[str, Any]) -> Any:
    """The configuration of transformers. Raises :class:`BadInput` where there is none, or none that makes a model."""
    from transformers import AutoConfig

    try:
        said = folder.read_json(name, "config.json", options, needed=True)
        adapter = folder.read_json(name, "adapter_config.json", options)
    except OSError as error:
        raise BadInput(
            f"there is no model {name!r}: not 'world', not a folder here, and the hub gave: {first_line(error)}"
        ) from error
    if adapter is not None:
        raise BadInput(
            f"{name} holds an adapter (adapter_config.json), and what the model under it lacks would not be seen; "
            "merge the two (merge_and_unload of peft) and save that, or take the adapter's files away"
        )
    if said is None and Path(name).is_dir():
        raise BadInput(f"the folder {name} holds no config.json; expected a model saved by save_pretrained")
    if said is None:
        raise BadInput(f"there is no model {name!r}: not 'world', not a folder here, nor a model of the hub")
    folder.check_counts(name, said)
    folder.refuse_kernels(name, said, bool(options["trust_remote_code"]))
    with folder.named(name, "has a config.json that describes no model", options):
        config = AutoConfig.from_pretrained(name, **folder.hub_options(options))
    folder.check_size(name, config, options)
    return config


def _network(name: str, config: Any, device: Any, dtype: torch.dtype | None, options: dict[str, Any]) -> nn.Module:
    """The model, whole and on its device."""
    auto = auto_class(config)
    options = {"dtype": dtype or "auto"} | options
    spread = str(device) == "auto"
    if spread or "quantization_config" in options or getattr(config, "quantization_config", None):
        _need_accelerate()
        options = {"device_map": "auto" if spread else {"": device}} | options  # where weights are quantised
    if options.get("local_files_only"):  # transformers asks the hub for an adapter all the same
        options["adapter_kwargs"] = {"local_files_only": True, **(options.get("adapter_kwargs") or {})}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that they can be named
    with folder.named(name, "cannot be loaded as a language model", options):
        network, found = auto.from_pretrained(name, **options)
    check_whole(name, network, found)
    return network if "device_map" in options else _moved(name, network, device=device)


def _moved(name: str, model: Any, **to: Any) -> Any:
    try:
        return model.to(**to)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no memory there, or no such numbers
        raise BadInput(f"{name} cannot be put on {to['device']} ({first_line(error)}); try cpu") from error
    except ValueError as error:  # as transformers refuses to cast what is quantised
        raise BadInput(f"{name}: {first_line(error)}; leave device and dtype out") from error


def _with_gradients(model: Any) -> Any:
    """The model, with no layer of bitsandbytes packed anew for a kernel of the CPU that passes no gradient on."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # undoes the packing where it has been done
    return model


def _template(model: Any, tokenizer: Any, chat: bool | None, system: str | None, name: str) -> Template | None:
    return chosen(tokenizer, chat, system, stops_of(model), name, _is_seq2seq(model.config))


def _planned_template(
    name: str, config: Any, tokenizer: Any, options: dict[str, Any], chat: bool | None, system: str | None
) -> Template | None:
    """That of a model which is not loaded: it will stop where its files of configuration say."""
    from transformers import GenerationConfig

    said = folder.read_json(name, "generation_config.json", options)
    generation = GenerationConfig.from_model_config(config) if said is None else SimpleNamespace(**said)
    stops = stops_of(SimpleNamespace(generation_config=generation, config=config))
    return chosen(tokenizer, chat, system, stops, name, _is_seq2seq(config))


def _is_seq2seq(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


def _tokenizer(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with folder.named(name, "has no tokenizer that can be loaded (pass tokenizer= if you have one)", options):
        declared = (folder.read_json(name, "tokenizer_config.json", options) or {}).get("tokenizer_class")
        # AutoTokenizer would rebuild it from the model's type (Qwen 2): read the file as it is
        auto: Any = PreTrainedTokenizerFast if declared in BACKENDS else AutoTokenizer
        tokenizer = auto.from_pretrained(name, **folder.hub_options(options))
        made_of_nothing = not tokenizer("a", add_special_tokens=False)["input_ids"]  # from the model's type alone
    if made_of_nothing:
        raise BadInput(f"{name} has no tokenizer; save one beside the model, or pass tokenizer=")
    return tokenizer


# Where and in which numbers --------------------------------------------------------------------------


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    name = name_of(dtype)
    if name not in DTYPES:
        raise BadInput(f"unknown dtype {name!r}; expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    return getattr(torch, name)


def _device(device: str | torch.device | None) -> str | torch.device:
    """Where to run. Raises :class:`BadInput` for what is no device here."""
    if device is None:
        return _best_device()
    if str(device) == "auto":
        return "auto"
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise BadInput(f"there is no device {device!r} here ({first_line(error):.90}); try {_best_device()}") from error
    if chosen.type == "meta":
        raise BadInput(f"the device meta holds no numbers; try {_best_device()}")
    return chosen


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def accelerators(device: str | torch.device | None) -> int:
    """How many accelerators a worker needs to have a model on this device: one, or none on the CPU.

    Raises :class:`BadInput` for a device with a number: each worker is given its own.
    """
    kind, colon, number = str(_best_device() if device in (None, "auto") else device).partition(":")
    if colon and kind != "cpu":
        raise BadInput(f"each worker has an accelerator of its own, and the device names number {number}; say {kind}")
    return int(kind == "cuda")


def _need_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise BadInput(
            'device="auto" (--device auto) and quantised weights need accelerate: pip install "errata[accelerate]"'
        ) from error
