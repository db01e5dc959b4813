"""``errata edit``, ``errata ask`` and ``errata show``: make a patch, speak through it, look into it."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from errata.answers import answer_of, begins_with_answer
from errata.cli import common
from errata.errors import BadInput
from errata.types import Edit

if TYPE_CHECKING:
    from errata.methods.base import Method
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

ROWS = 20  # of a table of edits
NAME_LENGTH = 60

PatchFile = Annotated[Path | None, typer.Option("--patch", help="A patch to speak through.", show_default=False)]


# errata edit -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edited:
    """A patch, and what the model says to each edit's prompt without and with it."""

    patch: "Patch"
    edits: Sequence[Edit]
    before: Sequence[str]
    after: Sequence[str]

    @property
    def took(self) -> list[bool]:
        """Whether each edit's prompt is now answered with its target (generated)."""
        return [begins_with_answer(a, [e.target_new]) for e, a in zip(self.edits, self.after, strict=True)]


def edit(
    lm: "HFLM",
    edits: Sequence[Edit],
    method: "Method",
    data: Sequence[str] | None = None,
    prior: "Patch | None" = None,
    quiet: bool = True,
) -> Edited:
    """Prepares, edits, and asks before and after. ``data`` are texts to prepare with."""
    from errata.patch.patch import EMPTY

    prior = prior or EMPTY
    prior.check(lm)
    with common.step(f"preparing {method.name}", quiet):
        state = method.prepare(lm, data)
    with common.step(f"editing {_facts(len(edits))}", quiet):
        patch = method.edit(lm, edits, state, prior)
    prompts = [its.prompt for its in edits]
    with common.step("asking before and after", quiet):
        with prior.applied(lm) as speaker:
            before = speaker.generate(prompts, until_answer=True)
        with patch.applied(lm) as speaker:
            after = speaker.generate(prompts, until_answer=True)
    return Edited(patch, edits, before, after)


