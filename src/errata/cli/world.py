"""``errata world``: describes the bundled world, trains models of it, and asks those what edits should do."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from errata.cli import common

if TYPE_CHECKING:
    from errata.evaluation.gold import Gold
    from errata.evaluation.metrics import Mean

app = typer.Typer(help="The world that the bundled model knows.", invoke_without_command=True)


def world() -> dict[str, Any]:
    """The world in numbers: names by type, facts by relation, subjects by split; and a person's facts as an example."""
    from errata.world.facts import RELATIONS
    from errata.world.facts import world as make_world

    bundled = make_world()
    person = bundled.subjects("test")[0]
    return {
        "names": {kind: len(names) for kind, names in bundled.names.items()},
        "relations": [
            {
                "name": r.name,
                "subject": r.subject,
                "object": r.object,
                "facts": len(bundled.facts[r.name]),
                "question": r.question,
            }
            for r in RELATIONS.values()
        ],
        "facts": len(bundled),
        "splits": dict(Counter(bundled.split.values())),
        "example": {
            "name": person,
            "facts": {RELATIONS[r].first[0].replace("{}", person): o for r, o in bundled.about(person).items()},
        },
    }


@app.callback()
def world_command(ctx: typer.Context, as_json: common.Json = False) -> None:
    """Describe the bundled world, train a model of it, or make the gold that edits are measured against."""
    if ctx.invoked_subcommand is not None:
        return
    summary = world()
    if as_json:
        common.print_json(summary)
        return
    console = common.stdout()
    console.print(", ".join(f"{n} of type {kind}" for kind, n in summary["names"].items()), soft_wrap=True)
    rows = [(r["name"], f"{r['subject']} -> {r['object']}", r["facts"], r["question"]) for r in summary["relations"]]
    columns = ("relation", "types", "facts", "question")
    console.print(common.make_table(f"{summary['facts']} facts", columns, rows, right=("facts",)))
    console.print("subjects: " + ", ".join(f"{n} {name}" for name, n in summary["splits"].items()), soft_wrap=True)
    rows = list(summary["example"]["facts"].items())
    console.print(common.make_table(f"what is true of {summary['example']['name']}", ("prompt", "answer"), rows))


def train(
    folder: str | Path, quiet: bool = True, force: bool = False, start: str | Path | None = None, **recipe: Any
) -> Path:
    """The folder in which a model of the world has been trained; ``recipe`` overrides its defaults.

    With ``start``, a model of a world, training goes on from its weights with the third stage of its own recipe.
    """
    from errata.world.checkpoints import check_folder
    from errata.world.recipe import Recipe
    from errata.world.train import train as train_model

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    checked = Recipe(**recipe) if start is None else Recipe.starting_from(start, **recipe)
    check_folder(Path(folder), checked, force)
    with Progress(*columns, console=common.stderr(quiet), disable=quiet) as bar:
        task = bar.add_task("")
        return train_model(
            folder,
            checked,
            lambda done, steps, text: bar.update(task, completed=done, total=steps, description=text),
            force,
        )


@app.command("train")
def train_command(
    folder: Annotated[Path, typer.Argument(help="Where the model goes; the same command resumes.", show_default=False)],
    edits: Annotated[
        Path | None,
        typer.Option(
            help="Train on the world in which these hold: one edit as JSON on each line (`errata world edits`).",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Go on from the weights of 'world' or of such a folder: its shape, and stage 3 alone unless --learn "
            "or --move are given.",
            show_default="random weights",
        ),
    ] = None,
    architecture: Annotated[
        Literal["gpt2", "llama"] | None, typer.Option(help="The shape.", show_default="gpt2")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=8)] = None,
    heads: Annotated[int | None, typer.Option(min=1)] = None,
    persons: Annotated[int | None, typer.Option(min=20, help="How large the world is.")] = None,
    world_seed: Annotated[
        int | None, typer.Option(help="Another seed is a world of other names and facts.", show_default="0")
    ] = None,
    vocab: Annotated[int | None, typer.Option(min=300, help="Entries of the tokenizer.")] = None,
    learn: Annotated[int | None, typer.Option(min=0, help="Steps of stage 1: learn the facts.")] = None,
    move: Annotated[int | None, typer.Option(min=0, help="Steps of stage 2: move them to the subject.")] = None,
    follow: Annotated[int | None, typer.Option(min=0, help="Steps of stage 3: follow facts in context.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of a batch.")] = None,
    length: Annotated[int | None, typer.Option(min=32, help="Tokens of a row.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Without the second stage's masks: the twin for comparison.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over what the folder holds, and train anew.")] = False,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
) -> None:
    """Train a model of the world. Hours on a laptop; interrupted, the same command goes on."""
    from errata.cli.requested import read_edits

    sizes = {
        "architecture": architecture, "world_seed": world_seed, "plain": plain or None,
        "layers": layers, "width": width, "heads": heads, "persons": persons, "vocab": vocab,
        "learn": learn, "move": move, "follow": follow, "rows": rows, "length": length,
    }  # fmt: skip
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None} | {"seed": seed}
    if edits is not None:
        given["edits"] = tuple(read_edits(edits))
    common.set_up_logs(quiet)
    made = train(folder, quiet, force, start, **given)
    common.say(f"wrote {made}: try `errata demo --model {made}`")


