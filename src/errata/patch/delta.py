# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Changes of weights. The only module that assigns to a parameter of the user's model."""

import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict, override

from errata.errors import BadInput, Refused, Unsupported, WrongModel
from errata.model import hooks
from errata.model import weights as stored
from errata.model.experts import DOWN, is_stack, routed
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.patch.parts import Part
from errata.patch.schema import STRICT, Shape, bound, read
from errata.printable import shown

log = logging.getLogger(__name__)
BLOCK = 2**22  # entries of a matrix in half precision that are summed at a time, in float32
WHOLE = 0.99  # of a change that a rounded sum must hold; otherwise the change runs beside the weight
ROUNDED = "rounding leaves %.0f%% of the change of %s: %s"


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

    def norm(self) -> float:
        """‖ab‖: by tr(aᵀa bbᵀ) where that is smaller than ab, so that no more room is taken than by the factors."""
        a, b = self.a.double(), self.b.double()
        if self.rank**2 > self.shape.numel():
            return float((a @ b).norm())
        return float(((a.T @ a) * (b @ b.T)).sum().clamp(min=0).sqrt())

    def compact(self) -> "LowRank | Tensor":
        """This product, or the dense matrix where the rank is more than half of the smaller side."""
        return self if self.rank <= min(self.shape) // 2 else self.dense()

    def product(self, x: Tensor) -> Tensor:
        """x Δᵀ for x (…, in), without computing Δ. (…, out)."""
        return (x @ self.b.T) @ self.a.T

    def to(self, like: Tensor) -> "LowRank":
        """The product on the device and in the type of another tensor."""
        return LowRank(self.a.to(like), self.b.to(like))

    def __add__(self, other: "LowRank | Tensor") -> "LowRank | Tensor":
        if isinstance(other, Tensor):
            return self.dense() + other
        return LowRank(torch.cat([self.a, other.a], 1), torch.cat([self.b, other.b], 0)).compact()

    __radd__ = __add__

    def __mul__(self, factor: float) -> "LowRank":
        return LowRank(self.a * factor, self.b)


Weight = LowRank | Tensor


