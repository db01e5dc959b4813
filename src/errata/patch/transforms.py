"""Patches made of patches: task vectors, truncation, RECT, PRUNE.

    patch = rect(method.edit(lm, batch, state, patch), lm, prior=patch)     # at each step of a sequence
    pruned = prune(patch, lm)                                              # once, after the last edit

Each takes a patch of weight changes only and returns another; the model is only read. Adding, negating and scaling are
the patch's own ``+``, ``-`` and ``*``: with task vectors, θ₀ + λ Σ τ is ``(lam * (a + b)).applied(lm)``.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported, WrongModel, unknown
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.weights import matrix_of, oriented, plain
from errata.patch.delta import Delta, difference
from errata.patch.low_rank import LowRank, Weight
from errata.patch.patch import EMPTY, Patch
from errata.patch.spectra import in_float64, svd

Step = Callable[[Patch, HFLM, Patch], Patch]  # (patch, lm, prior) -> patch


def task_vector(lm: HFLM, tuned: HFLM) -> Patch:
    """τ = θ - θ₀: what fine-tuning changed, as a dense delta of the base (Ilharco et al. 2023, arXiv:2212.04089).

    ``lm`` is the base. It holds every parameter that differs, tied ones once. Raises :class:`WrongModel`
    where names or shapes differ, and :class:`Unsupported` where weights are offloaded or quantised, or floating-point
    buffers differ, because a patch changes parameters only.
    """
    for model in (lm, tuned):
        model.check()
    ours, theirs = (dict(model.model.named_parameters()) for model in (lm, tuned))
    if unmatched := sorted(ours.keys() ^ theirs.keys()):
        side, n = "base" if unmatched[0] in ours else "tuned model", len(unmatched)
        raise WrongModel(f"only the {side} has {unmatched[0]} ({n} such); give a fine-tuned copy of the base")
    for name, param in ours.items():
        if param.shape != theirs[name].shape:
            shapes = f"{tuple(param.shape)} in the base and {tuple(theirs[name].shape)} in the tuned model"
            raise WrongModel(f"{name} is {shapes}; give a fine-tuned copy of the base")
    _same_buffers(lm, tuned)
    changed: dict[str, Tensor] = {}
    for name in ours:
        old, new = _value(lm, name), _value(tuned, name)
        new = new.to(torch.promote_types(old.dtype, new.dtype))
        if not torch.equal(old, new.to(old)):
            changed[name] = new
    meta = {"model": {"name": lm.name, "fingerprint": lm.fingerprint}, "made": []}
    patch = Patch((difference(lm, changed),) if changed else (), meta=meta)
    return _noted(patch, "task_vector", tuned={"name": tuned.name, "fingerprint": tuned.fingerprint})


def low_rank(patch: Patch, rank: int) -> Patch:
    """The patch with each matrix cut to the first ``rank`` terms of its SVD.

    That is the nearest matrix of this rank (Eckart and Young). Vectors, and matrices of no higher rank, stay as they
    are. Raises :class:`BadInput` for a rank below 1.
    """
    if type(cast(Any, rank)) is not int or rank < 1:
        raise BadInput(f"rank is a whole number of at least 1; found {rank!r}")

    def cut(w: Weight) -> Weight:
        if len(w.shape) != 2 or (w.rank if isinstance(w, LowRank) else min(w.shape)) <= rank:
            return w
        u, s, vh = svd(w)
        return LowRank((u * s)[:, :rank].to(_dtype(w)), vh[:rank].to(_dtype(w))).compact()

    weights = {name: cut(w) for name, w in _total(patch, "cut to a rank").items()}
    return _noted(_with(patch, weights), "low_rank", rank=rank)


def rect(patch: Patch, lm: HFLM, keep: float = 0.4, prior: Patch = EMPTY, eps: float = 1e-8) -> Patch:
    """RECT: ``prior`` and, of the change since then, the entries with the largest relative change (arXiv:2401.04700).

    δ_ij = |ΔW_ij| / (|W_ij| + ε), with W the weight as ``prior`` leaves it. The share ``keep`` of each parameter's
    entries with the largest δ stays, the others become zero (Gu et al. 2024; 0.4 and ε as in AlphaEdit's baseline).
    """
    if not 0 < keep <= 1:
        raise BadInput(f"keep is a share above 0 and at most 1; found {keep}")
    weights, before = (_total(one, "thinned") for one in (patch, prior))
    for one in (patch, prior):
        one.check(lm)
    kept: dict[str, Weight] = dict(before)
    for name in dict.fromkeys([*before, *weights]):
        was = in_float64(before[name]) if name in before else torch.zeros(())
        now = in_float64(weights[name]) if name in weights else torch.zeros(())
        change = now - was  # (out, in), float64
        if not change.any():
            continue
        weight = oriented(lm.model, name, _value(lm, name)).cpu().double() + was
        largest = _largest(change.abs() / (weight.abs() + eps), keep)
        kept[name] = (was + torch.where(largest, change, 0.0)).to(_dtype(weights.get(name, before.get(name))))
    return _noted(_with(patch, kept), "rect", keep=keep, eps=eps)


def prune(patch: Patch, lm: HFLM, base: float = math.e, rule: Literal["log", "linear"] = "log") -> Patch:
    """PRUNE: bounds the singular values of the whole change (Ma et al. 2024, arXiv:2405.16821).

    With ΔW = U Σ Vᵀ and σ_max the largest singular value of the unedited weight, a σ above σ_max becomes
    log_a σ - log_a σ_max + σ_max with a the ``base``, or ½σ + ½σ_max where the ``rule`` is linear. Where σ_max is
    below 1 / ln a, as in small models, the logarithm would raise some σ: those stay as they are, and so do vectors.
    Apply it once, after the last edit of a sequence.
    """
    if rule not in ("log", "linear"):
        raise unknown("rule", rule, ["log", "linear"])
    if not base > 1:
        raise BadInput(f"the base of the logarithm is above 1; found {base}")
    weights = _total(patch, "pruned")
    patch.check(lm)

    def bounded(name: str, w: Weight) -> Weight:
        if len(w.shape) != 2:
            return w
        u, s, vh = svd(w)
        top = torch.linalg.matrix_norm(_value(lm, name).cpu().double(), 2)
        new = (s / top).log() / math.log(base) + top if rule == "log" else (s + top) / 2
        new = torch.where(s > top, torch.minimum(new, s), s)
        if torch.equal(new, s):
            return w
        low = LowRank((u * new).to(_dtype(w)), vh.to(_dtype(w)))
        return low if isinstance(w, LowRank) else low.dense()

    pruned = _with(patch, {name: bounded(name, w) for name, w in weights.items()})
    return _noted(pruned, "prune", base=base, rule=rule)


# By name -----------------------------------------------------------------------------------------

TRANSFORMS: Mapping[str, Callable[..., Patch]] = {"low_rank": low_rank, "rect": rect, "prune": prune}
GIVEN = ("patch", "lm", "prior")  # arguments that a sequence of edits passes; everything else is a setting


def transform(name: str, **settings: Any) -> Step:
    """The transform of that name with these settings, as a function (patch, lm, prior) -> patch.

    Raises :class:`UnknownName`, with near matches, for an unknown name or setting, and :class:`BadInput`.
    """
    if name not in TRANSFORMS:
        raise unknown("transform", name, list(TRANSFORMS))
    function = TRANSFORMS[name]
    parameters = inspect.signature(function).parameters
    for setting, value in settings.items():
        if setting not in parameters or setting in GIVEN:
            raise unknown(f"setting of {name}", setting, [n for n in parameters if n not in GIVEN])
        if isinstance(parameters[setting].default, float) and type(value) not in (int, float):
            raise BadInput(f"{name}'s {setting} is a number; found {value!r}")
    if missing := [n for n, p in parameters.items() if p.default is p.empty and n not in (*GIVEN, *settings)]:
        raise BadInput(f"{name} needs {', '.join(missing)}")

    def step(patch: Patch, lm: HFLM, prior: Patch) -> Patch:
        passed = {"lm": lm, "prior": prior}
        return function(patch, **{n: value for n, value in passed.items() if n in parameters}, **settings)

    return step


# What they share ---------------------------------------------------------------------------------


def _total(patch: Patch, done: str) -> dict[str, Weight]:
    """The sum of the patch's deltas. Raises :class:`Unsupported` if it has other parts; ``done`` is for the message."""
    if others := sorted({part.kind for part in patch.parts if not isinstance(part, Delta)}):
        raise Unsupported(f"only changes of weights can be {done}; this patch also holds {', '.join(others)}")
    return dict(sum(patch.of_kind(Delta), Delta({})).weights)


def _with(patch: Patch, weights: Mapping[str, Weight]) -> Patch:
    """The patch with these changes of weights instead of its own."""
    return replace(patch, parts=(Delta(weights),) if weights else ())


def _noted(patch: Patch, name: str, **how: Any) -> Patch:
    """The patch with a record of the transform in ``meta``; the empty patch stays empty."""
    if not patch and not patch.meta:
        return patch
    return replace(
        patch, meta={**patch.meta, "transformed": [*patch.meta.get("transformed", ()), {"name": name, **how}]}
    )


def _value(lm: HFLM, name: str) -> Tensor:
    """A parameter's values in float32 or more precise, in the module's own order."""
    plain(lm.model, name, "its values are needed")
    return at_least_float32(matrix_of(lm.model, name))


def _same_buffers(lm: HFLM, tuned: HFLM) -> None:
    ours, theirs = (dict(model.model.named_buffers()) for model in (lm, tuned))
    for name in ours.keys() & theirs.keys():
        one, two = ours[name], theirs[name]
        if one.is_floating_point() and (one.shape != two.shape or not torch.equal(one, two.to(one))):
            raise Unsupported(f"the buffer {name} differs, and a patch changes parameters alone")


def _dtype(w: Weight | None) -> torch.dtype:
    return w.a.dtype if isinstance(w, LowRank) else cast(Tensor, w).dtype


def _largest(x: Tensor, share: float) -> Tensor:
    """Mask of the largest entries: the given share of all, rounded, at least one."""
    mask = torch.zeros(x.numel(), dtype=torch.bool)
    mask[x.flatten().topk(max(1, round(share * x.numel()))).indices] = True
    return mask.view(x.shape)