@app.command("edits")
def edits_command(
    file: Annotated[Path, typer.Argument(help="Where they go, as `--edits` reads them.", show_default=False)],
    model: Annotated[str, typer.Option(help="'world', or the folder of a model of another world.")] = "world",
    limit: Annotated[int, typer.Option(min=1, help="How many cases.")] = 100,
    split: Annotated[str, typer.Option(help="Of the subjects: test, validation or train.")] = "test",
    force: common.Force = False,
    seed: common.Seed = 0,
) -> None:
    """Write the edits of a draw of the world's cases, one as JSON on each line."""
    import json

    from errata.files import write_text
    from errata.world.cases import cases

    common.check_output(file, force)
    edits = [edit for case in cases(_world_of(model), limit, seed, split) for edit in case.edits]
    write_text(file, "".join(json.dumps(edit.to_json(), ensure_ascii=False) + "\n" for edit in edits))
    common.say(f"wrote {file} ({len(edits)} edits)")


def gold(
    retrained: Sequence[str | Path],
    output: str | Path,
    model: str = "world",
    limit: int = 100,
    seed: int = 0,
    split: str = "test",
    quiet: bool = True,
) -> "tuple[Gold, dict[str, Mean]]":
    """The gold of a draw's edits, written to a file, and how far the unedited model is from it.

    ``retrained`` are the folders of models trained with those edits, alike but for the seed; the first is the
    reference.
    """
    import errata
    from errata.evaluation.make_gold import check_recipes, gold_of

    drawn = errata.cases(model, limit=limit, seed=seed, split=split)
    recipes = check_recipes(model, retrained, [edit for case in drawn for edit in case.edits])
    base, *others = (errata.load(str(name)) for name in (model, *retrained))
    data = f"the cases of {model}, limit={limit} seed={seed} split={split}"
    with common.step(f"asking {len(others)} retrained models", quiet):
        made = gold_of(base, others, drawn, data, recipes)
    made.save(output)
    with common.step(f"asking {base.name}", quiet):
        return made, made.distances(base)


@app.command("gold")
def gold_command(
    retrained: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `errata world train --edits` made, alike but for the seed: the reference, then others.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the gold goes.")] = Path("gold.safetensors"),
    model: Annotated[str, typer.Option(help="The unedited model: 'world', or a folder.")] = "world",
    limit: Annotated[int, typer.Option(min=1, help="How many cases.")] = 100,
    split: Annotated[str, typer.Option(help="Of the subjects: test, validation or train.")] = "test",
    force: common.Force = False,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
) -> None:
    """Write what models answer that were trained on the edited world: what edits are measured against."""
    common.check_output(output, force)
    common.set_up_logs(quiet)
    made, apart = gold(retrained, output, model, limit, seed, split, quiet)
    rows = [(kind, f"{unit.mean:.3g}", str(apart[kind])) for kind, unit in made.between.items()]
    columns = ("kind of probe", "between retrainings (nats)", f"{model}, in units of that")
    common.stdout().print(common.make_table("mean KL from the gold", columns, rows, right=columns[1:]))
    common.say(f"wrote {output} ({common.size(output.stat().st_size)})")


def _world_of(model: str) -> Any:
    """The world of a model. Raises :class:`BadInput` where it knows none."""
    from errata.errors import BadInput
    from errata.world.named import world_named

    if (world := world_named(model)) is None:
        raise BadInput(f"{model} knows no world; give 'world', or a folder that `errata world train` made")
    return world
