# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Changes of weights. The only module that assigns to a parameter of the user's model."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.errors import WrongModel
from errata.model import hooks
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.patch.parts import Part


@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """A matrix Δ as a product of two: ``a @ b``."""

    a: Tensor
    """(out, r)."""
    b: Tensor
    """(r, in)."""

    @property
    def rank(self) -> int:
        """r, the number of columns of ``a``."""
        return self.a.shape[1]

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return torch.Size((self.a.shape[0], self.b.shape[1]))

    def __repr__(self) -> str:
        return f"<LowRank: {' x '.join(map(str, self.shape))}, rank {self.rank}>"

    def dense(self) -> Tensor:
        """The whole matrix. (out, in)."""
        return self.a @ self.b

    def compact(self) -> "LowRank | Tensor":
        """This product, or the dense matrix where the rank is more than half of the smaller side."""
        return self if self.rank <= min(self.shape) // 2 else self.dense()

    def product(self, x: Tensor) -> Tensor:
        """x Δᵀ for x (…, in), without computing Δ. (…, out)."""
        return (x @ self.b.T.to(x)) @ self.a.T.to(x)

    def __add__(self, other: "LowRank | Tensor") -> "LowRank | Tensor":
        if isinstance(other, Tensor):
            return self.dense() + other
        return LowRank(torch.cat([self.a, other.a], 1), torch.cat([self.b, other.b], 0)).compact()

    __radd__ = __add__

    def __mul__(self, factor: float) -> "LowRank":
        return LowRank(self.a * factor, self.b)


Weight = LowRank | Tensor


@dataclass(frozen=True, eq=False)
class Delta(Part):
    """Adds to weights."""

    kind: ClassVar[str] = "delta"
    FEW: ClassVar[int] = 64  # changed columns that a summary lists
    weights: Mapping[str, Weight]
    """Parameter name -> change. Matrices are (out, in), whatever the module's own order."""

    @override
    def config(self) -> dict[str, Any]:
        return {"low_rank": sorted(name for name, w in self.weights.items() if isinstance(w, LowRank))}

    @override
    def tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, w in self.weights.items():
            out |= {f"{name}.a": w.a, f"{name}.b": w.b} if isinstance(w, LowRank) else {name: w}
        return out

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Delta":
        low: list[str] = config["low_rank"]
        factors = {f"{name}.{side}" for name in low for side in "ab"}
        weights: dict[str, Weight] = {name: LowRank(tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in low}
        return cls(weights | {name: t for name, t in tensors.items() if name not in factors})

    def __add__(self, other: "Delta") -> "Delta":
        """The sum. Low-rank changes of one parameter stay low-rank while that is smaller."""
        joined: dict[str, Weight] = dict(self.weights)
        for name, w in other.weights.items():
            joined[name] = joined[name] + w if name in joined else w
        return Delta(joined)

    def __mul__(self, factor: float) -> "Delta":
        """The change, scaled."""
        return Delta({name: w * factor for name, w in self.weights.items()})

    @override
    def summary(self) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for name, w in self.weights.items():
            full = w.dense() if isinstance(w, LowRank) else w
            record: dict[str, Any] = {
                "kind": self.kind,
                "site": name,
                "shape": list(full.shape),
                "rank": w.rank if isinstance(w, LowRank) else None,
                "norm": round(float(full.float().norm()), 4),
            }
            columns = w.b.any(0).nonzero()[:, 0].tolist() if isinstance(w, LowRank) else []
            if 0 < len(columns) <= self.FEW and len(columns) < full.shape[1]:  # a few neurons, the others untouched
                record["columns"] = columns
            records.append(record)
        return records

    @contextmanager
    def in_force(self, model: nn.Module) -> Generator[None, None, None]:
        """Context manager: each parameter has new storage that holds the sum; afterwards its old storage again.

        A weight that is offloaded or quantised keeps its storage; its linear's output is changed instead.
        """
        self.check(model)
        with ExitStack() as stack:
            for name, w in self.weights.items():
                if stored.is_plain(model, name):
                    param, summed = model.get_parameter(name), changed_weight(model, name, w)
                    stack.callback(setattr, param, "data", param.data)
                    param.data = summed
                else:
                    stack.enter_context(_side_product(model, name, w))
            yield

    def merge(self, model: nn.Module) -> None:
        """Changes the weights for good: all of them, or none if one cannot be changed."""
        sums = {name: changed_weight(model, name, w) for name, w in self.weights.items()}
        for name, summed in sums.items():
            model.get_parameter(name).data = summed

    def check(self, model: nn.Module) -> None:
        """Raises :class:`WrongModel` unless the model has every parameter, in the right shape."""
        for name, w in self.weights.items():
            try:
                shape = stored.shape_of(model, name)
            except AttributeError as error:
                raise WrongModel(f"the patch changes {name}, which this model does not have") from error
            if shape != tuple(w.shape):
                raise WrongModel(f"the patch changes {name} of shape {tuple(w.shape)}; here it has {shape}")


def _transposed(model: nn.Module, name: str) -> bool:
    module, leaf = stored.owner(model, name)
    return leaf == "weight" and stored.transposed(module)


def oriented(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A change in (out, in) in the order in which the module stores the parameter, or the other way round."""
    return value.T if _transposed(model, name) else value


def weight_shape(lm: HFLM, name: str) -> tuple[int, int]:
    """(out, in) of a linear's weight, by parameter name."""
    rows, columns = stored.shape_of(lm.model, name)
    return rows, columns


def changed_weight(model: nn.Module, name: str, w: Weight) -> Tensor:
    """W + ΔW in new storage, in the module's own order and type. Summed in float32 or more precisely."""
    param = stored.plain(model, name, "cannot be changed for good")
    value = at_least_float32(param.data)
    if isinstance(w, LowRank):
        a, b = w.a.to(value), w.b.to(value)
        summed = torch.addmm(value, b.T, a.T) if _transposed(model, name) else torch.addmm(value, a, b)
    else:
        summed = value + oriented(model, name, w.to(value))
    return summed.to(param.dtype).contiguous()


def _side_product(model: nn.Module, name: str, w: Weight) -> Any:
    """Context manager: the linear outputs y + x Δᵀ, for weights that are offloaded or quantised."""
    module, leaf = stored.owner(model, name)
    if leaf != "bias" and not (leaf == "weight" and stored.is_linear(module)):
        raise stored.refusal(model, name, "belongs to no linear layer, beside which its change could run")

    def add(args: hooks.Args, kwargs: hooks.Kwargs, y: Tensor) -> Tensor:
        if leaf == "bias":
            return y + cast(Tensor, w).to(y)
        x = args[0].to(y)
        return y + (w.product(x) if isinstance(w, LowRank) else x @ w.T.to(x))

    return hooks.after(module, add)


def trainable(lm: HFLM, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of parameters that require gradients, in float32 or more precise, for ``HFLM.run(weights=…)``.

    Nothing is assigned to the model. Raises :class:`Unsupported` for a parameter that is offloaded or quantised.
    """
    params = {name: stored.plain(lm.model, name, "cannot be trained") for name in names}
    return {name: at_least_float32(param.detach()).clone().requires_grad_() for name, param in params.items()}


def difference(lm: HFLM, weights: Mapping[str, Tensor]) -> Delta:
    """The dense change from the model's weights to ``weights``, which are as :func:`trainable` made them."""
    changes: dict[str, Weight] = {}
    for name, value in weights.items():
        change = value.detach() - lm.model.get_parameter(name).detach().to(value)
        changes[name] = oriented(lm.model, name, change).contiguous().cpu()
    return Delta(changes)