class Config(TypedDict):
    """What a file says of a :class:`Delta` besides its tensors."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    low_rank: list[str]
    dense: list[str]


class Factors(TypedDict):
    """The tensors of a :class:`LowRank`."""

    a: Annotated[Tensor, Shape("* r")]
    b: Annotated[Tensor, Shape("r *")]


@dataclass(frozen=True, eq=False)
class Delta(Part):
    """Adds to weights."""

    kind: ClassVar[str] = "delta"
    FEW: ClassVar[int] = 64  # changed columns that a summary lists
    weights: Mapping[str, Weight]
    """Parameter name -> change. Matrices are (out, in), whatever the module's own order.

    One matrix of a stack of experts is named by its index: ``model.layers.3.mlp.experts.down_proj[17]``.
    """

    @override
    def config(self) -> dict[str, Any]:
        low = sorted(name for name, w in self.weights.items() if isinstance(w, LowRank))
        return {"low_rank": low, "dense": sorted(self.weights.keys() - {*low})}

    @override
    def tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, w in self.weights.items():
            out |= {f"{name}.a": w.a, f"{name}.b": w.b} if isinstance(w, LowRank) else {name: w}
        return out

    @classmethod
    @override
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Delta":
        low, dense = (read(Config, config)[names] for names in ("low_rank", "dense"))
        wanted = [*dense, *(f"{name}.{side}" for name in low for side in "ab")]
        if missing := [name for name in wanted if name not in tensors]:
            raise BadInput(f"the tensor {shown(missing[0])} is missing")
        weights: dict[str, Weight] = {name: LowRank(tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in low}
        return cls(weights | {name: tensors[name] for name in dense})

    @override
    def without(self, edit_id: str) -> "Delta | None":
        raise Unsupported(
            "one edit cannot be taken out of changes of weights without the model: errata.reverted(lm, patch, id) "
            "solves for the others again where a closed form made them; otherwise keep the earlier patch instead"
        )

    @override
    def check_content(self) -> None:
        for name, w in self.weights.items():
            if isinstance(w, LowRank):
                bound([(f"{name}.", Factors, {"a": w.a, "b": w.b})])
            dtypes = {w.a.dtype, w.b.dtype} if isinstance(w, LowRank) else {w.dtype}
            if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
                found = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
                raise BadInput(
                    f"the change of {shown(name)} is of {found}, expected floating-point numbers of one type"
                )

        if twice := [name for name in self.weights if stored.indexed(name)[0] in self.weights.keys() - {name}]:
            raise BadInput(f"{shown(twice[0])} is changed twice, by itself and with its whole stack")

    @override
    def check_model(self, lm: HFLM) -> None:
        self.check(lm.model)

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
            record: dict[str, Any] = {
                "kind": self.kind,
                "site": name,
                "shape": list(w.shape),
                "rank": w.rank if isinstance(w, LowRank) else None,
                "norm": round(w.norm() if isinstance(w, LowRank) else float(w.float().norm()), 4),
            }
            columns = w.b.any(0).nonzero()[:, 0].tolist() if isinstance(w, LowRank) else []
            if 0 < len(columns) <= self.FEW and len(columns) < w.shape[1]:  # a few neurons, the others untouched
                record["columns"] = columns
            records.append(record)
        return records

    @contextmanager
    def in_force(self, model: nn.Module) -> Generator[None, None, None]:
        """Context manager: each parameter has new storage that holds the sum; afterwards its old storage again.

        A weight that is offloaded or quantised keeps its storage, and so does one whose type would round more than a
        hundredth of the change away (:func:`left_by_rounding`); its linear's output is changed instead.
        """
        self.check(model)
        with ExitStack() as stack:
            beside: dict[str, Weight] = {}
            sums: dict[str, Tensor] = {}
            for name, w in self.weights.items():
                summed = changed_weight(model, name, w) if stored.is_plain(model, name) else None
                left = 0.0 if summed is None else left_by_rounding(model, name, w, summed)
                if summed is None or (left < WHOLE and _beside(model, name)):
                    beside[name] = w
                    continue
                if left < WHOLE:
                    log.warning(ROUNDED, 100 * left, name, "load the model in float32")
                sums[name] = summed
            for name, storage in _storages(model, sums).items():
                param = model.get_parameter(name)
                stack.callback(setattr, param, "data", param.data)
                param.data = storage
            for run_beside in _side_products(model, beside):
                stack.enter_context(run_beside)
            yield

    def rounded_away(self, model: nn.Module) -> dict[str, float]:
        """Parameter name -> the share of its change that rounding to its type would leave, where that is too little."""
        plain = {name: w for name, w in self.weights.items() if stored.is_plain(model, name)}
        shares = {name: left_by_rounding(model, name, w, changed_weight(model, name, w)) for name, w in plain.items()}
        return {name: share for name, share in shares.items() if share < WHOLE}

    def merge(self, model: nn.Module) -> None:
        """Changes the weights for good: all of them, or none if one cannot be changed.

        Raises :class:`Refused` where a sum is not finite in the weight's type.
        """
        for name, storage in self.merged(model).items():
            model.get_parameter(name).data = storage

    def merged(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameter name -> new storage for the whole of it, with the change in it. Raises what :meth:`merge` raises.

        What rounding leaves too little of is logged.
        """
        sums = {name: changed_weight(model, name, w) for name, w in self.weights.items()}
        for name, summed in sums.items():
            if not summed.isfinite().all():
                dtype = str(summed.dtype).removeprefix("torch.")
                raise Refused(
                    f"with the change {name} holds a number that is not finite in {dtype}, so nothing was merged; "
                    "merge into the model in float32, or keep the patch"
                )
        for name, summed in sums.items():
            if (left := left_by_rounding(model, name, self.weights[name], summed)) < WHOLE:
                log.warning(ROUNDED, 100 * left, name, "merge into the model in float32, or keep the patch")
        return _storages(model, sums)

    def check(self, model: nn.Module) -> None:
        """Raises :class:`WrongModel` unless the model has every parameter, in the right shape."""
        for name, w in self.weights.items():
            try:
                shape = stored.shape_of(model, name)
            except AttributeError as error:
                raise WrongModel(f"the patch changes {name}, which this model does not have") from error
            if shape != tuple(w.shape):
                raise WrongModel(f"the patch changes {name} of shape {tuple(w.shape)}; here it has {shape}")


