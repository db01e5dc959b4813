"""``errata eval --tasks``: general ability, by lm-evaluation-harness or by the built-in set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common
from errata.errors import BadInput
from errata.types import Case, Row

if TYPE_CHECKING:
    from errata.evaluation.harness import Tasks
    from errata.methods.base import Method
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

OURS = "ability"  # names the built-in set among tasks
Names = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help="Ask these instead: tasks of lm-evaluation-harness (a,b), or 'ability', the built-in set.",
        show_default=False,
    ),
]
Folder = Annotated[
    Path | None, typer.Option("--task-folder", help="A folder with YAML files of more tasks.", show_default=False)
]
Limit = Annotated[
    int | None, typer.Option("--task-limit", min=1, help="How many documents of each task.", show_default="all")
]
PatchFile = Annotated[
    Path | None,
    typer.Option("--patch", help="Ask --tasks of this patch, and make none by a method.", show_default=False),
]


@dataclass(frozen=True)
class Asked:
    """What ``--tasks`` names: tasks of the harness, the built-in set, or both."""

    tasks: "Tasks"
    ability: bool


def found(tasks: str | None, folder: Path | None, limit: int | None, patch: Path | None) -> Asked | None:
    """The tasks that ``--tasks`` names; None without it. Raises where one cannot be read, or other options want it."""
    given = {"--task-folder": folder, "--task-limit": limit, "--patch": patch}
    if tasks is None:
        if odd := [name for name, value in given.items() if value is not None]:
            raise BadInput(f"{odd[0]} goes with --tasks; name the tasks, or leave it out")
        return None
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise BadInput("--tasks names no task; give names with commas between")
    theirs = [name for name in names if name != OURS]
    if not theirs:
        return Asked({}, True)
    from errata.evaluation.harness import find_tasks

    return Asked(find_tasks(theirs, folder), OURS in names)


def made(
    lm: "HFLM", method: "Method", cases: Sequence[Case], texts: Sequence[str] | None = None, quiet: bool = True
) -> "Patch":
    """The patch of a method for all edits of the cases at once."""
    edits = [edit for case in cases for edit in case.edits]
    with common.step(f"preparing {method.name}", quiet):
        state = method.prepare(lm, texts)
    with common.step(f"making {len(edits)} edits", quiet):
        return method.edit(lm, edits, state)


def ask(
    lm: "HFLM",
    patch: "Patch",
    asked: Asked,
    limit: int | None = None,
    quiet: bool = True,
    seed: int = 0,
) -> list[Row]:
    """Rows of what is asked without the patch and with it in force; of tasks also after it is gone."""
    methods = dict.fromkeys(made["method"] for made in patch.meta.get("made", ()))
    labels: Any = {"method": " + ".join(methods), "seed": seed}
    rows: list[Row] = []
    if asked.ability:
        with common.step("asking for what it can do", quiet):
            rows += ability(lm, patch, **labels)
    if asked.tasks:
        from errata.evaluation.harness import run_tasks

        with common.step(f"asking {', '.join(asked.tasks)} before, edited and undone", quiet):
            rows += run_tasks(lm, patch, asked.tasks, limit, **labels)
    return rows


def ability(lm: "HFLM", patch: "Patch", **labels: Any) -> list[Row]:
    """Rows of the built-in set: untouched facts, facts in context, loss on text, drift of the weights."""
    from errata.evaluation.ability import Checkup, ability_of

    labels |= {"model": lm.name, "setting": OURS, "after_edits": len(patch.edits)}
    check = Checkup(lm, ability_of(lm))
    with patch.applied(lm) as edited:
        rows = check.rows(edited, **labels)
    return rows + check.drift(patch, **labels)
