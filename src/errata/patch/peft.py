# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A change of weights as a LoRA adapter, in the two files that peft and vLLM load: W + B A, with a scaling of 1.

The largest rank stands as ``r`` and as ``lora_alpha``, and so does each module's own where it is another one: vLLM and
llama.cpp read these two alone, and divide.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import Unsupported
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.patch.low_rank import LowRank, Weight
from errata.patch.parts import Part
from errata.patch.peft_experts import FORM, by_parameter, check_stack, padded, stacked
from errata.patch.spectra import cut, in_float64, numeric_rank, svd

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"  # the names that peft and vLLM look for
PREFIX = "base_model.model."  # before a module's path in names of tensors
SIDES = ("lora_A", "lora_B")  # (r, in) and (out, r)
BLOCK = re.compile(r"\.\d+\.")  # a block's number in the path of a module
MERGE = "errata export --to merged writes the whole model"


@dataclass(frozen=True)
class LoRAFiles:
    """What the two files of an adapter hold."""

    config: dict[str, Any]
    """``adapter_config.json``."""
    tensors: dict[str, Tensor]
    """``adapter_model.safetensors``: ``base_model.model.PATH.lora_A.weight`` (r, in), ``…lora_B.weight`` (out, r); of a
    stack of E experts (E · r, in) and (out, r · E)."""
    lost: dict[str, float] = field(default_factory=dict[str, float])
    """Parameter name -> ‖Δ − BA‖ / ‖Δ‖, of each that was cut to a rank."""

    def write(self, folder: Path) -> None:
        """Writes both files to a folder."""
        from safetensors.torch import save_file

        text = json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(self.tensors, folder / TENSORS, {"format": "pt"})


def check_parts(parts: Sequence[Part], kept: type[Part], to: str) -> None:
    """Raises :class:`Unsupported` where a patch has other parts than ``kept``; ``to`` names what they cannot be."""
    if others := sorted({part.kind for part in parts if not isinstance(part, kept)}):
        raise Unsupported(
            f"only changes of weights can be {to}, and this patch holds {', '.join(others)}, which runs beside the "
            "weights; apply it with Errata (patch.applied, errata ask --patch), or make the edits by a method that "
            "changes weights (errata methods)"
        )


def lora_files(
    weights: Mapping[str, Weight], lm: HFLM | None = None, *, base: str = "", rank: int | None = None
) -> LoRAFiles:
    """The adapter that adds these changes. ``base`` names the model it is of.

    A product stays what it is, to the last bit of its numbers. A dense change of small rank is factorised, exactly up
    to float32. Any other is cut to ``rank``, which ``lost`` tells, or refused. Raises :class:`Unsupported` for what
    LoRA cannot hold; what the model alone tells (tied and embedding weights, stacks of experts) is asked where it is
    given, and otherwise only weights of linear layers inside of blocks are taken.
    """
    factors: dict[str, LowRank] = {}
    experts: dict[str, LowRank] = {}
    lost: dict[str, float] = {}
    for name, w in weights.items():
        of_stack = stored.indexed(name)[1] is not None
        _check_expert(name, lm) if of_stack else _check_linear(name, w, lm)
        product, error = _factors(name, w, rank)
        if product.rank:
            (experts if of_stack else factors)[name.removesuffix(".weight")] = _balanced(product)
        if error:
            lost[name] = error
    if not factors and not experts:
        raise Unsupported(
            "this patch changes no weight, and an adapter of nothing cannot be loaded; make an edit first"
        )
    turned = lm is not None and any(stored.transposed(lm.model.get_submodule(path)) for path in factors)
    r = max(w.rank for w in (*factors.values(), *experts.values()))
    stacks = stacked(lm.model, experts, r) if lm is not None and experts else {}
    named = [path for path in factors if by_parameter(lm and lm.model, path)]
    factors |= {path: padded(factors[path], r) for path in named}
    layers = {path: w.rank for path, w in factors.items() if path not in named}
    parameters = [*stacks, *(f"{path}.weight" for path in named)]
    config = _config(layers, parameters, r, base, turned, lm is not None and lm.seq2seq)
    tensors = {
        f"{PREFIX}{path}.{side}.weight": factor.to(_saved(factor.dtype)).cpu().contiguous().clone()
        for path, w in [*factors.items(), *stacks.values()]
        for side, factor in zip(SIDES, (w.b, w.a), strict=True)
    }
    return LoRAFiles(config, tensors, lost)


