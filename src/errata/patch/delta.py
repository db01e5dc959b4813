# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Changes of weights. The only module that assigns to a parameter of the user's model."""

import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn
from typing_extensions import TypedDict, override

from errata.errors import BadInput, Refused, Unsupported, WrongModel
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.stacks import is_stack
from errata.patch.beside import can_run_beside, side_products
from errata.patch.low_rank import LowRank as LowRank  # both are what a change is made of
from errata.patch.low_rank import Weight as Weight
from errata.patch.parts import Part
from errata.patch.schema import STRICT, Shape, bound, read
from errata.patch.sums import changed_weight, left_by_rounding
from errata.printable import shown

log = logging.getLogger(__name__)
WHOLE = 0.99  # of a change that a rounded sum must hold; otherwise the change runs beside the weight
ROUNDED = "rounding leaves %.0f%% of the change of %s: %s"


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
                if summed is None or (left < WHOLE and can_run_beside(model, name)):
                    beside[name] = w
                    continue
                if left < WHOLE:
                    log.warning(ROUNDED, 100 * left, name, "load the model in float32")
                sums[name] = summed
            for name, storage in _storages(model, sums).items():
                param = model.get_parameter(name)
                stack.callback(setattr, param, "data", param.data)
                param.data = storage
            for run_beside in side_products(model, beside):
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
        change = stored.oriented(lm.model, name, change).cpu()
        if is_stack(stored.owner(lm.model, name)[0]):  # those experts that saw a token
            changes |= {f"{name}[{e}]": matrix.contiguous() for e, matrix in enumerate(change) if matrix.any()}
        else:
            changes[name] = change.contiguous()
    return Delta(changes)
