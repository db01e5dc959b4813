"""One edit taken out of whatever patch: by its parts where they can, by its method where the model is needed."""

from importlib import import_module
from typing import Any

from errata.errors import BadInput, Unsupported
from errata.model.hf import HFLM
from errata.patch.parts import METHODS
from errata.patch.patch import Patch

DROPPED, ALONE = "exact: entry dropped", "exact: there was no other edit"


def reverted(lm: HFLM, patch: Patch, edit_id: str, state: Any = None, *, search: bool = False) -> tuple[Patch, str]:
    """The patch as if one edit had never been made, and how that was had, in plain words.

    ``how`` begins with "exact" where the patch is, to rounding, the one that editing the others alone makes. Memories
    and prompts drop an entry. Closed forms (ROME, MEMIT and their kin) solve for the others again from the targets that
    the patch keeps; ``state`` is the one that they were made with, by default what ``prepare(lm)`` gives. Targets that
    were found later, with the edit in force, are kept, which ``how`` says, or with ``search`` searched for anew.

    Raises :class:`BadInput` for an id that the patch does not hold, :class:`Unsupported` where there is no way, and
    says what to do instead.
    """
    try:
        left = patch.without(edit_id)
    except Unsupported as error:
        made = [record for record in patch.meta["made"] if edit_id in [edit["id"] for edit in record["edits"]]]
        try:
            maker = import_module(METHODS).method(made[0]["method"])
        except BadInput:
            raise error from None
        return maker.without(lm, patch, edit_id, state, search=search)
    return left, DROPPED if left else ALONE
