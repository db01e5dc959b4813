"""``errata show``: look into a patch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli import common
from errata.cli.edited import ROWS, facts, origins, print_line


def show(path: str | Path) -> dict[str, Any]:
    """What a patch file holds, as JSON: its model, how it was made, its edits, its parts, its memory."""
    from errata.patch.patch import Patch

    patch = Patch.load(path)
    return {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "model": dict(patch.meta.get("model", {})),
        "made": [{**m, "edits": len(m["edits"])} for m in patch.meta.get("made", ())],
        "edits": [asdict(one) for one in patch.edits],
        "parts": patch.summary(),
        "entries": [entry for part in patch.parts for entry in part.entries()],
        "memory": {name: list(t.shape) for name, t in patch.memory.items()},
    }


def show_command(
    file: Annotated[Path, typer.Argument(help="A patch.", show_default=False)],
    as_json: common.Json = False,
) -> None:
    """Look into a patch: who made it, what it changes, where and how much."""
    from errata.model.asked import Asked

    content = show(file)
    if as_json:
        common.print_json(content)
        return
    console, model = common.stdout(), content["model"]
    of = f"{model.get('name')} ({model.get('fingerprint')})"
    print_line(f"{file}: {common.size(content['bytes'])}, of the model {of}")
    for made in content["made"]:
        how = f", {Asked.said_by(made).words}" if made.get("chat") else ""
        print_line(f"{made['method']}: {facts(made['edits'])} on {made['time']}, {made['seconds']} s{how}")
        print_line("  " + "  ".join(f"{k}={v}" for k, v in made["resolved"].items()), style="dim")
        for line in _told(made):
            print_line(f"  {line}")
    edits = [(e["id"], e["prompt"], e["target_new"]) for e in content["edits"][:ROWS]]
    more = f" (the first {ROWS} of {len(content['edits'])})" if len(content["edits"]) > ROWS else ""
    console.print(common.make_table(f"edits{more}", ("id", "prompt", "target"), edits))
    _print_records("parts", content["parts"])
    if content["entries"]:
        more = f" (the first {ROWS} of {len(content['entries'])})" if len(content["entries"]) > ROWS else ""
        _print_records(f"entries{more}", content["entries"][:ROWS])
    if content["memory"]:
        shapes = [(name, " x ".join(map(str, shape))) for name, shape in content["memory"].items()]
        console.print(common.make_table("memory (for the next edit, or to take one out)", ("name", "shape"), shapes))


def _told(made: Mapping[str, Any]) -> list[str]:
    """What the record of a call of ``edit`` says of edits that failed, and of changes that rounding would lose."""
    from errata.methods.outcomes import describe, missed

    outcomes = made.get("outcomes", {})
    lines = [f"{id} missed: {describe(ended)}" for id, ended in outcomes.items() if missed(ended)]
    more = [f"and {len(lines) - ROWS} more missed"] if len(lines) > ROWS else []
    return (
        lines[:ROWS]
        + more
        + origins({id: ended for id, ended in outcomes.items() if not missed(ended)})
        + [
            f"{site} runs as a side product: rounding to {made['dtype']} would leave {100 * share:.0f} % of its change"
            for site, share in made.get("rounded", {}).items()
        ]
    )


def _print_records(title: str, records: Sequence[Mapping[str, Any]]) -> None:
    columns = list(Counter(key for record in records for key in record))
    rows = [[_cell(record.get(name, "")) for name in columns] for record in records]
    titles = ["neurons" if name == "columns" else name for name in columns]
    common.stdout().print(common.make_table(title, titles, rows, right=("rank", "norm", "numbers", "radius")))


def _cell(value: Any) -> Any:
    """A list without its brackets."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value
