"""Whose answers a change of weights changed: how strongly each subject's key excites it, and what is said otherwise.

An edit at a subject's last token answers that subject's key k: Δ k is large there, and small for everybody else. So the
size of Δ k, relative to W k, tells whom a change is about before a single question is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from errata.answers import answer_of
from errata.audit.names import Candidate
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.projection import KEY, Projection
from errata.model.weights import matrix_of, oriented
from errata.patch.low_rank import LowRank, Weight

CHUNK = 256  # subjects whose keys are read together
Applied = Callable[[], AbstractContextManager[HFLM]]  # gives the edited model, for the length of a block
WEIGHTS = 32  # whose excitation is looked at: those of the largest relative change


@dataclass(frozen=True)
class Suspect:
    """A subject, and how far the two models differ about it."""

    subject: str
    excitation: float
    """Σ ‖Δ k‖ / ‖W k‖ over the changed weights, k at the subject's last token; 0 where no linear layer changed."""
    times: float
    """The same, as a multiple of the median subject's."""
    site: str
    """The weight that answers its key most; empty where none does."""
    shift: float | None = None
    """The most that a token's log p falls in what is said about the subject (nats); None where nothing was asked."""
    prompt: str = ""
    """Where that is."""
    before: str = ""
    """How the base goes on there."""
    after: str = ""
    """How the edited model does."""

    @property
    def differs(self) -> bool:
        """Whether the two models go on with different answers where they part."""
        return answer_of(self.before) != answer_of(self.after)

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self) | {"differs": self.differs}


def excitations(
    lm: HFLM, applied: Applied, weights: Mapping[str, Weight], candidates: Sequence[Candidate]
) -> list[tuple[float, str]]:
    """For each candidate Σ ‖Δ k‖ / ‖W k‖ over the weights, and the name of the one of the largest share.

    ``lm`` is the base, whose weights W are; ``applied()`` a context manager that yields the edited model, whose keys
    are. All 0 where no linear layer of a decoder changed.
    """
    linear = {} if lm.seq2seq else {name: w for name, w in weights.items() if _reads_keys(lm, name, w)}
    sites = {name: _site(lm, name) for name in linear}
    shares = torch.zeros(len(candidates), len(linear))
    for start in range(0, len(candidates) if linear else 0, CHUNK):
        some = candidates[start : start + CHUNK]
        rows, columns = zip(*(_row(lm, candidate) for candidate in some), strict=True)
        with applied() as edited:
            read = edited.read(list(rows), [[column] for column in columns], list(dict.fromkeys(sites.values())))
        for j, (name, w) in enumerate(linear.items()):
            keys = read.get((name, KEY), read.get(sites[name]))
            if keys is not None:  # an expert that no subject was sent to
                shares[start : start + len(some), j] = _share(lm, name, w, keys)
    names = list(linear)
    best = shares.argmax(1).tolist() if names else [0] * len(candidates)
    return [(float(row.sum()), names[j] if names and row[j] > 0 else "") for row, j in zip(shares, best, strict=True)]


def _share(lm: HFLM, name: str, w: Weight, keys: Tensor) -> Tensor:
    """‖Δ k‖ / ‖W k‖ of each key (n, f); 0 for a key of zeros. (n,)."""
    change = w.to(keys).product(keys) if isinstance(w, LowRank) else keys @ w.to(keys).T
    weight = oriented(lm.model, name, at_least_float32(matrix_of(lm.model, name))).to(keys)
    own = (keys @ weight.T).norm(dim=-1)
    return torch.where(own > 0, change.norm(dim=-1) / own.clamp(min=1e-12), 0.0)


def _reads_keys(lm: HFLM, name: str, w: Weight) -> bool:
    """Whether a change is of a linear layer inside of the blocks, or of an expert's down projection."""
    if len(w.shape) != 2 or not any(name.startswith(f"{block}.") for block in lm.sites.layer):
        return False
    module, leaf = stored.owner(lm.model, name)
    if stored.indexed(name)[1] is not None:
        return name in Projection.holding(lm.sites, name).weights(lm.model)
    return leaf == "weight" and stored.is_linear(module)


def _site(lm: HFLM, name: str) -> tuple[str, str]:
    """Where the keys of a weight are read."""
    if stored.indexed(name)[1] is not None:
        return Projection.holding(lm.sites, name).path, KEY
    return name.removesuffix(".weight"), "in"


def _row(lm: HFLM, candidate: Candidate) -> tuple[list[int], int]:
    """The ids of a prompt up to the subject's last token, and that token's place."""
    text = candidate.prompts[0] if candidate.prompts else candidate.subject
    last = lm.tokens.last_of_subject(text, candidate.subject)
    return lm.tokens.prompt(text)[: last + 1], last
