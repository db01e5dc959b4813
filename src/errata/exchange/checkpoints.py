"""A patch of the difference between two checkpoints: what an edited or fine-tuned model has that its base has not."""

from pathlib import Path

from errata.exchange.difference import differences
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.low_rank import Weight
from errata.patch.patch import Patch


def from_checkpoints(
    lm: HFLM, edited: str | Path | HFLM, *, exact: bool = False, trust_remote_code: bool = False
) -> Patch:
    """The patch that makes the edited model of ``lm``, its base; empty where nothing differs.

    A matrix whose difference has a small rank is kept as a product of two factors, all others whole: see
    :func:`errata.exchange.difference.differences`, which says what is raised. What a product leaves out is rounding
    to the type in which the checkpoints were saved (``lost``); with ``exact`` every difference is kept to the last bit,
    in full size. Code that comes with the edited model runs with ``trust_remote_code`` alone. ``meta["imported"]``
    holds for each weight its rank, its size relative to the weight, and ``lost``.
    """
    weights: dict[str, Weight] = {}
    records: dict[str, dict[str, float | int | None]] = {}
    for change, w in differences(lm, edited, exact=exact, trust_remote_code=trust_remote_code):
        weights[change.name] = w
        numbers = {"relative": round(change.relative, 6), "lost": round(change.lost, 6)}
        records[change.name] = {"rank": change.rank, **numbers}
    name = edited.name if isinstance(edited, HFLM) else Path(edited).name
    imported = {"from": "checkpoints", "edited": str(name), "exact": exact, "weights": records}
    model = {"name": lm.name, "fingerprint": lm.fingerprint}
    return Patch((Delta(weights),) if weights else (), meta={"model": model, "made": [], "imported": imported})
