"""LoRA: low-rank factors beside a few linear layers, trained on the new answers and read out as a patch.

Hu et al. 2021, arXiv:2106.09685, by way of the package ``peft``; settings as in EasyEdit (arXiv:2308.07269).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from typing_extensions import override

from errata.errors import BadInput, Unsupported, first_line
from errata.methods.base import Tags
from errata.methods.finetune.descent import Descent
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.projection import linears_of
from errata.model.size import Size, Step, Work
from errata.model.weights import oriented, shape_of
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import Patch
from errata.types import Edit

NAME = "default"  # of the adapter while it is in the model


@dataclass(frozen=True, kw_only=True)
class LoRA(Descent):
    """Adam on low-rank changes W + (alpha / rank) B A of a few linear layers in each of some blocks.

    The paper and EasyEdit change the attention's q and v (in GPT-2 c_attn); here it is the down projection. Six
    validation edits of the bundled model, one at a time, with the answer fed: both learn all of them and their
    paraphrases; of the neighbours 0.95 keep their answer against 0.05, of the subject's other facts 0.95 against 0.35,
    of unrelated ones 1.00 against 0.83. On a Llama-like model of the same recipe neither spares the neighbours (0.00),
    and the down projections learn five of six where q and v learn all: lower ``lr`` or choose ``layers`` there.
    """

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA, arXiv:2106.09685"
    stores: ClassVar[str] = "a low-rank change of each linear layer that is a target"
    tags: ClassVar[Tags] = Tags(quick={"steps": 15})

    steps: int = setting(70, "EasyEdit: 30 to 70", key="num_steps")
    lr: float | None = setting(5e-3, "EasyEdit")
    rank: int = setting(8, "EasyEdit", above=0)
    alpha: float = setting(32.0, "EasyEdit", key="lora_alpha", above=0)
    dropout: float = setting(0.1, "EasyEdit: of what goes into A, while it is trained", key="lora_dropout")
    layers: tuple[int, ...] | None = setting(None, "all")
    targets: tuple[Literal["mlp_in", "mlp_out", "attn_out"], ...] = setting(
        ("mlp_out",), "of each block; EasyEdit and the paper: the attention's q and v", key="target_modules"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout >= 1 or not self.targets or self.layers == ():
            raise BadInput("lora needs a dropout below 1, a target and a layer")

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        layers = tuple(range(lm.sites.depth)) if self.layers is None else self.layers
        if wrong := [layer for layer in layers if layer >= lm.sites.depth]:
            raise BadInput(f"lora's layers must lie within 0 to {lm.sites.depth - 1}; found {wrong[0]}")
        return replace(self, layers=layers)

    @override
    def cost(self, size: Size, work: Work) -> list[Step]:
        """Factors, their gradient and Adam's two moments, float32; each round is three passes over the edits."""
        lm = size.lm
        paths = self.resolve(lm, State()).paths(lm)
        factors = 4.0 * self.rank * sum(sum(shape_of(lm.model, f"{path}.weight")) for path in paths)
        passes = 3.0 * self.steps * work.edits
        flop = passes * (work.prompt * size.whole(work.prompt) + work.target * size.head_flop)
        activations = size.kept * size.depth * max(min(lm.budget, work.edits * work.prompt), work.prompt)
        held: Any = {"device": 4 * factors + activations, "host": factors, "disk": factors}
        return [Step("train", "edit", {"model": flop}, **held, note="every round to the last")]

    def paths(self, lm: HFLM) -> list[str]:
        """The linear layers that get factors; for the MLP of a mixture of experts see :func:`linears_of`."""
        paths: list[str] = []
        for target in self.targets:
            for layer in self.layers or ():
                if target == "attn_out":
                    paths.append(lm.sites.attention(layer))
                elif lm.sites.experts_of(layer):
                    paths += linears_of(lm.sites, layer)
                else:
                    paths += lm.sites.mlp_in[layer] if target == "mlp_in" else [lm.sites.mlp_out[layer]]
        return list(dict.fromkeys(paths))

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        examples = self.examples(lm, edits, [edit.target_new for edit in edits])
        with prior.without_wrappers().applied(lm) as edited, injected(lm.model, self.paths(lm), self._config) as layers:
            trained = torch.promote_types(lm.dtype, torch.float32)  # in float16 Adam's 1e-8 is 0
            for layer in layers.values():
                layer.lora_dropout.train()
                for side in (layer.lora_A, layer.lora_B):
                    side.to(trained)
            factors = [f[NAME].weight for layer in layers.values() for f in (layer.lora_A, layer.lora_B)]
            self.report(edits, self.descend(edited, edited.target_logits, examples, factors))
            return prior + Patch((Delta({f"{path}.weight": read(layer) for path, layer in layers.items()}),))

    def _config(self, **where: Any) -> Any:
        from peft import LoraConfig

        return LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, **where)  # pyright: ignore[reportArgumentType]


def read(layer: Any) -> LowRank:
    """The change that a layer of peft makes to its weight, (out, in)."""
    a, b = (factor[NAME].weight.detach().clone().cpu() for factor in (layer.lora_B, layer.lora_A))
    return LowRank(layer.scaling[NAME] * a, b)


@contextmanager
def injected(model: nn.Module, paths: Sequence[str], config: Any) -> Iterator[dict[str, Any]]:
    """Context manager: path -> peft's layer, which wraps the linear layer there inside the ``with`` block.

    Afterwards, also when the block raised, the same modules are in their places, and each parameter collects gradients
    as before.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise BadInput('lora needs peft: pip install "errata[peft]"') from error
    originals = {path: model.get_submodule(path) for path in paths}
    # apart from the model, of whose type peft would conclude where to put them (DeepSeek: beside stacked experts)
    held = nn.ModuleDict({str(i): module for i, module in enumerate(originals.values())})
    held.register_parameter("like", next(model.parameters()))  # tells peft the device where a packed layer has none
    transposed = oriented(model, f"{paths[0]}.weight", torch.empty(1, 2)).shape == (2, 1)  # GPT-2's Conv1D
    with hooks.frozen(model):
        try:
            inject_adapter_in_model(config(target_modules=list(held), fan_in_fan_out=transposed), held, NAME)
        except ValueError as error:  # a class of linear layers that peft does not know
            raise Unsupported(f"{first_line(error)} Load the model unquantised.") from error
        layers = dict(zip(paths, held.children(), strict=True))
        try:
            for path, layer in layers.items():
                _put(model, path, layer)
            yield layers
        finally:
            for path, module in originals.items():
                _put(model, path, module)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