def edit_command(
    model: common.Model,
    prompt: Annotated[
        str | None, typer.Option(help="What the model shall go on from; {} stands for the subject.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="What the fact is about, as it stands in the prompt.")] = None,
    target: Annotated[str | None, typer.Option(help="The new answer.")] = None,
    edits: Annotated[Path | None, typer.Option(help="Many edits: one as JSON on each line.")] = None,
    method: common.MethodName = "memit",
    set_: common.Settings = None,
    data: common.Data = None,
    prior: Annotated[Path | None, typer.Option(help="A patch to go on from.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write; by default named after the subject."),
    ] = None,
    force: common.Force = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Make a patch that changes one fact, or many at once."""
    wanted = edits_of(prompt, subject, target, edits)
    path = output or default_name(wanted)
    common.check_output(path, force)
    chosen = common.make_method(method, set_, seed)
    texts = common.texts_for(chosen, data)
    earlier = load_patch(prior)
    lm = common.load_model(model, device, dtype, quiet)
    made = edit(lm, wanted, chosen, texts, earlier, quiet)
    made.patch.save(path)
    if as_json:
        common.say_json({"file": str(path), "edits": _answers(made), "took": sum(made.took)})
        return
    common.stdout().print(_table_of_answers(made))
    common.stdout().print(
        f"{sum(made.took)} of {_facts(len(wanted))} now answered as wanted (generated)", soft_wrap=True
    )
    typer.echo(f"wrote {path} ({common.size(path.stat().st_size)})", err=True)


def edits_of(prompt: str | None, subject: str | None, target: str | None, file: Path | None) -> list[Edit]:
    """The edits that the options ask for: one by its three parts, or a file of them."""
    parts = {"--prompt": prompt, "--subject": subject, "--target": target}
    given = [name for name, value in parts.items() if value is not None]
    if file is not None:
        if given:
            raise BadInput(f"{' and '.join(given)} and --edits were given; use either one edit or a file of them")
        return read_edits(file)
    if prompt is None or subject is None or target is None:
        missing = " and ".join(name for name in parts if name not in given)
        raise BadInput(f"an edit needs --prompt, --subject and --target (or --edits FILE); {missing} missing")
    return [Edit(prompt, subject, target)]


def read_edits(file: Path) -> list[Edit]:
    """One edit of each line of JSON; a broken line is named by its number."""
    edits: list[Edit] = []
    for number, line in enumerate(common.read_text(file, "edits").split("\n"), start=1):
        if line.strip():
            try:
                edits.append(Edit.from_json(json.loads(line)))
            except json.JSONDecodeError as error:
                raise BadInput(f"{file}, line {number}: not JSON ({error}); expected one edit on each line") from error
            except BadInput as error:
                raise BadInput(f"{file}, line {number}: {error}") from error
    if not edits:
        raise BadInput(f"{file} holds no edit; expected one as JSON on each line")
    return edits


def default_name(edits: Sequence[Edit]) -> Path:
    """A file here, named after the first subject."""
    subjects = list(dict.fromkeys(its.subject for its in edits))
    slug = re.sub(r"\W+", "-", subjects[0].lower()).strip("-")[:NAME_LENGTH] or "edit"
    more = f"-and-{len(subjects) - 1}-more" if len(subjects) > 1 else ""
    return Path(f"{slug}{more}.safetensors")


def _answers(made: Edited) -> list[dict[str, Any]]:
    return [
        {"id": e.id, "prompt": e.prompt, "target_new": e.target_new, "before": b, "after": a, "took": took}
        for e, b, a, took in zip(made.edits, made.before, made.after, made.took, strict=True)
    ]


def _table_of_answers(made: Edited) -> Any:
    rows = [
        (its["prompt"], _said(its["before"]), mark(_said(its["after"]), its["took"]), its["target_new"])
        for its in _answers(made)[:ROWS]
    ]
    more = f" (the first {ROWS} of {len(made.edits)})" if len(made.edits) > ROWS else ""
    return common.make_table(f"edits{more}", ("prompt", "before", "after", "wanted"), rows)


def mark(text: str, good: bool) -> Text:
    """An answer, green where it is as wanted."""
    return Text(text, style="green" if good else "red")


def _said(text: str) -> str:
    return common.shown(answer_of(text), 40)


def _facts(n: int) -> str:
    return f"{n} fact{'' if n == 1 else 's'}"


# errata ask --------------------------------------------------------------------------------------


def ask(
    lm: "HFLM",
    prompts: Sequence[str],
    patch: "Patch | None" = None,
    max_new_tokens: int = 32,
    force: bool = False,
) -> list[str]:
    """What the model says to each prompt, with the patch in force where there is one."""
    if patch is None:
        return lm.generate(prompts, max_new_tokens)
    with patch.applied(lm, force=force) as edited:
        return edited.generate(prompts, max_new_tokens)


def explain(lm: "HFLM", prompts: Sequence[str], patch: "Patch", force: bool = False) -> list[list[str]]:
    """For each prompt, which entries and facts of the patch act on it."""
    with patch.applied(lm, force=force) as edited:
        return edited.explain(prompts)


def ask_command(
    model: common.Model,
    prompts: Annotated[list[str], typer.Argument(help="What the model shall go on from.", show_default=False)],
    patch: PatchFile = None,
    max_new_tokens: Annotated[int, typer.Option(help="How far to go on.")] = 32,
    why_: Annotated[bool, typer.Option("--why", help="Say which entry or fact of the patch fired.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Take a patch of another model all the same.")] = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Let a model go on from prompts, edited or not."""
    loaded = load_patch(patch)
    lm = common.load_model(model, device, dtype, quiet)
    if why_ and loaded is None:
        raise BadInput("--why asks what in a patch fired; give one with --patch")
    texts = ask(lm, prompts, loaded, max_new_tokens, force)
    fired = explain(lm, prompts, loaded, force) if why_ and loaded is not None else [[] for _ in prompts]
    if as_json:
        more = [{"why": lines} if why_ else {} for lines in fired]
        common.say_json([{"prompt": p, "text": t, **m} for p, t, m in zip(prompts, texts, more, strict=True)])
        return
    for prompt, text, lines in zip(prompts, texts, fired, strict=True):
        common.stdout().print(Text(prompt, style="bold") + Text(text), soft_wrap=True)
        for line in lines or (["nothing of a memory fired"] if why_ else []):
            common.stdout().print(Text(f"  {line}", style="dim"), soft_wrap=True)


def load_patch(path: Path | None) -> "Patch | None":
    """The patch in a file; None without one."""
    from errata.patch.patch import Patch

    return None if path is None else Patch.load(path)


# errata show -------------------------------------------------------------------------------------


def show(path: str | Path) -> dict[str, Any]:
    """What a patch file holds, as JSON: its model, how it was made, its edits, its parts, its memory."""
    from errata.patch.patch import Patch

    patch = Patch.load(path)
    return {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "model": dict(patch.meta.get("model", {})),
        "made": [{**m, "edits": len(m["edits"])} for m in patch.meta.get("made", ())],
        "edits": [asdict(its) for its in patch.edits],
        "parts": patch.summary(),
        "entries": [entry for part in patch.parts for entry in part.entries()],
        "memory": {name: list(t.shape) for name, t in patch.memory.items()},
    }


def show_command(
    file: Annotated[Path, typer.Argument(help="A patch.", show_default=False)],
    as_json: common.Json = False,
) -> None:
    """Look into a patch: who made it, what it changes, where and how much."""
    held = show(file)
    if as_json:
        common.say_json(held)
        return
    console, model = common.stdout(), held["model"]
    of = f"{model.get('name')} ({model.get('fingerprint')})"
    console.print(f"{file}: {common.size(held['bytes'])}, of the model {of}", soft_wrap=True)
    for made in held["made"]:
        console.print(
            f"{made['method']}: {_facts(made['edits'])} on {made['time']}, {made['seconds']} s",
            soft_wrap=True,
        )
        console.print("  " + "  ".join(f"{k}={v}" for k, v in made["resolved"].items()), style="dim", soft_wrap=True)
    edits = [(e["id"], e["prompt"], e["target_new"]) for e in held["edits"][:ROWS]]
    more = f" (the first {ROWS} of {len(held['edits'])})" if len(held["edits"]) > ROWS else ""
    console.print(common.make_table(f"edits{more}", ("id", "prompt", "target"), edits))
    _print_records("parts", held["parts"])
    if held["entries"]:
        more = f" (the first {ROWS} of {len(held['entries'])})" if len(held["entries"]) > ROWS else ""
        _print_records(f"entries{more}", held["entries"][:ROWS])
    if held["memory"]:
        shapes = [(name, " x ".join(map(str, shape))) for name, shape in held["memory"].items()]
        console.print(common.make_table("memory (for the next edit)", ("name", "shape"), shapes))


def _print_records(title: str, records: Sequence[Mapping[str, Any]]) -> None:
    columns = list(Counter(key for record in records for key in record))
    rows = [[_cell(record.get(name, "")) for name in columns] for record in records]
    titles = ["neurons" if name == "columns" else name for name in columns]
    common.stdout().print(common.make_table(title, titles, rows, right=("rank", "norm", "numbers", "radius")))


def _cell(value: Any) -> Any:
    """A list without its brackets."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value
