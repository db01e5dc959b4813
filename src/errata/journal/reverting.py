# pyright: strict
"""One edit taken out of a patch, and how that was had: an entry dropped, solved again, or made again."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from errata.errors import BadInput, Refused, Unsupported
from errata.journal.again import check_records, made_again, named
from errata.journal.commit import Commit, fact
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.patch import Patch
from errata.types import Edit

DROPPED, ALONE, SOLVED = "exact: entry dropped", "exact: there was no other edit", "exact: solved again"
SOLVER = "errata.methods.reverting"  # takes one edit out where that needs the model


def reverted(
    patch: Patch, edit: Edit, earlier: Sequence[Commit], load: Callable[[Commit], Patch], lm: HFLM | None
) -> tuple[Patch, dict[str, Any]]:
    """The patch as if one edit had never been made, and how that was had.

    ``earlier`` are the commits before it that do not have the edit, newest first. Raises :class:`Refused`.
    """
    left, way = _exactly(patch, edit, earlier, lm) or _again(patch, edit, earlier, load, lm)
    return named(left, patch), {"way": way, "taken out": edit.to_json()}


def _exactly(patch: Patch, edit: Edit, earlier: Sequence[Commit], lm: HFLM | None) -> tuple[Patch, str] | None:
    """The patch and how it was had; None where it must be made again, which the model can."""
    try:
        left = patch.without(edit.id)
        same = left.of_kind(Delta) == patch.of_kind(Delta)
        return left, ALONE if not left.edits else DROPPED if same else SOLVED
    except Unsupported as error:
        if lm is None:
            last = f"`errata checkout {earlier[0].short}` gives the last patch without it" if earlier else ""
            raise Refused(
                f"the edit {edit.id} cannot be taken out without the model ({error}); give the model (--model), which "
                f"solves or makes the other edits again{'; ' if last else ''}{last}"
            ) from error
    try:
        return import_module(SOLVER).reverted(lm, patch, edit.id)
    except (ModuleNotFoundError, Unsupported, BadInput):
        return None


def _again(
    patch: Patch, edit: Edit, earlier: Sequence[Commit], load: Callable[[Commit], Patch], lm: HFLM | None
) -> tuple[Patch, str]:
    assert lm is not None
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