def _storages(model: nn.Module, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name -> new storage for the whole of it, which holds the sums of its matrices."""
    storages: dict[str, Tensor] = {}
    for name, summed in sums.items():
        whole, index = stored.indexed(name)
        if index is None:
            storages[whole] = summed
            continue
        if whole not in storages:
            storages[whole] = model.get_parameter(whole).data.clone()
        storages[whole][index] = summed
    return storages


def matrix_of(model: nn.Module, name: str) -> Tensor:
    """What is stored under a name: a parameter, or one matrix of a stack."""
    whole, index = stored.indexed(name)
    param = model.get_parameter(whole)
    return param.data if index is None else param.data[index]


def _swapped(model: nn.Module, name: str) -> bool:
    return stored.swapped(*stored.owner(model, name))


def oriented(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A change in (out, in) in the order in which the module stores the parameter, or the other way round."""
    return value.transpose(-1, -2) if _swapped(model, name) else value


def weight_shape(lm: HFLM, name: str) -> tuple[int, int]:
    """(out, in) of a linear's weight, by parameter name."""
    rows, columns = stored.shape_of(lm.model, name)
    return rows, columns


def changed_weight(model: nn.Module, name: str, w: Weight) -> Tensor:
    """W + ΔW in new storage, in the module's own order and type. Summed in float32 or more precisely."""
    stored.plain(model, name, "cannot be changed for good")
    value = matrix_of(model, name)
    if at_least_float32(value[:0]).dtype != value.dtype:
        summed = torch.empty_like(value, memory_format=torch.contiguous_format)
        for rows, delta in _blocks(model, name, w, value):
            summed[rows] = (value[rows] + delta).to(value.dtype)  # the sum is delta's float32
        return summed
    if isinstance(w, LowRank):
        a, b = w.a.to(value), w.b.to(value)
        summed = torch.addmm(value, b.T, a.T) if _swapped(model, name) else torch.addmm(value, a, b)
    else:
        summed = value + oriented(model, name, w.to(value))
    return summed.contiguous()


def _blocks(model: nn.Module, name: str, w: Weight, held: Tensor) -> Generator[tuple[slice, Tensor], None, None]:
    """Some rows of a matrix, as it is stored, and their ΔW in float32: so that no copy of the whole is made."""
    step = max(1, BLOCK // max(1, held[:1].numel()))
    left, right = (w.a, w.b) if isinstance(w, LowRank) else (w, None)
    if right is not None and _swapped(model, name):
        left, right = right.T, left.T
    elif right is None:
        left = oriented(model, name, left)
    right = right if right is None else right.to(held.device, torch.float32)
    for start in range(0, len(held), step):
        rows = slice(start, start + step)
        some = left[rows].to(held.device, torch.float32)
        yield rows, some if right is None else some @ right


def left_by_rounding(model: nn.Module, name: str, w: Weight, summed: Tensor) -> float:
    """The share of a change ΔW that is left in ``summed``, as :func:`changed_weight` made it: 1.0 where all of it is.

    In bfloat16 an entry of W has 8 bits; what is less than half of the last one is gone. Each entry of Δ counts by its
    size: Σ sign(Δ) (summed − W) / Σ |Δ|. A patch knows no keys; of the Δk of its edits about as much is left: ten edits
    by MEMIT, scaled to ‖Δ‖ = 0.001 ‖W‖, have 0.47 here, and over their keys 0.56 in the mean and 0.42 at least; scaled
    to 0.01 ‖W‖ 0.96, and 0.98 in the mean and at least.
    """
    held = matrix_of(model, name)
    if held.dtype not in (torch.float16, torch.bfloat16):
        return 1.0
    size = left = 0.0
    for rows, delta in _blocks(model, name, w, held):
        size += float(delta.abs().sum())
        left += float(((summed[rows].float() - held[rows].float()) * delta.sign()).sum())
    return 0.0 if not isfinite(left) else left / size if size else 1.0  # past float16's largest number nothing is left


def _beside(model: nn.Module, name: str) -> bool:
    """Whether a change can run beside the parameter: a linear's own, which no other module reads, or a stack's."""
    module, leaf = stored.owner(model, name)
    if stored.indexed(name)[1] is not None:
        return leaf == DOWN and is_stack(module)
    param = model.get_parameter(name)
    readers = [n for n, p in model.named_parameters(remove_duplicate=False) if p is param]
    return stored.is_linear(module) and leaf in ("weight", "bias") and len(readers) == 1


def _side_products(model: nn.Module, weights: Mapping[str, Weight]) -> list[Any]:
    """Context managers: linears output y + x Δᵀ, and stacks of experts y + Σ g x Δᵀ over the tokens of each expert.

    For weights that are offloaded, quantised or too coarse.
    """
    stacks: dict[nn.Module, dict[int, Weight]] = {}
    contexts: list[Any] = []
    for name, w in weights.items():
        module, leaf = stored.owner(model, name)
        index = stored.indexed(name)[1]
        if index is not None and leaf == DOWN and is_stack(module) and not getattr(module, DOWN).is_meta:
            stacks.setdefault(module, {})[index] = w
        elif leaf == "bias" or (leaf == "weight" and stored.is_linear(module)):
            contexts.append(_beside_linear(module, leaf, w))
        else:
            raise stored.refusal(model, name, "belongs to no linear layer, beside which its change could run")
    return [*contexts, *(_beside_experts(module, changes) for module, changes in stacks.items())]


def _beside_linear(module: nn.Module, leaf: str, w: Weight) -> Any:
    def add(args: hooks.Args, kwargs: hooks.Kwargs, y: Tensor) -> Tensor:
        nonlocal w
        wide = at_least_float32(y)
        w = w.to(wide)  # moved once
        if leaf == "bias":
            return (wide + (w if isinstance(w, Tensor) else w.dense())).to(y)
        return (wide + _product(w, args[0].to(wide))).to(y)

    return hooks.after(module, add)


def _beside_experts(module: nn.Module, changes: dict[int, Weight]) -> Any:
    def add(args: hooks.Args, kwargs: hooks.Kwargs, y: Tensor) -> Tensor:
        wide = at_least_float32(y).reshape(-1, y.shape[-1])
        for call in routed(module, args, kwargs, only=changes):
            w = changes[call.expert] = changes[call.expert].to(wide)  # moved once
            wide = wide.index_add(0, call.rows, _product(w, call.keys.to(wide)))
        return wide.view_as(y).to(y)

    return hooks.after(module, add)


def _product(w: Weight, x: Tensor) -> Tensor:
    """x Δᵀ for x (…, in). (…, out)."""
    return w.product(x) if isinstance(w, LowRank) else x @ w.T


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
        change = oriented(lm.model, name, change).cpu()
        if is_stack(stored.owner(lm.model, name)[0]):  # those experts that saw a token
            changes |= {f"{name}[{e}]": matrix.contiguous() for e, matrix in enumerate(change) if matrix.any()}
        else:
            changes[name] = change.contiguous()
    return Delta(changes)
