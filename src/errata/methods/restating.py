"""Earlier edits of a fact that a new one contradicts in other words, as edits with the new answer."""

from collections.abc import Sequence
from dataclasses import replace

from errata.answers import is_text
from errata.methods.memory.reworded import reworded_by
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Edit


def restated(lm: HFLM, edits: Sequence[Edit], prior: Patch) -> list[Edit]:
    """The edits of ``prior`` that some of these contradict in other words, each with the target of the last of those.

    For methods whose changes do not reach from one wording to the other: made beside the new edits they let the newer
    answer be given in both. A text is no newer answer to what asks for a name, nor a name where a text was: a model
    whose edit shows in other prompts, too, takes these for one fact.
    """
    own = {edit.prompt for edit in edits}
    held = [edit for edit in {edit.prompt: edit for edit in prior.edits}.values() if edit.prompt not in own]
    found = reworded_by(lm, [*held, *edits], len(edits), prior) if held else {}
    target = {edit.id: edit.target_new for edit in edits}
    again: list[Edit] = []
    for edit in held:
        newer = [target[id] for id in found.get(edit.id, ()) if is_text(target[id]) == is_text(edit.target_new)]
        again += [replace(edit, target_new=answer, id="") for answer in newer[-1:]]
    return again
