"""A LoRA adapter of peft as a patch: ΔW = s · B A, with s = alpha / r, or alpha / √r where it is rank-stabilised.

Of stacked experts it adapts the whole parameter (:mod:`errata.patch.peft_experts`).

Nothing in the folder is run: its configuration is read as JSON, its numbers from safetensors. What an adapter holds
beside plain LoRA is refused by name, for a patch that is nearly the adapter is none.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.inputs import parsed, read_text
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight
from errata.patch.patch import Patch
from errata.patch.peft import CONFIG, PREFIX, SIDES, TENSORS
from errata.patch.peft_experts import FORM, as_factors, is_of_form, matrices, parted, places
from errata.printable import listed, shown
from errata.tensor_files import MOST_TENSORS

MOST = 2**22  # characters of a configuration
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
NAME = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.(lora_A|lora_B)\.weight")
SAYS_NOTHING = (  # about what the adapter adds, when it runs
    "alora_invocation_string auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode layers_pattern layers_to_transform lora_dropout lora_ga_config "
    "megatron_config megatron_core peft_version qalora_group_size revision runtime_config target_modules task_type"
).split()
READ = "peft_type r lora_alpha rank_pattern alpha_pattern use_rslora init_lora_weights bias target_parameters".split()
LEAVES_THE_BASE = (None, "gaussian", "eva", "orthogonal", "mica")  # ways to begin in which the base stays as it is
MERGE = "merge it with peft (merge_and_unload, save_pretrained) and import that: errata import BASE --edited FOLDER"
# What a pattern of names may hold: no groups that repeat, and few stars, so that no name takes long to compare.
PATTERN = re.compile(r"[\w.^$|()\\*+?:\[\]-]{1,500}")
REPEATED = re.compile(r"\)[*+?{]|[*+?][*+?{]")
STARS = 3
Pattern = Mapping[str, float]


def from_peft(lm: HFLM, folder: str | Path) -> Patch:
    """The patch that adds what the adapter in the folder adds, as products of its factors (float32 or finer).

    Raises :class:`BadInput`, which names the file and the field, for a folder without an adapter, one whose numbers are
    a pickle, one that is damaged or belongs to another model, and for anything that plain LoRA does not have (DoRA,
    biases, saved modules, adapted embeddings, …).
    """
    folder = Path(folder)
    config = _config(folder)
    named = _parameters(lm, folder, config)
    factors = _factors(lm, folder, named)
    weights: dict[str, Weight] = {}
    ranks: dict[str, int] = {}
    for path, (a, b) in factors.items():
        name = named.get(path)
        key = name or path
        ranks[key] = a.shape[0] // (len(matrices(lm.model, name)) if name else 1)
        product = LowRank((b * _scale(folder, config, key, ranks[key])).contiguous(), a.contiguous())
        weights |= parted(lm.model, name, product) if name else {f"{path}.weight": product}
    _check_targets(folder, config, [path for path in factors if path not in named])
    _check_ranks(folder, config, ranks)
    imported = {"from": "peft", "base": str(config.get("base_model_name_or_path") or "")[:500]}
    model = {"name": lm.name, "fingerprint": lm.fingerprint}
    patch = Patch((Delta(weights),), meta={"model": model, "made": [], "imported": imported})
    patch.check(lm)
    if where := patch.not_finite():
        raise BadInput(f"{folder}: {where} is no finite number; fetch the adapter anew")
    return patch


# The configuration -------------------------------------------------------------------------------


def _config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json``, which describes plain LoRA. Raises :class:`BadInput`."""
    file = folder / CONFIG
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}; give the folder of a LoRA adapter, with {CONFIG} and {TENSORS}")
    try:
        config = parsed(read_text(file, "an adapter", MOST))
    except BadInput as error:
        raise BadInput(f"{file}: {error}; give the folder of a LoRA adapter, as peft saves one") from error
    if not isinstance(config, dict):
        raise BadInput(f"{file} holds a {type(config).__name__}, expected a JSON object; save the adapter anew")
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{file} is of an adapter of type {shown(config.get('peft_type'))}; only LORA is read: {MERGE}")
    begins = config.get("init_lora_weights", True)
    if not (isinstance(begins, bool) or begins in LEAVES_THE_BASE):
        raise BadInput(
            f"{file}: init_lora_weights is {shown(begins)}, which changes the base's weights where the adapter is "
            f"loaded; {MERGE}"
        )
    if config.get("bias", "none") != "none":
        raise BadInput(f"{file}: bias is {shown(config['bias'])}, so biases were trained, which are not read; {MERGE}")
    for key, value in config.items():
        if key not in SAYS_NOTHING and key not in READ and value not in (None, False, 0, "", [], {}):
            raise BadInput(f"{file}: {shown(key)} is {shown(value)}, which plain LoRA does not have; {MERGE}")
    return config


