# pyright: strict
"""One edit taken out of a patch, and how that was had: an entry dropped, solved again, or made again."""

from collections.abc import Callable, Sequence
from typing import Any

from errata.errors import BadInput, Refused, Unsupported
from errata.journal.again import check_records, made_again, named
from errata.journal.commit import Commit, fact
from errata.model.hf import HFLM
from errata.patch import reverting
from errata.patch.patch import Patch
from errata.types import Edit


def reverted(
    patch: Patch, edit: Edit, earlier: Sequence[Commit], load: Callable[[Commit], Patch], lm: HFLM | None
) -> tuple[Patch, dict[str, Any]]:
    """The patch as if one edit had never been made, and how that was had; where it was made again, why.

    ``earlier`` are the commits before it that do not have the edit, newest first. Raises :class:`Refused`, and
    :class:`WrongModel`.
    """
    if lm is not None:
        patch.check(lm)
    how: dict[str, Any] = {"taken out": edit.to_json()}
    try:
        left, how["way"] = _exactly(patch, edit, earlier, lm)
    except (Unsupported, BadInput) as error:
        assert lm is not None
        left, how["way"] = _again(patch, edit, earlier, load, lm)
        how["not exact"] = str(error)
    return named(left, patch), how


def _exactly(patch: Patch, edit: Edit, earlier: Sequence[Commit], lm: HFLM | None) -> tuple[Patch, str]:
    """The patch and how it was had. Raises :class:`Unsupported` where it must be made again, which the model can."""
    if lm is not None:
        return reverting.reverted(lm, patch, edit.id)
    try:
        left = patch.without(edit.id)
    except Unsupported as error:
        last = f"; `errata checkout {earlier[0].short}` gives the last patch without it" if earlier else ""
        raise Refused(
            f"the edit {edit.id} cannot be taken out of weights without the model; give the model (--model), "
            f"which solves or makes the other edits again{last}"
        ) from error
    return left, reverting.DROPPED if left.edits else reverting.ALONE


def _again(
    patch: Patch, edit: Edit, earlier: Sequence[Commit], load: Callable[[Commit], Patch], lm: HFLM
) -> tuple[Patch, str]:
    wanted = [key for key in map(fact, patch.edits) if key != fact(edit)]
    starts = [lambda one=one: load(one) for one in earlier if set(one.edits) <= set(wanted)]
    try:
        check_records(patch)
        return made_again(lm, wanted, patch.meta.get("made", ()), starts[:1])
    except (Unsupported, BadInput) as error:
        raise Refused(
            f"the edit {edit.id} cannot be taken out, and the others cannot be made again ({error}); go back to a "
            "patch without it (`errata log`, `errata checkout`) and edit that"
        ) from error
