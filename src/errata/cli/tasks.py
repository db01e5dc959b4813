"""``errata tasks``: tasks of lm-evaluation-harness, and the built-in set ``ability``, with a patch and without it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common
from errata.cli.patches import load_patch
from errata.errors import BadInput
from errata.files import write_text
from errata.types import Row

if TYPE_CHECKING:
    from errata.evaluation.harness import Tasks
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

ABILITY = "ability"  # names the built-in set among tasks


def tasks(
    lm: "HFLM",
    names: Sequence[str],
    patch: "Patch | None" = None,
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> list[Row]:
    """Rows of tasks before, with the patch in force, and (of the harness's tasks) after it is undone.

    ``names`` are tasks of lm-evaluation-harness, those in YAML files of ``folder``, or ``ability``, the built-in set;
    ``limit`` takes the first documents of each task (of ``ability`` facts and texts). Without a patch rows have a
    ``before`` alone. Python code beside the YAML files runs with ``trust_remote_code`` alone. Raises :class:`BadInput`
    for tasks that cannot be read.
    """
    return _tasks(lm, _find(names, folder, trust_remote_code), ABILITY in names, patch, limit, seed, quiet)


def _find(names: Sequence[str], folder: str | Path | None, trusted: bool) -> "Tasks":
    """The tasks of the harness among the names, read."""
    if not names:
        raise BadInput("--tasks names no task; give names with commas between")
    theirs = [name for name in names if name != ABILITY]
    if not theirs:
        return {}
    from errata.evaluation.harness import find_tasks

    return find_tasks(theirs, folder, trust_remote_code=trusted)


def _tasks(
    lm: "HFLM", loaded: "Tasks", with_ability: bool, patch: "Patch | None", limit: int | None, seed: int, quiet: bool
) -> list[Row]:
    from errata.evaluation.edits import makers

    labels: Any = {"method": makers(patch) if patch else "", "seed": seed}
    rows: list[Row] = []
    if with_ability:
        with common.step("asking for what it can do", quiet):
            rows += ability(lm, patch, limit, **labels)
    if loaded:
        from errata.evaluation.harness import run_tasks

        with common.step(f"asking {', '.join(loaded)}", quiet):
            rows += run_tasks(lm, patch, loaded, limit, **labels)
    return rows


def ability(lm: "HFLM", patch: "Patch | None" = None, limit: int | None = None, **labels: Any) -> list[Row]:
    """Rows of the built-in set: untouched facts, facts in context, loss on text, drift of the weights.

    ``limit`` takes the first facts and texts. Without a patch rows have a ``before`` alone.
    """
    from errata.evaluation.ability import Checkup, ability_of

    labels |= {"model": lm.name, "chat": lm.asked_label, "setting": ABILITY}
    labels |= {"after_edits": len(patch.edits) if patch else 0}
    every = ability_of(lm)
    check = Checkup(lm, replace(every, cases=every.cases[:limit], texts=every.texts[:limit]))
    if patch is None:
        return [replace(row, after=None) for row in check.rows(lm, **labels)]
    with patch.applied(lm) as edited:
        rows = check.rows(edited, **labels)
    return rows + check.drift(patch, **labels)


def tasks_command(
    model: common.Model,
    names: Annotated[
        str,
        typer.Option(
            "--tasks", help="Tasks of lm-evaluation-harness (a,b), or 'ability', the built-in set.", show_default=False
        ),
    ],
    folder: Annotated[
        Path | None, typer.Option("--task-folder", help="A folder with YAML files of more tasks.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="How many documents of each task; of ability facts and texts.", show_default="all"),
    ] = None,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="Ask with this patch too, and when it is undone.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the rows here, as JSON lines.")] = None,
    force: common.Force = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Measure general ability: tasks of lm-evaluation-harness before, with a patch, and undone."""
    from errata.report.folds import summary
    from errata.report.rows import to_jsonl
    from errata.report.tables import table

    if output is not None:
        common.check_output(output, force)
    common.show_logs(quiet)
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    loaded, held = _find(chosen, folder, trust_remote_code), load_patch(patch)
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
    if held is not None:
        held.check(lm)
    rows = _tasks(lm, loaded, ABILITY in chosen, held, limit, seed, quiet)
    if as_json:
        common.print_json([asdict(line) for line in summary(rows, ("label",))])
    else:
        common.stdout().print(table(rows, ("label",)))
        if lm.resources.texts is not None:
            common.stdout().print(common.PREPARED)
    if output is not None:  # last: what was measured is shown, also where the disk is full by now
        write_text(output, to_jsonl(rows))
        common.say(f"wrote {output} ({len(rows)} rows)")
