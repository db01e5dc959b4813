"""The down projection of a block as one linear map: a single layer's, or that of a mixture of experts.

projection = Projection.of(lm.sites, 3)
read = lm.read(rows, columns, [(projection.path, KEY)])
read["model.layers.3.mlp.experts.down_proj[17]", KEY]      # (k, f): zero where expert 17 was not asked
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.model import hooks
from errata.model.experts import Routed, routed
from errata.model.mixtures import gate_of, left_over
from errata.model.passes import hidden_of
from errata.model.sites import Sites
from errata.model.stacks import DOWN, is_stack
from errata.model.weights import indexed, shape_of

KEY = "key"  # the side of a site that stands for what goes into a down projection, weight by weight


@dataclass(frozen=True)
class WeightKeys:
    """The keys of one weight in a pass: ``tokens`` (m,) of all b·t, None for all, and ``keys`` (m, f)."""

    weight: str
    tokens: Tensor | None
    keys: Tensor

    def at(self, flat: Tensor, total: int) -> Tensor:
        """The keys at some tokens (k,) of ``total``, zero at those that the weight did not see. (k, f)."""
        if self.tokens is None:
            return self.keys[flat]
        place = torch.full((total,), -1, device=self.keys.device)
        place[self.tokens] = torch.arange(len(self.tokens), device=place.device)
        found = place[flat]
        return torch.where(found[:, None] >= 0, self.keys[found.clamp(min=0)], 0.0)


@dataclass(frozen=True)
class Projection:
    """The weights that a block's MLP ends with, and where what they add up to comes out."""

    path: str
    """The module whose output is the value: the linear, or what is around the experts."""
    experts: tuple[str, ...] = ()
    """The stack of experts, and a shared expert's linear; empty for a single linear."""

    @classmethod
    def of(cls, sites: Sites, layer: int) -> "Projection":
        """The down projection of a block."""
        return cls(sites.mlp_out[layer], sites.experts_of(layer))

    @classmethod
    def at(cls, sites: Sites, path: str) -> "Projection":
        """The down projection whose output is at ``path``."""
        return cls.of(sites, sites.mlp_out.index(path)) if path in sites.mlp_out else cls(path)

    @classmethod
    def holding(cls, sites: Sites, weight: str) -> "Projection":
        """The down projection that a weight belongs to: a mixture's, for those of its experts."""
        path = indexed(weight)[0].rpartition(".")[0]
        layer = next((i for i, names in enumerate(sites.experts) if path in names), None)
        return cls.at(sites, path) if layer is None else cls.of(sites, layer)

    def parameters(self, model: nn.Module) -> list[str]:
        """Names of the parameters, a stack of experts as one."""
        paths = self.experts or (self.path,)
        return [f"{path}.{DOWN if is_stack(model.get_submodule(path)) else 'weight'}" for path in paths]

    def weights(self, model: nn.Module) -> list[str]:
        """Names of the matrices, each expert's apart."""
        names: list[str] = []
        for name in self.parameters(model):
            shape = shape_of(model, name)
            names += [f"{name}[{e}]" for e in range(shape[0])] if len(shape) == 3 else [name]
        return names

    def shape(self, model: nn.Module) -> tuple[int, int]:
        """(out, in): ``in`` is the width of a whole key, all experts' together."""
        shapes = [shape_of(model, name) for name in self.parameters(model)]
        return shapes[0][-2], sum(shape[0] * shape[2] if len(shape) == 3 else shape[1] for shape in shapes)

    def watched(
        self, model: nn.Module, show: Callable[[WeightKeys], None], done: Callable[[], None]
    ) -> AbstractContextManager[Any]:
        """Context manager: in each pass ``show`` gets the keys of every weight that saw a token; then ``done``."""
        if not self.experts:

            def single(args: hooks.Args, kwargs: hooks.Kwargs) -> None:
                show(WeightKeys(f"{self.path}.weight", None, args[0].reshape(-1, args[0].shape[-1])))
                done()

            return hooks.before(model.get_submodule(self.path), single)
        seen: dict[str, tuple[hooks.Args, hooks.Kwargs, Any]] = {}
        stack, *shared = self.experts

        def keep(path: str) -> hooks.After:  # a copy, as Llama 4 adds to the shared expert's output in place
            return lambda args, kwargs, output: seen.update({path: (args, kwargs, output.clone())})

        def mixture(args: hooks.Args, kwargs: hooks.Kwargs, output: Any) -> None:
            inner, inner_kwargs, stack_out = seen[stack]
            for call in routed(model.get_submodule(stack), inner, inner_kwargs):
                show(_of_expert(stack, call))
            for path in shared:
                read, _, own = seen[path]
                gate = gate_of(left_over(hidden_of(output), stack_out), own.reshape(-1, own.shape[-1]))
                show(WeightKeys(f"{path}.weight", None, read[0].reshape(len(gate), -1).to(gate) * gate[:, None]))
            done()

        watching = [hooks.after(model.get_submodule(path), keep(path)) for path in self.experts]
        around = hooks.after(model.get_submodule(self.path), mixture)
        return hooks.all_of([*watching, around])


def flow_shape(model: nn.Module, sites: Sites, path: str) -> tuple[int, int]:
    """(out, in): how wide what comes out of a linear layer and goes into it is, or of a mixture: hidden states both."""
    projection = Projection.at(sites, path)
    out, into = projection.shape(model)
    return (out, out) if projection.experts else (out, into)


def linears_of(sites: Sites, layer: int) -> list[str]:
    """Linear layers to change in the place of a down projection: itself, or in a mixture of experts the shared
    expert's; where all experts are stacked, the attention's output."""
    projection = Projection.of(sites, layer)
    if not projection.experts:
        return [projection.path]
    return list(projection.experts[1:]) or [sites.attention(layer)]


def _of_expert(stack: str, call: Routed) -> WeightKeys:
    return WeightKeys(f"{stack}.{DOWN}[{call.expert}]", call.tokens, call.keys)
