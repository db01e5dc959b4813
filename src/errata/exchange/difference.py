"""What differs between two checkpoints of one model: weight by weight, the edited one read from its files as needed.

    for change, w in differences(lm, "edited"):
        print(change.name, change.rank, change.relative)

Of two types of numbers the coarser one decides: what a rounding to it makes is no difference.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported, WrongModel
from errata.exchange.shards import Shards
from errata.model import loading
from errata.model import weights as stored
from errata.model.fingerprint import specific
from errata.model.hf import HFLM
from errata.model.stacks import is_stack
from errata.model.weights import oriented
from errata.patch.low_rank import LowRank, Weight
from errata.patch.spectra import numeric_rank
from errata.printable import shown

log = logging.getLogger(__name__)

LARGEST = 5  # singular values that are told
WHOLE = 2048  # smaller side up to which all singular values are computed; beyond, the first PROBED of them
PROBED = 256


@dataclass(frozen=True)
class Change:
    """How one weight differs, a matrix (one expert's, of a stack) or a vector."""

    name: str
    """The parameter."""
    shape: tuple[int, ...]
    """(out, in), or the length of a vector."""
    rank: int | None
    """How many singular values are more than rounding; None of a vector, and where not all of them were looked at."""
    norm: float
    """‖Δ‖."""
    relative: float
    """‖Δ‖ / ‖W‖, with the base's W."""
    largest: tuple[float, ...]
    """The largest singular values; of a vector its length alone."""
    lost: float
    """‖Δ − ab‖ / ‖Δ‖: what the product ab of that rank leaves out, which is rounding; 0 where the whole is kept."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self) | {"shape": list(self.shape), "largest": list(self.largest)}


def differences(
    lm: HFLM, edited: "str | Path | HFLM", *, exact: bool = False, trust_remote_code: bool = False
) -> Iterator[tuple[Change, Weight]]:
    """Each weight that differs, and its difference Δ = W_edited − W, (out, in), float32 or finer, on the CPU.

    A product of two factors where the numeric rank is at most half of the smaller side (the rest is rounding), else
    dense; with ``exact`` always dense, to the last bit. ``lm`` is the base. Of a folder one weight at a time is read
    where its names are those of the model; otherwise it is loaded whole, which is logged. Code that comes with it runs
    with ``trust_remote_code`` alone. Raises :class:`BadInput`
    for a folder that cannot be read or holds its weights as a pickle, :class:`WrongModel` for another model,
    :class:`Unsupported` where weights of the base are offloaded or quantised.
    """
    lm.check()
    for name, old, new in _pairs(lm, edited, trust_remote_code):
        if new.shape != old.shape:
            raise WrongModel(
                f"{name} has the shape {tuple(old.shape)} in the base and {tuple(new.shape)} in the edited model; "
                "give two checkpoints of one model"
            )
        coarse = new.dtype if new.dtype.itemsize <= old.dtype.itemsize else old.dtype
        new, old = new.detach().to(old.device), old.detach()
        if torch.equal(old.to(coarse), new.to(coarse)):
            continue
        if not bool(new.isfinite().all()):
            raise BadInput(f"{name} of the edited model holds a number that is not finite; fetch it anew")
        wide = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
        before, after = old.to(coarse).to(wide).cpu(), new.to(wide).cpu()
        if exact and not torch.equal(before + (after - before), after):  # the difference of two float32 may need more
            before, after = before.double(), after.double()
        delta, base = oriented(lm.model, name, after - before), oriented(lm.model, name, old.to(wide).cpu())
        if delta.ndim == 3 and is_stack(stored.owner(lm.model, name)[0]):
            for e in range(len(delta)):
                if delta[e].any():
                    yield _described(f"{name}[{e}]", delta[e], base[e], coarse, exact)
        else:
            yield _described(name, delta, base, coarse, exact)


def _described(name: str, delta: Tensor, base: Tensor, dtype: torch.dtype, exact: bool) -> tuple[Change, Weight]:
    """The record of a difference from a base's weight, and the difference in the form in which it is kept."""
    delta = delta.contiguous().clone()
    norm, size = float(delta.double().norm()), float(base.double().norm())
    about: Any = {
        "name": name,
        "shape": tuple(delta.shape),
        "norm": norm,
        "relative": norm / size if size else math.inf,
    }
    if delta.ndim != 2:
        return Change(**about, rank=None, largest=(norm,), lost=0.0), delta
    u, s, whole = leading(delta)
    rank: int | None = numeric_rank(s, delta.shape, torch.float32, rounding(base + delta, dtype))
    rank = None if rank == len(s) and not whole else rank
    about |= {"rank": rank, "largest": tuple(s[:LARGEST].tolist())}
    if exact or rank is None or rank > min(delta.shape) // 2 or rank == 0:
        return Change(**about, lost=0.0), delta
    a = u[:, :rank]
    kept = LowRank(a.to(delta.dtype).contiguous(), (a.T @ delta.double()).to(delta.dtype).contiguous())
    return Change(**about, lost=float((delta - kept.dense()).double().norm()) / norm), kept


def leading(delta: Tensor) -> tuple[Tensor, Tensor, bool]:
    """U (out, k) and Σ (k,) of a matrix, in falling order, float64, and whether that is all of them.

    By eigenvectors of the smaller Gram matrix; of a large matrix the first ones, by a random range (Halko et al. 2011,
    arXiv:0909.4061) with two rounds of subspace iteration.
    """
    d = delta.double()
    if min(d.shape) <= WHOLE:
        return *_of_gram(d), True
    draw = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(d @ torch.randn(d.shape[1], PROBED, generator=draw, dtype=d.dtype))[0]
    for _ in range(2):
        q = torch.linalg.qr(d @ (d.T @ q))[0]
    u, s = _of_gram(q.T @ d)
    return q @ u, s, False


def _of_gram(d: Tensor) -> tuple[Tensor, Tensor]:
    wide = d.shape[0] <= d.shape[1]
    values, vectors = torch.linalg.eigh(d @ d.T if wide else d.T @ d)
    s, vectors = values.clamp(min=0).sqrt().flip(0), vectors.flip(1)
    return (vectors if wide else d @ vectors / s.clamp(min=torch.finfo(s.dtype).tiny)), s


def rounding(weight: Tensor, dtype: torch.dtype) -> float:
    """How large a singular value rounding a weight to a type can make.

    Errors are taken as independent and even over the distance of two numbers of the type, σᵢⱼ = ulp(Wᵢⱼ) / √12; then
    ‖E‖ is about the largest row's and the largest column's Σ σ², each rooted, together. A tenth is added.
    """
    finfo = torch.finfo(dtype)
    exponent = weight.double().abs().clamp(min=finfo.tiny).log2().floor()
    variance = torch.exp2(2 * exponent) * finfo.eps**2 / 12
    return 1.1 * float(variance.sum(0).max().sqrt() + variance.sum(1).max().sqrt())


# The two models ----------------------------------------------------------------------------------


def _pairs(lm: HFLM, edited: "str | Path | HFLM", trusted: bool) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, base's and edited's values of each parameter, tied ones once, in the module's own order."""
    if not isinstance(edited, HFLM):
        check_config(lm, str(edited), trusted)
        shards = Shards.of(Path(edited)) if Path(edited).is_dir() else None
        if shards is not None and (named := _named(lm, shards)) is not None:
            for name in _parameters(lm):
                yield name, stored.plain(lm.model, name, "its values are needed"), shards.read(named[name])
            return
        log.warning("the weights of %s have other names than the model's, so the whole of it is loaded", edited)
        edited = loading.load(edited, dtype=_dtype(str(edited), trusted), trust_remote_code=trusted)
    theirs = dict(edited.model.named_parameters())
    ours = _parameters(lm)
    if unmatched := sorted({*ours} ^ theirs.keys()):
        side = "base" if unmatched[0] in ours else "edited model"
        raise WrongModel(f"only the {side} has {unmatched[0]}; give two checkpoints of one model")
    for name in ours:
        new = stored.plain(edited.model, name, "its values are needed")
        yield name, stored.plain(lm.model, name, "its values are needed"), new


def _parameters(lm: HFLM) -> list[str]:
    return [name for name, _ in lm.model.named_parameters()]


def check_config(lm: HFLM, edited: str, trust_remote_code: bool = False) -> None:
    """Raises :class:`WrongModel` where another configuration than the base's makes the edited model."""
    config: Any = loading.config_of(edited, trust_remote_code=trust_remote_code)
    ours, theirs = (specific(one.to_dict()) for one in (lm.config, config))
    if getattr(config, "quantization_config", None):
        raise Unsupported(f"{edited} is quantised, so its weights are no numbers to compare; give it unquantised")
    if other := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        raise WrongModel(
            f"{edited} is another model than {lm.name or 'the base'}: its config.json has {other[0]} = "
            f"{shown(theirs.get(other[0]))}, the base's {shown(ours.get(other[0]))}; give two checkpoints of one model"
        )


def _named(lm: HFLM, shards: Shards) -> Mapping[str, str] | None:
    """Parameter -> the name of its tensor in the files; None where transformers must translate the names.

    Raises :class:`Unsupported` where floating-point buffers differ.
    """
    prefix = str(getattr(lm.model, "base_model_prefix", ""))
    buffers = dict(lm.model.named_buffers())
    named: dict[str, str] = {}
    strange: list[str] = []
    tied = {other: name for name, other in _ties(lm)}
    for key in shards.names:
        name = next((n for n in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) if n in tied), None)
        if name is not None:
            named.setdefault(tied[name], key)
            continue
        buffer = next((n for n in (key, f"{prefix}.{key}") if n in buffers), None)
        if buffer is not None and not _same(buffers[buffer], shards.read(key)):
            raise Unsupported(f"the buffer {buffer} differs, and a patch changes parameters alone")
        unread = getattr(lm.model, "_keys_to_ignore_on_load_unexpected", None) or ()
        if buffer is None and not any(re.search(pattern, key) for pattern in unread):
            strange.append(key)
    missing = [name for name in _parameters(lm) if name not in named]
    if len(missing) == len(strange) == 1:  # one that was renamed: the only one left on either side
        return named | {missing[0]: strange[0]}
    return None if missing or strange else named


def _ties(lm: HFLM) -> Iterator[tuple[str, str]]:
    """A parameter's first name, and each name that it has."""
    first: dict[int, str] = {}
    for name, param in lm.model.named_parameters(remove_duplicate=False):
        yield first.setdefault(id(param), name), name


def _same(one: Tensor, two: Tensor) -> bool:
    return not one.is_floating_point() or (one.shape == two.shape and torch.equal(one, two.to(one)))


def _dtype(edited: str, trusted: bool) -> torch.dtype | None:
    found = getattr(loading.config_of(edited, trust_remote_code=trusted), "dtype", None)
    return found if found in stored.FLOATS else None