def _parameters(lm: HFLM, folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The path under which factors lie -> the parameter that ``target_parameters`` names. Raises :class:`BadInput`."""
    targets = config.get("target_parameters") or []
    file = folder / CONFIG
    if not isinstance(targets, list) or not all(isinstance(target, str) and target for target in targets):
        raise BadInput(f"{file}: target_parameters is a list of names, found {shown(targets)}; save the adapter anew")
    if not targets:
        return {}
    if not is_of_form(version := config.get("peft_version")):
        raise BadInput(
            f"{file}: target_parameters are read as peft writes them from {FORM} on, and this adapter is of "
            f"{shown(version)}; load it with that peft, and save it with a newer one, or {MERGE}"
        )
    found = places(lm.model, targets)
    if odd := [name for name in found.values() if not matrices(lm.model, name)]:
        raise BadInput(f"{file}: {odd[0]} is neither a linear layer's matrix nor a stack of experts; {MERGE}")
    return found


def _scale(folder: Path, config: Mapping[str, Any], path: str, rank: int) -> float:
    """alpha / r of a module, or alpha / √r. Raises :class:`BadInput` where the two are no numbers."""
    alpha = _of(folder, config, "alpha_pattern", "lora_alpha", path, 8)
    rslora = config.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise BadInput(f"{folder / CONFIG}: use_rslora is true or false, found {shown(rslora)}")
    return alpha / (math.sqrt(rank) if rslora else rank)


def _check_targets(folder: Path, config: Mapping[str, Any], paths: list[str]) -> None:
    """Raises :class:`BadInput` for a module that ``target_modules`` lists by no name: peft would leave it out."""
    targets = config.get("target_modules")
    if not isinstance(targets, list):  # a pattern, which peft compares with the model's modules
        return
    names = {target for target in targets if isinstance(target, str)}
    for path in paths:
        steps = path.split(".")
        if not any(".".join(steps[i:]) in names for i in range(len(steps))):
            raise BadInput(
                f"{folder}: {TENSORS} has factors of {path}, which target_modules of {CONFIG} does not name, so peft "
                "would leave them out; the two files do not belong together"
            )


def _check_ranks(folder: Path, config: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
    """Raises :class:`BadInput` where a module's factors are of another rank than the configuration says."""
    for path, rank in ranks.items():
        said = _of(folder, config, "rank_pattern", "r", path, 8)
        if said != rank:
            raise BadInput(
                f"{folder}: the factors of {path} are of rank {rank}, and {CONFIG} says {said:g}; "
                "the two files do not belong together"
            )


def _of(folder: Path, config: Mapping[str, Any], pattern: str, default: str, path: str, otherwise: float) -> float:
    """The number of a module: that of the first pattern of names that it matches, as peft compares, or the default."""
    patterns = config.get(pattern) or {}
    if not isinstance(patterns, dict):
        raise BadInput(f"{folder / CONFIG}: {pattern} is an object of numbers by name, found {shown(patterns)}")
    value = next((value for key, value in patterns.items() if _matches(folder, pattern, key, path)), None)
    value = config.get(default, otherwise) if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise BadInput(f"{folder / CONFIG}: {default} of {path} is a number of at least 0, found {shown(value)}")
    return value


def _matches(folder: Path, pattern: str, key: str, path: str) -> bool:
    """Whether peft takes a key of a pattern to mean a module: (.*\\.)?(key)$."""
    if not PATTERN.fullmatch(key) or REPEATED.search(key) or len(re.findall(r"[*+?]", key)) > STARS:
        raise BadInput(
            f"{folder / CONFIG}: the key {shown(key)} of {pattern} is no simple pattern of names; "
            "write the modules' whole names"
        )
    try:
        return re.match(rf"(.*\.)?({key})$", path) is not None
    except re.error as error:
        raise BadInput(f"{folder / CONFIG}: the key {shown(key)} of {pattern} is no pattern ({error})") from error


# The numbers -------------------------------------------------------------------------------------


def _factors(lm: HFLM, folder: Path, named: Mapping[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path -> A (r, in) and B (out, r), float32 or finer. Shapes are looked at before numbers are read.

    ``named`` are the paths whose factors are of a parameter: of one with E matrices (E · r, in) and (out, r · E).
    """
    from safetensors import SafetensorError, safe_open

    file = folder / TENSORS
    if not file.is_file():
        if pickles := [name for name in PICKLES if (folder / name).exists()]:
            raise BadInput(
                f"{folder} holds its numbers in {pickles[0]}, a pickle, which can run code and is never read; "
                f"save the adapter anew with peft, which writes {TENSORS}"
            )
        raise BadInput(f"{folder} holds no {TENSORS}; give the folder of a LoRA adapter, as peft saves one")
    try:
        with safe_open(file, framework="pt") as held:
            names = list(held.keys())
            if not 0 < len(names) <= MOST_TENSORS:
                raise BadInput(f"{file} holds {len(names)} tensors; an adapter has two for each layer")
            modules = _modules(file, names)
            if lacking := [name for path, name in named.items() if path not in modules]:
                raise BadInput(f"{file} has no factors of {lacking[0]}, which target_parameters of {CONFIG} names")
            for path, sides in modules.items():
                _check_shapes(
                    lm, file, path, named.get(path), *(held.get_slice(sides[side]).get_shape() for side in SIDES)
                )
            read = {path: [held.get_tensor(sides[side]) for side in SIDES] for path, sides in modules.items()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} is broken or not whole ({error}); fetch the adapter anew") from error
    for path, sides in read.items():
        if odd := [t.dtype for t in sides if t.dtype not in stored.FLOATS]:
            raise BadInput(f"{file}: the factors of {path} are of {odd[0]}, expected floating-point numbers")
    fine = {path: [t.to(torch.promote_types(t.dtype, torch.float32)) for t in sides] for path, sides in read.items()}
    wide = {path: torch.promote_types(a.dtype, b.dtype) for path, (a, b) in fine.items()}
    return {path: (a.to(wide[path]).clone(), b.to(wide[path]).clone()) for path, (a, b) in fine.items()}


def _modules(file: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Module path -> side -> the tensor's name. Raises :class:`BadInput` for tensors that are no factors of LoRA."""
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        if (match := NAME.fullmatch(name)) is None:
            raise BadInput(
                f"{file}: {shown(name)} is no factor of a linear layer (…lora_A.weight, …lora_B.weight); {MERGE}"
            )
        sides = modules.setdefault(match[1], {})
        if match[2] in sides:
            raise BadInput(f"{file}: {match[1]} has two factors {match[2]}; save the adapter anew")
        sides[match[2]] = name
    if alone := [path for path, sides in modules.items() if len(sides) < 2]:
        raise BadInput(f"{file}: {listed(alone[:3])} has one factor of two; fetch the adapter anew")
    return modules


def _check_shapes(lm: HFLM, file: Path, path: str, named: str | None, a: list[int], b: list[int]) -> None:
    """Raises :class:`BadInput` unless A and B fit the parameter that is ``named``, else a linear layer of the model."""
    (out, into), count = (_shape(lm, file, path), 1) if named is None else _shape_of(lm, named)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] < 1 or a[0] % count or (b[0], a[1]) != (out, into):
        r = "r" if count == 1 else f"{count} r"
        raise BadInput(
            f"{file}: the factors of {path} have the shapes {tuple(a)} and {tuple(b)}, expected ({r}, {into}) and "
            f"({out}, {r}); load the adapter's base"
        )


def _shape_of(lm: HFLM, name: str) -> tuple[tuple[int, int], int]:
    """Outputs and inputs of a parameter's factors, and how many matrices it holds."""
    return as_factors(lm.model, name), len(matrices(lm.model, name))


def _shape(lm: HFLM, file: Path, path: str) -> tuple[int, int]:
    """Outputs and inputs of a linear layer. Raises :class:`BadInput` where the model has none of that path."""
    name = f"{path}.weight"
    try:
        shape = stored.shape_of(lm.model, name)
        linear = stored.is_linear(stored.owner(lm.model, name)[0])
    except AttributeError as error:
        raise BadInput(
            f"{file} adapts {shown(path)}, which {lm.name or 'this model'} does not have; load the adapter's base"
        ) from error
    if not linear:
        raise BadInput(f"{file} adapts {path}, which is no linear layer here; load the adapter's base")
    out, into = shape
    return out, into
