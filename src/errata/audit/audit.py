"""The audit of an edited model against its base: the weights that differ, the subjects behind them, a patch's claim.

found = audit(errata.load("world"), "edited")
found.changes, found.suspects[:15]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from errata.audit.asking import asked
from errata.audit.names import MOST_TEXTS, Candidate, candidates_of, names_in
from errata.audit.suspects import WEIGHTS, Suspect, excitations
from errata.errors import BadInput
from errata.exchange.difference import Change, differences
from errata.model.hf import HFLM
from errata.model.sites import Sites
from errata.patch.delta import Delta
from errata.patch.low_rank import Weight
from errata.patch.patch import Patch
from errata.patch.peft import check_parts
from errata.patch.spectra import in_float64

ASKED = 50  # suspects who are asked about
HELD = 0.05  # of a change that a patch may leave unexplained, as rounding to bfloat16 does


@dataclass(frozen=True)
class Touched:
    """A weight that differs, and where it stands."""

    change: Change
    layer: int | None
    """The block; None outside of them."""
    kind: str
    """``mlp_out``, ``mlp_in``, ``attn_out``, ``embed``, ``lm_head``, ``norm``, else the module's own name."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return {"layer": self.layer, "kind": self.kind} | self.change.to_json()


@dataclass(frozen=True)
class Claim:
    """How a patch that is said to be in the edited model compares with what differs."""

    unexplained: Mapping[str, float]
    """Weight -> ‖D − Δ‖ / ‖D‖, with D what differs and Δ the patch's change: 0 where they are one, 1 where the patch
    changes nothing."""
    missing: tuple[str, ...]
    """Weights that the patch changes and that do not differ."""
    subjects: tuple[str, ...]
    """Of the patch's edits."""

    @property
    def other(self) -> Mapping[str, float]:
        """Those of ``unexplained`` that are more than rounding."""
        return {name: share for name, share in self.unexplained.items() if share > HELD}

    @property
    def holds(self) -> bool:
        """Whether the patch is all that differs, up to rounding."""
        return not self.missing and not self.other


@dataclass(frozen=True)
class Audit:
    """What differs between two models of one make."""

    base: str
    edited: str
    changes: tuple[Touched, ...]
    """Every weight that differs."""
    suspects: tuple[Suspect, ...]
    """Subjects, by how strongly their keys excite what differs, the strongest first."""
    candidates: int
    """How many subjects were looked at."""
    source: str
    """Where they come from: ``given`` or ``texts``; ``none`` where nothing differs, or nobody is known."""
    claim: Claim | None = None
    """The comparison with a patch, where one was given."""

    def to_json(self) -> dict[str, Any]:
        """The whole as a JSON object."""
        claim = None if self.claim is None else {**asdict(self.claim), "holds": self.claim.holds}
        lists = {"changes": [one.to_json() for one in self.changes], "suspects": [s.to_json() for s in self.suspects]}
        about = {"base": self.base, "edited": self.edited, "candidates": self.candidates, "source": self.source}
        return {**about, **lists, "claim": claim}


def audit(
    lm: HFLM,
    edited: str | Path | HFLM,
    subjects: Iterable[str | Candidate] | None = None,
    *,
    texts: Iterable[str] | None = None,
    patch: Patch | None = None,
    ask: int = ASKED,
    trust_remote_code: bool = False,
) -> Audit:
    """What differs between the base ``lm`` and an edited model (a folder, a hub id), and which subjects are behind it.

    ``subjects`` are looked at; by default the names in ``texts``, which are by default those that go with the model.
    The first ``ask`` suspects are asked about, before and after. ``patch`` is compared with what differs. The models
    are left as they were; code that comes with the edited one runs with ``trust_remote_code`` alone. Raises what
    :func:`errata.exchange.difference.differences` raises, and :class:`BadInput` where ``ask`` is no count.
    """
    if type(cast(Any, ask)) is not int or ask < 0:
        raise BadInput(f"ask is a whole number of at least 0; found {ask!r}")
    if patch is not None:
        check_parts(patch.parts, Delta, "compared with what differs")
        patch.check(lm)
    found = list(differences(lm, edited, trust_remote_code=trust_remote_code))
    name = edited.name if isinstance(edited, HFLM) else str(edited)
    changes = tuple(Touched(change, *place_of(lm.sites, change.name)) for change, _ in found)
    weights = {change.name: w for change, w in found}
    claim = None if patch is None else claim_of(patch, weights)
    corpus = lm.resources.texts() if texts is None and lm.resources.texts is not None else texts
    known = None if corpus is None or not found else list(islice(corpus, MOST_TEXTS))
    candidates = [] if not found else candidates_of(names_in(known or ()) if subjects is None else subjects)
    source = "none" if not candidates else "texts" if subjects is None else "given"
    suspects = _suspects(lm, found, candidates, known, ask) if candidates else []
    return Audit(lm.name, name, changes, tuple(suspects), len(candidates), source, claim)


def _suspects(
    lm: HFLM,
    found: Sequence[tuple[Change, Weight]],
    candidates: Sequence[Candidate],
    texts: Sequence[str] | None,
    ask: int,
) -> list[Suspect]:
    """The candidates as suspects, the strongest first; the first of them asked about."""
    patch = Patch((Delta({change.name: w for change, w in found}),))

    def applied() -> Any:
        return patch.applied(lm)

    largest = sorted(found, key=lambda one: -one[0].relative)[:WEIGHTS]
    excited = excitations(lm, applied, {change.name: w for change, w in largest}, candidates)
    median = sorted(size for size, _ in excited)[len(excited) // 2]
    made = [
        Suspect(candidate.subject, size, size / median if median else 0.0, site)
        for candidate, (size, site) in zip(candidates, excited, strict=True)
    ]
    made.sort(key=lambda suspect: -suspect.excitation)
    told = asked(lm, applied, made[:ask], {one.subject: one for one in candidates}, texts) if ask else []
    by_shift = not made[0].excitation
    told.sort(key=lambda suspect: -(suspect.shift or 0.0) if by_shift else -suspect.excitation)
    return told + made[len(told) :]


def claim_of(patch: Patch, weights: Mapping[str, Weight]) -> Claim:
    """The comparison of a patch with what differs."""
    deltas = patch.of_kind(Delta)
    said = dict(sum(deltas[1:], deltas[0]).weights) if deltas else {}
    unexplained: dict[str, float] = {}
    for name, w in weights.items():
        whole = in_float64(w)
        rest = whole - in_float64(said[name]) if name in said else whole
        unexplained[name] = float(rest.norm() / whole.norm())
    subjects = dict.fromkeys(edit.subject for edit in patch.edits)
    return Claim(unexplained, tuple(name for name in said if name not in weights), tuple(subjects))


def place_of(sites: Sites, name: str) -> tuple[int | None, str]:
    """The block that a parameter belongs to, and what it is there."""
    path = name.rpartition(".")[0]
    for side in (sites, *([sites.encoder] if sites.encoder else [])):
        layer = next((i for i, block in enumerate(side.layer) if path.startswith(f"{block}.")), None)
        if layer is None:
            continue
        experts = any(path.startswith(one) for one in side.experts_of(layer))
        if path == side.mlp_out[layer] or (experts and "down" in name):
            return layer, "mlp_out"
        if path in side.mlp_in[layer] or experts:
            return layer, "mlp_in"
        return layer, "attn_out" if path == side.attn_out[layer] else path.rpartition(".")[2]
    outside = {sites.embed: "embed", sites.lm_head: "lm_head", sites.final_norm: "norm"}
    return None, outside.get(path, path.rpartition(".")[2])
