"""How far a patch moves weights, in how many directions, and whether in those that the model uses.

    spectra = spectra_of(lm, texts, drift_sites(patch))
    for site, its in drift(lm, patch, spectra).items(): ...

Knows no method: it reads the changes of matrices that a patch holds, whoever made them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.evaluation.metrics import change_of
from errata.model.hf import HFLM
from errata.model.passes import exact
from errata.model.second_moment import second_moments
from errata.patch.delta import Delta, LowRank, Weight, oriented
from errata.patch.patch import Patch

LOW = 0.02  # share of C's trace that its low-variance directions hold, as in AlphaEdit's null space here
WINDOW = 512  # tokens of a text that are read together


@dataclass(frozen=True, eq=False)
class Spectrum:
    """C = E[k kᵀ] of what goes into a linear layer, by its eigenvalues, rising (f,), and their directions (f, f)."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, c: Tensor) -> "Spectrum":
        values, vectors = torch.linalg.eigh(c.double().cpu())
        return cls(values.clamp(min=0), vectors)

    @property
    def low(self) -> Tensor:
        """Which directions have low variance (f,): those of the smallest eigenvalues, together ``LOW`` of the trace."""
        return self.values.cumsum(0) <= LOW * self.values.sum()


@dataclass(frozen=True)
class Drift:
    """The change Δ of one matrix W (out, in).

    - ``norm``: ‖Δ‖_F / ‖W‖_F;
    - ``rank`` and ``effective``: as in :class:`errata.evaluation.metrics.Change`;
    - ``felt``: √(E‖Δk‖² / E‖Wk‖²) = √(tr ΔCΔᵀ / tr WCWᵀ), what ordinary inputs k notice of it;
    - ``low``: ‖ΔP‖²_F / ‖Δ‖²_F, 0 to 1, the share of its energy along the low-variance directions of C, with P the
      projector onto the directions of the smallest eigenvalues that together hold 2 % of C's trace;
    - ``even``: rank P / in, what ``low`` would be of a change that favours no direction.

    The last three are None where C is not known.
    """

    norm: float
    rank: int
    effective: float
    felt: float | None = None
    low: float | None = None
    even: float | None = None


def drift(lm: HFLM, patch: Patch, spectra: Mapping[str, Spectrum] | None = None) -> dict[str, Drift]:
    """site -> the drift of its matrix; ``spectra`` are those of :func:`spectra_of`, by site.

    All deltas of the patch count as one; vectors (biases, norms) are left out. Empty where no matrix changes.
    Raises :class:`Unsupported` where a weight is offloaded or quantised: its norm cannot be read.
    """
    patch.check(lm)
    found: dict[str, Drift] = {}
    for name, change in _matrices(patch).items():
        site, weight = name.removesuffix(".weight"), _weight(lm, name)
        its = change_of({name: change})[name]
        spectrum = (spectra or {}).get(site)
        directed = () if spectrum is None else _directed(change, weight, spectrum)
        found[site] = Drift(its.norm / float(weight.norm()), its.rank, its.effective, *directed)
    return found


def drift_sites(patch: Patch) -> list[str]:
    """The module paths whose weight matrix the patch changes."""
    return [name.removesuffix(".weight") for name in _matrices(patch) if name.endswith(".weight")]


def spectra_of(lm: HFLM, texts: Iterable[str], sites: Sequence[str]) -> dict[str, Spectrum]:
    """site -> the spectrum of what goes into that linear layer over the texts, on the unedited model, in one pass.

    Sites that are no linear layer (an embedding) are left out. Several times as many tokens as the layer has inputs
    make the low-variance directions trustworthy.
    """
    linear = [site for site in sites if not isinstance(lm.model.get_submodule(site), torch.nn.Embedding)]
    window = min(WINDOW, lm.tokens.limit or WINDOW)
    rows = [list(lm.tokenizer(text)["input_ids"]) for text in texts]
    pieces = [row[start : start + window] for row in rows for start in range(0, len(row), window)]
    if not pieces:
        raise BadInput("no texts to tell the directions of low variance by")
    moments, _ = second_moments(lm, pieces, linear) if linear else ({}, 0)
    return {site: Spectrum.of(c) for site, c in moments.items()}


def _matrices(patch: Patch) -> dict[str, Weight]:
    total = sum(patch.of_kind(Delta), Delta({})).weights
    return {name: change for name, change in total.items() if len(change.shape) == 2}


def _weight(lm: HFLM, name: str) -> Tensor:
    """W (out, in), float64 on the CPU."""
    param = lm.model.get_parameter(name).detach()
    if param.device.type == "meta" or not param.is_floating_point():
        raise Unsupported(f"{name} is offloaded or quantised; load {lm.name or 'the model'} whole, on one device")
    return oriented(lm.model, name, exact(param)).cpu().double()


def _directed(change: Weight, weight: Tensor, spectrum: Spectrum) -> tuple[float, float, float]:
    """(felt, low, even)."""
    v, low = spectrum.vectors, spectrum.low
    if isinstance(change, LowRank):
        moved = change.a.double().cpu() @ (change.b.double().cpu() @ v)
    else:
        moved = change.double().cpu() @ v
    energy = moved.square().sum(0)  # (f,): of Δ along each direction
    usual = (weight @ v).square().sum(0)
    felt = float(((spectrum.values * energy).sum() / (spectrum.values * usual).sum()).sqrt())
    total = float(energy.sum())
    return felt, float(energy[low].sum()) / total if total else 0.0, float(low.double().mean())
