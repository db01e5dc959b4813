# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What differs between two patches: edits, weights by site, other parts, and with a model the answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from errata.answers import answer_of, normalise
from errata.journal.combining import total
from errata.journal.commit import Commit, fact
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight
from errata.patch.patch import Patch
from errata.types import Case, Edit

NOISE = 1e-6  # of the largest singular value of either change: what float32 leaves of a rank that is not there


@dataclass(frozen=True)
class Diff:
    """What changed from one commit to another."""

    a: str
    """Ids of the two commits."""
    b: str
    added: tuple[Edit, ...]
    gone: tuple[Edit, ...]
    changed: tuple[tuple[Edit, Edit], ...]
    """Edits of the same prompt whose target is another one now: as it was, as it is."""
    weights: tuple[dict[str, Any], ...]
    """For each site whose weight is changed otherwise: ``site``, ``shape``, ``norm`` (Frobenius) and ``rank`` of the
    difference (None of what is no matrix), ``norm_a`` and ``norm_b`` of the two changes."""
    parts: tuple[dict[str, Any], ...]
    """Other parts that only one of them has: ``side`` ("a" or "b"), ``kind``, ``site``, ``entries``."""
    answers: tuple[dict[str, Any], ...] | None = None
    """With a model: ``prompt`` and the answers ``a`` and ``b`` where those differ; None where it was not asked."""

    def to_json(self) -> dict[str, Any]:
        """All that as JSON."""
        return asdict(self)


def difference(a: Commit, before: Patch, b: Commit, after: Patch, lm: HFLM | None, cases: Sequence[Case]) -> Diff:
    """As :meth:`errata.Journal.diff`."""
    was, now = ({fact(edit): edit for edit in patch.edits} for patch in (before, after))
    gone = [edit for key, edit in was.items() if key not in now]
    added = [edit for key, edit in now.items() if key not in was]
    changed = _pairs(gone, added)
    paired = {fact(edit) for pair in changed for edit in pair}
    return Diff(
        a=a.id,
        b=b.id,
        added=tuple(edit for edit in added if fact(edit) not in paired),
        gone=tuple(edit for edit in gone if fact(edit) not in paired),
        changed=tuple(changed),
        weights=tuple(_weights(total(before), total(after))),
        parts=tuple(_parts(before, after)),
        answers=None if lm is None else tuple(_answers(lm, before, after, cases)),
    )


def _pairs(gone: Sequence[Edit], added: Sequence[Edit]) -> list[tuple[Edit, Edit]]:
    """Edits of the same prompt that are gone and that have come, each once."""
    by_prompt: dict[str, list[Edit]] = {}
    for edit in reversed(gone):
        by_prompt.setdefault(normalise(edit.prompt), []).append(edit)
    return [(olds.pop(), edit) for edit in added if (olds := by_prompt.get(normalise(edit.prompt)))]


def _weights(a: Delta, b: Delta) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for name in dict.fromkeys([*a.weights, *b.weights]):
        old, new = a.weights.get(name), b.weights.get(name)
        shape = list((old if old is not None else new).shape)  # type: ignore[union-attr]
        norms = [_norm(w) for w in (old, new)]
        values = _singular(old, new) if len(shape) == 2 else None
        norm = float(values.norm()) if values is not None else float(_dense(new, shape).sub(_dense(old, shape)).norm())
        if norm <= NOISE * max(norms):
            continue
        rank = None if values is None else int((values > NOISE * max(*norms, float(values.max()))).sum())
        measured = {"norm": norm, "norm_a": norms[0], "norm_b": norms[1]}
        records.append(
            {"site": name, "shape": shape, "rank": rank} | {name: round(value, 6) for name, value in measured.items()}
        )
    return records


def _norm(w: Weight | None) -> float:
    return 0.0 if w is None else w.norm() if isinstance(w, LowRank) else float(w.double().norm())


def _dense(w: Weight | None, shape: Sequence[int]) -> Tensor:
    """float64, on the CPU."""
    if w is None:
        return torch.zeros(*shape, dtype=torch.float64)
    return (w.a.cpu().double() @ w.b.cpu().double()) if isinstance(w, LowRank) else w.cpu().double()


def _singular(old: Weight | None, new: Weight | None) -> Tensor:
    """The singular values of new - old; of low-rank ones from their factors: r³ in the place of out · in · r."""
    pairs = [(w, sign) for w, sign in ((new, 1.0), (old, -1.0)) if w is not None]
    low = [(w.a.cpu().double(), sign * w.b.cpu().double()) for w, sign in pairs if isinstance(w, LowRank)]
    shape = pairs[0][0].shape
    if len(low) < len(pairs) or sum(a.shape[1] for a, _ in low) > min(shape):
        return torch.linalg.svdvals(_dense(new, shape) - _dense(old, shape))
    left = torch.linalg.qr(torch.cat([a for a, _ in low], 1))[1]  # (r, r)
    right = torch.linalg.qr(torch.cat([b for _, b in low], 0).T)[1]  # (r, r)
    return torch.linalg.svdvals(left @ right.T)


def _parts(before: Patch, after: Patch) -> list[dict[str, Any]]:
    sides = [[part for part in patch.parts if not isinstance(part, Delta)] for patch in (before, after)]
    return [
        {"side": side, "kind": part.kind, "site": getattr(part, "site", None), "entries": len(part.entries())}
        for side, own, other in (("a", sides[0], sides[1]), ("b", sides[1], sides[0]))
        for part in own
        if not any(part == one for one in other)
    ]


def _answers(lm: HFLM, before: Patch, after: Patch, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The prompts of the edits and of the cases' probes that are answered otherwise (generated)."""
    asked = [edit.prompt for edit in (*before.edits, *after.edits)]
    prompts = list(dict.fromkeys([*asked, *(probe.prompt for case in cases for probe in case.probes)]))
    texts: list[list[str]] = []
    for patch in (before, after):
        with patch.applied(lm) as edited:
            texts.append([answer_of(text) for text in edited.generate(prompts, until_answer=True)] if prompts else [])
    rows = zip(prompts, *texts, strict=True)
    return [{"prompt": prompt, "a": a, "b": b} for prompt, a, b in rows if normalise(a) != normalise(b)]
