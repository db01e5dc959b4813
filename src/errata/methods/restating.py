"""Earlier edits of a fact that a new one contradicts in other words, as edits with the new answer."""

from collections.abc import Sequence
from dataclasses import replace

from errata.methods.memory.reworded import reworded_by
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Edit


def restated(lm: HFLM, edits: Sequence[Edit], prior: Patch) -> list[Edit]:
    """The edits of ``prior`` that some of these contradict in other words, each with the target of the last of those.

    For methods whose changes do not reach from one wording to the other: made beside the new edits they let the newer
    answer be given in both.
    """
    own = {edit.prompt for edit in edits}
    held = [edit for edit in {edit.prompt: edit for edit in prior.edits}.values() if edit.prompt not in own]
    found = reworded_by(lm, [*held, *edits], len(edits), prior) if held else {}
    target = {edit.id: edit.target_new for edit in edits}
    return [replace(edit, target_new=target[found[edit.id][-1]], id="") for edit in held if edit.id in found]
