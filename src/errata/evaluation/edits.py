"""Cases made of a patch's own edits, where nobody gives others."""

from collections.abc import Iterable
from dataclasses import replace

from errata.errors import BadInput
from errata.evaluation.protocols import STAYING
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Case, Edit, Probe

REWORDED = ("paraphrase", "question", "alias")  # kinds that ask the edited fact itself


def cases_of(patch: Patch, known: Iterable[Case] = ()) -> list[Case]:
    """A case for each edit of a patch; of edits with the same prompt the last, which is in force.

    A case with the same edit (by id) among ``known`` lends its probes. One that edits the same prompt to another target
    lends those that still hold: the fact in other words, with the new target, and what should stay. Raises
    :class:`BadInput` where the patch names no edits.
    """
    edits = {edit.prompt: edit for edit in patch.edits}
    if not edits:
        raise BadInput("this patch names no edits of its own; give cases to measure it on (--cases FILE)")
    alone = [(case, case.edits[0]) for case in known if len(case.edits) == 1]
    same = {edit.id: case for case, edit in alone}
    near = {edit.prompt: case for case, edit in alone}
    return [
        Case(
            edit.id,
            (edit,),
            same[edit.id].probes if edit.id in same else _adapted(near[edit.prompt], edit) if prompt in near else (),
        )
        for prompt, edit in edits.items()
    ]


def own_cases(lm: HFLM, patch: Patch, seed: int = 0) -> list[Case]:
    """A patch's own edits as cases; of a model of the world with the probes that the world's cases (of ``seed``) have.

    Raises :class:`BadInput` for a patch that names no edits.
    """
    from errata.world.cases import cases
    from errata.world.named import world_named

    world = world_named(lm.name)
    if world is None:
        return cases_of(patch)
    return cases_of(patch, cases(world, len(world.subjects("test")), seed))


def makers(patch: Patch) -> str:
    """The names of the methods that made a patch."""
    return " + ".join(dict.fromkeys(made["method"] for made in patch.meta.get("made", ())))


def _adapted(case: Case, edit: Edit) -> tuple[Probe, ...]:
    """The probes of a case of the same prompt that hold after an edit to another target."""
    target = edit.target_new
    reworded = (replace(probe, answers=(target,)) for probe in case.probes if probe.kind in REWORDED)
    old = case.edits[0].target_new
    staying = (
        replace(probe, rival=target if probe.rival == old else probe.rival)
        for probe in case.probes
        if probe.kind in STAYING
    )
    return (*reworded, *staying)