def _check_expert(name: str, lm: HFLM | None) -> None:
    """Raises :class:`Unsupported` unless the model is there and has the stack."""
    if lm is None:
        raise Unsupported(
            f"{name} is one expert of a stack, which the model alone describes: give it, patch.to_peft(folder, lm); "
            f"or {MERGE}"
        )
    check_stack(lm.model, name)


def _check_linear(name: str, w: Weight, lm: HFLM | None) -> None:
    """Raises :class:`Unsupported` unless the change is of the matrix of a linear layer that nothing else reads."""
    if len(w.shape) != 2 or not name.endswith(".weight"):
        raise Unsupported(f"{name} is no matrix of a linear layer, and LoRA adds to those alone; {MERGE}")
    if lm is None:
        if not BLOCK.search(name):
            raise Unsupported(
                f"{name} lies outside of the blocks, where only the model tells whether it is a linear layer of its "
                "own; give the model: patch.to_peft(folder, lm)"
            )
        return
    module = stored.owner(lm.model, name)[0]
    if not stored.is_linear(module):
        raise Unsupported(f"{name} belongs to a {type(module).__name__}, and LoRA adds to linear layers alone; {MERGE}")
    if readers := _other_readers(lm.model, name):
        raise Unsupported(f"{name} is {readers[0]} too, which an adapter would leave as it was; {MERGE}")


def _other_readers(model: nn.Module, name: str) -> list[str]:
    """The other names of a parameter that is tied."""
    param: Any = getattr(*stored.owner(model, name), None)
    named = model.named_parameters(remove_duplicate=False)
    return [other for other, one in named if one is param and other != name]


def _factors(name: str, w: Weight, rank: int | None) -> tuple[LowRank, float]:
    """The change as a product, and the share that is lost by cutting it to ``rank``."""
    if isinstance(w, LowRank) and (rank is None or w.rank <= rank):
        return w, 0.0
    full, dtype = min(w.shape), torch.float32
    s = svd(w)[1] if isinstance(w, LowRank) else torch.linalg.svdvals(in_float64(w))
    found = numeric_rank(s, w.shape, dtype)
    if rank is not None and found > rank:
        return cut(w, rank)
    if found > full // 2 and rank is None:
        raise Unsupported(
            f"the change of {name} is of rank {found}, of {full} that there can be: an adapter of it would be as large "
            f"as the weight; cut it with --rank R (rank=R), or {MERGE}"
        )
    return cut(w, found)[0], 0.0


def _balanced(w: LowRank) -> LowRank:
    """The same product, to the bit: powers of two move size between the factors, so that half precision holds both."""
    a, b = w.a.double().norm(dim=0), w.b.double().norm(dim=1)
    ratio = torch.where((a > 0) & (b > 0), b / a, 1.0)
    power = torch.exp2((ratio.log2() / 2).round()).to(torch.float64)
    return LowRank((w.a.double() * power).to(w.a.dtype), (w.b.double() / power[:, None]).to(w.b.dtype))


def _saved(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def _config(
    layers: Mapping[str, int], parameters: Sequence[str], r: int, base: str, turned: bool, seq2seq: bool
) -> dict[str, Any]:
    """``adapter_config.json``, from the layers' ranks, of which ``r`` is the largest, and that of all parameters.

    ``turned`` where layers keep their weights as (in, out), as GPT-2's do.
    """
    own = {rf"^{re.escape(path)}": rank for path, rank in layers.items() if rank != r}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": own,
        "alpha_pattern": own,
        "target_modules": list(layers),
        **({"target_parameters": [*parameters], "peft_version": FORM} if parameters else {}),
        "fan_in_fan_out": turned,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }
