"""Drift: how far a patch changes weights, in how many directions, and how much that changes outputs on usual inputs.

    spectra = spectra_of(lm, texts, drift_sites(patch))
    for site, change in drift(lm, patch, spectra).items(): ...

Knows no method: it reads the changes of matrices that a patch holds. Needs the model's weights, so an :class:`HFLM`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.evaluation.metrics import change_of
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.projection import Projection
from errata.model.second_moment import second_moments
from errata.model.weights import indexed, matrix_of, oriented, plain, stem
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight
from errata.patch.patch import Patch

LOW = 0.02  # share of C's trace that the low-variance directions hold, as in AlphaEdit's null space here
WINDOW = 512  # tokens of a text that are read in one pass


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Second moment C = E[k kᵀ] of a linear layer's input: eigenvalues, rising (f,), and eigenvectors (f, f)."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, c: Tensor) -> "Spectrum":
        """The spectrum of C (f, f), in float64 on the CPU."""
        values, vectors = torch.linalg.eigh(c.double().cpu())
        return cls(values.clamp(min=0), vectors)

    @property
    def low(self) -> Tensor:
        """Mask of the low-variance directions (f,): of the smallest eigenvalues, together ``LOW`` of the trace."""
        return self.values.cumsum(0) <= LOW * self.values.sum()


@dataclass(frozen=True)
class Drift:
    """The change Δ of one matrix W (out, in).

    - ``norm``: ‖Δ‖_F / ‖W‖_F;
    - ``rank`` and ``effective``: as in :class:`errata.evaluation.metrics.Change`;
    - ``relative_output_change``: √(E‖Δk‖² / E‖Wk‖²) = √(tr ΔCΔᵀ / tr WCWᵀ) over ordinary inputs k;
    - ``low``: ‖ΔP‖²_F / ‖Δ‖²_F, 0 to 1, the share of Δ's energy along the low-variance directions of C, with P the
      projector onto the directions of the smallest eigenvalues that together hold 2 % of C's trace;
    - ``low_isotropic``: rank P / in, the value of ``low`` for a change without preferred direction.

    The last three are None where C is not known.
    """

    norm: float
    rank: int
    effective: float
    relative_output_change: float | None = None
    low: float | None = None
    low_isotropic: float | None = None


def drift(lm: HFLM, patch: Patch, spectra: Mapping[str, Spectrum] | None = None) -> dict[str, Drift]:
    """site -> the drift of its matrix; ``spectra`` are those of :func:`spectra_of`, by site.

    All deltas of the patch count as one; vectors (biases, norms) are left out. Empty where no matrix changes.
    Raises :class:`Unsupported` where a weight is offloaded or quantised: its norm cannot be read.
    """
    patch.check(lm)
    drifts: dict[str, Drift] = {}
    for name, delta in _matrices(patch).items():
        site, weight = stem(name), _weight(lm, name)
        change = change_of({name: delta})[name]
        spectrum = (spectra or {}).get(site)
        on_inputs = () if spectrum is None else _on_inputs(delta, weight, spectrum)
        drifts[site] = Drift(change.norm / float(weight.norm()), change.rank, change.effective, *on_inputs)
    return drifts


def drift_sites(patch: Patch) -> list[str]:
    """The linear layers whose weight matrix the patch changes, and the experts, by the name of their matrix."""
    return [stem(name) for name in _matrices(patch) if name.endswith((".weight", "]"))]


def spectra_of(lm: HFLM, texts: Iterable[str], sites: Sequence[str]) -> dict[str, Spectrum]:
    """site -> the spectrum of that linear layer's input over the texts, on the unedited model, in one pass.

    Sites that are no linear layer (an embedding) are left out. The low-variance directions are reliable from several
    times as many tokens as the layer has inputs. Raises :class:`BadInput` where there are no texts.
    """
    held = {site: Projection.holding(lm.sites, weight_at(site)) for site in sites}
    linear = [
        site
        for site, held_by in held.items()
        if not isinstance(lm.model.get_submodule(held_by.path), torch.nn.Embedding)
    ]
    window = min(WINDOW, lm.tokens.limit or WINDOW)
    rows = [lm.tokens.ids(text) for text in texts]
    pieces = [row[start : start + window] for row in rows for start in range(0, len(row), window)]
    if not pieces:
        raise BadInput("no texts to find the directions of low variance with; give some")
    paths = list(dict.fromkeys(held[site].path for site in linear))
    moments = {stem(name): c for name, c in second_moments(lm, pieces, paths)[0].items()} if paths else {}
    return {site: Spectrum.of(moments[site]) for site in linear if site in moments}


def weight_at(site: str) -> str:
    """The name of a site's weight: a linear's, or that of a matrix of a stack itself."""
    return site if indexed(site)[1] is not None else f"{site}.weight"


def _matrices(patch: Patch) -> dict[str, Weight]:
    """The sum of the patch's deltas, by parameter name; matrices only."""
    total = sum(patch.of_kind(Delta), Delta({})).weights
    return {name: delta for name, delta in total.items() if len(delta.shape) == 2}


def _weight(lm: HFLM, name: str) -> Tensor:
    """W (out, in), float64 on the CPU."""
    plain(lm.model, name, "its values are needed")
    return oriented(lm.model, name, at_least_float32(matrix_of(lm.model, name))).cpu().double()


def _on_inputs(delta: Weight, weight: Tensor, spectrum: Spectrum) -> tuple[float, float, float]:
    """(relative_output_change, low, low_isotropic)."""
    v, low = spectrum.vectors, spectrum.low
    if isinstance(delta, LowRank):
        along = delta.a.double().cpu() @ (delta.b.double().cpu() @ v)  # (out, f)
    else:
        along = delta.double().cpu() @ v  # (out, f)
    energy = along.square().sum(0)  # of Δ along each direction, (f,)
    of_weight = (weight @ v).square().sum(0)  # of W, (f,)
    output_change = float(((spectrum.values * energy).sum() / (spectrum.values * of_weight).sum()).sqrt())
    total = float(energy.sum())
    return output_change, float(energy[low].sum()) / total if total else 0.0, float(low.double().mean())
