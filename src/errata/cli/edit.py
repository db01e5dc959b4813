"""``errata edit``, ``errata ask`` and ``errata show``: make a patch, ask the edited model, look into a patch."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, overload

import typer
from rich.text import Text

from errata.answers import answer_of, begins_with_answer
from errata.cli import common, conflicts, guards
from errata.cli.patches import PatchFiles, joined_patch, load_patches
from errata.cli.requested import Draft, completed, found_in, reader_of, settled
from errata.errors import BadInput, Refused
from errata.inputs import parsed
from errata.printable import printable
from errata.types import Edit

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from errata.methods.base import Method
    from errata.model.hf import HFLM
    from errata.model.sampling import Sampling
    from errata.patch.patch import Patch
    from errata.review.record import Review

ROWS = 20  # of a table of edits
NAME_LENGTH = 60


# errata edit -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edited:
    """A patch, and the model's answers to the edits' prompts without and with it."""

    patch: "Patch"
    edits: Sequence[Edit]
    before: Sequence[str]
    after: Sequence[str]

    @property
    def took(self) -> list[bool]:
        """For each edit, whether its prompt is now answered with its target (generated)."""
        return [begins_with_answer(text, [e.target_new]) for e, text in zip(self.edits, self.after, strict=True)]

    @property
    def outcomes(self) -> list[Mapping[str, Any]]:
        """For each edit, how it ended: see :meth:`errata.methods.base.Method.edit`."""
        found = self.patch.meta["made"][-1]["outcomes"]
        return [found.get(one.id, {}) for one in self.edits]

    @property
    def missed(self) -> list[Edit]:
        """The edits that are not answered with their target, generated or fed."""
        from errata.methods.outcomes import missed

        ended = zip(self.edits, self.took, self.outcomes, strict=True)
        return [edit for edit, took, outcome in ended if not took or missed(outcome)]


def edit(
    lm: "HFLM",
    edits: Sequence[Edit],
    method: "Method",
    data: Sequence[Any] | None = None,
    prior: "Patch | None" = None,
    quiet: bool = True,
) -> Edited:
    """Prepares, edits, and asks the edits' prompts before and after. ``data`` are what to prepare with."""
    from errata.patch.patch import EMPTY

    prior = prior or EMPTY
    prior.check(lm)
    with common.step(f"preparing {method.name}", quiet):
        state = method.prepare(lm, data)
    with common.step(f"editing {_facts(len(edits))}", quiet):
        patch = method.edit(lm, edits, state, prior)
    prompts = [one.prompt for one in edits]
    with common.step("asking before and after", quiet):
        with prior.applied(lm) as unchanged:
            before = unchanged.generate(prompts, until_answer=True)
        with patch.applied(lm) as edited:
            after = edited.generate(prompts, until_answer=True)
    return Edited(patch, edits, before, after)


def edit_command(
    model: common.Model,
    text: Annotated[
        str | None,
        typer.Argument(help='What shall be true, in plain sentences: "X\'s R is now Y, not Z".', show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the model shall go on from; {} stands for the subject.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="What the fact is about, as it stands in the prompt.", show_default="found by tracing"),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The new answer.")] = None,
    edits: Annotated[Path | None, typer.Option(help="Many edits: one as JSON on each line.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take what is found in TEXT without asking.")] = False,
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let a model read TEXT in the place of rules: the address of its chat completions, to which the text "
            "is sent. Its key is read from OPENAI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    reader_model: Annotated[str | None, typer.Option(help="The reader's model.", show_default=False)] = None,
    method: common.MethodName = "memit",
    set_: common.Settings = None,
    settings: common.SettingsFile = None,
    data: common.Data = None,
    prior: Annotated[Path | None, typer.Option(help="A patch to go on from.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write; by default named after the subject."),
    ] = None,
    force: common.Force = False,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing unless every edit took (exit 3).")] = False,
    strict_conflicts: Annotated[
        bool,
        typer.Option("--strict-conflicts", help="Write nothing if edits contradict each other or --prior's (exit 3)."),
    ] = False,
    review: Annotated[
        bool, typer.Option("--review", help="Review the patch, and write nothing where a guard refuses it (exit 3).")
    ] = False,
    min_reliability: guards.MinReliability = None,
    min_paraphrase: guards.MinParaphrase = None,
    min_neighborhood: guards.MinNeighborhood = None,
    min_same_subject: guards.MinSameSubject = None,
    min_unrelated: guards.MinUnrelated = None,
    max_kl: guards.MaxKL = None,
    max_loss: guards.MaxLoss = None,
    max_norm: guards.MaxNorm = None,
    max_block: guards.MaxBlock = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    workers: common.Workers = 0,
    threads: common.Threads = 1,
    ray_address: common.RayAddress = None,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Make a patch that changes one fact, or many at once."""
    limits = guards.given(
        min_reliability=min_reliability,
        min_paraphrase=min_paraphrase,
        min_neighborhood=min_neighborhood,
        min_same_subject=min_same_subject,
        min_unrelated=min_unrelated,
        max_kl=max_kl,
        max_loss=max_loss,
        max_norm=max_norm,
        max_block=max_block,
    )
    if limits and not review:
        raise BadInput(f"{guards.option(next(iter(limits)))} is a limit of the review; add --review")
    asked = edits_of(prompt, subject, target, edits, text)
    read_by = reader_of(reader, reader_model, text)
    if yes and text is None:
        raise BadInput("--yes takes what is found in a text, and none was given; leave it out")
    chosen = common.make_method(method, set_, seed, settings)
    prepared_with = common.data_for(chosen, data)
    earlier = load_patch(prior)
    named = [one for one in asked if isinstance(one, Edit)]
    path = output or (default_name(named) if named and len(named) == len(asked) else None)
    if path is not None:
        common.check_output(path, force)
    common.check_workers(workers, threads, ray_address)
    found = [] if text is None else found_in(text, read_by, yes)
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
    requested = completed(lm, asked, quiet) if text is None else settled(lm, found, read_by is None, yes, quiet)
    if path is None:
        path = default_name(requested)
        common.check_output(path, force)
    common.check_settings_file(settings, chosen, lm.name, lm.fingerprint)
    with common.attached(lm, workers, threads, ray_address):
        decided = conflicts.settle(lm, requested, earlier)
        if strict_conflicts:
            conflicts.check_none(decided)
        conflicts.warn(decided, quiet)
        requested = decided.edits
        result = edit(lm, requested, chosen, prepared_with, earlier, quiet)
    if strict and (failed := result.missed):
        missing = ", ".join(f"{one.prompt!r} -> {one.target_new!r}" for one in failed[:ROWS])
        raise Refused(
            f"{len(failed)} of {_facts(len(requested))} did not take, so nothing was written: {missing}; "
            "try more steps, another method, or do without --strict"
        )
    reviewed = _reviewed(lm, result.patch, earlier, prepared_with, limits, seed, quiet, as_json) if review else None
    result.patch.save(path)
    if failed := result.missed:
        common.say(
            f"{len(failed)} of {_facts(len(requested))} did not take, and the patch was written all the same; "
            "with --strict it is not (exit 3)"
        )
    if as_json:
        more = {"conflicts": records} if (records := decided.records()) else {}
        more |= {} if reviewed is None else {"review": reviewed.to_json()}
        common.print_json({"file": str(path), "edits": _answers(result), "took": sum(result.took), **more})
        return
    common.stdout().print(_table_of_answers(result))
    for line in _where(dict(zip((one.id for one in result.edits), result.outcomes, strict=True))):
        _print_line(f"  {line}", style="dim")
    common.stdout().print(
        f"{sum(result.took)} of {_facts(len(requested))} now answered with the target (generated)", soft_wrap=True
    )
    common.say(f"wrote {path} ({common.size(path.stat().st_size)})")


def _reviewed(
    lm: "HFLM",
    patch: "Patch",
    prior: "Patch | None",
    data: Sequence[Any] | None,
    limits: Mapping[str, float | None],
    seed: int,
    quiet: bool,
    as_json: bool,
) -> "Review":
    """The review of the new patch, shown; raises :class:`Refused` where a guard refuses it."""
    import errata
    from errata.cli.review import print_review

    texts = data if data and all(isinstance(one, str) for one in data) else None
    with common.step("reviewing", quiet):
        made = errata.review(lm, patch, texts=texts, guards=limits, prior=prior or errata.EMPTY, seed=seed)
    if not as_json:
        print_review(made, as_json=False)
    return made.check()


def edits_of(
    prompt: str | None, subject: str | None, target: str | None, file: Path | None, text: str | None = None
) -> list[Edit | Draft]:
    """The edits that the options give: one by its parts, or a file of them; none where a text gives them.

    A subject may be left out. Raises :class:`BadInput`.
    """
    parts = {"--prompt": prompt, "--subject": subject, "--target": target}
    given = [name for name, value in parts.items() if value is not None]
    for other, of in ((file, "--edits"), (text, "a text")):
        if other is not None and (extra := [*given, *(["--edits"] if file is not None and other is text else [])]):
            raise BadInput(f"{' and '.join(extra)} and {of} were given; use one edit, a file of them, or a text")
    if file is not None:
        return read_edits(file, Draft.from_json)
    if text is not None:
        return []
    if prompt is None or target is None:
        missing = " and ".join(name for name in ("--prompt", "--target") if name not in given)
        raise BadInput(f"an edit needs --prompt and --target (or --edits FILE, or a text); {missing} missing")
    return [Draft(prompt, target) if subject is None else Edit(prompt, subject, target)]


T = TypeVar("T")


@overload
def read_edits(file: Path) -> list[Edit]: ...
@overload
def read_edits(file: Path, make: Callable[[Any], T]) -> list[T]: ...
def read_edits(file: Path, make: Callable[[Any], Any] = Edit.from_json) -> list[Any]:
    """The edits of a file with one as JSON on each line. Raises :class:`BadInput`, with the number of the line."""
    edits: list[Any] = []
    for number, line in enumerate(common.read_text(file, "edits").split("\n"), start=1):
        if line.strip():
            try:
                edits.append(make(parsed(line)))
            except BadInput as error:
                raise BadInput(f"{file}, line {number}: {error}; expected one edit as JSON on each line") from error
    if not edits:
        raise BadInput(f"{file} holds no edit; expected one as JSON on each line")
    return edits


def default_name(edits: Sequence[Edit]) -> Path:
    """A file in the working folder, named after the first subject."""
    subjects = list(dict.fromkeys(one.subject for one in edits))
    slug = re.sub(r"\W+", "-", subjects[0].lower()).strip("-")[:NAME_LENGTH] or "edit"
    more = f"-and-{len(subjects) - 1}-more" if len(subjects) > 1 else ""
    return Path(f"{slug}{more}.safetensors")


def _answers(result: Edited) -> list[dict[str, Any]]:
    columns = zip(result.edits, result.before, result.after, result.took, result.outcomes, strict=True)
    return [
        {
            "id": e.id,
            "prompt": e.prompt,
            "subject": e.subject,
            "target_new": e.target_new,
            "before": before,
            "after": after,
            "took": took,
        }
        | dict(outcome)
        for e, before, after, took, outcome in columns
    ]


def _table_of_answers(result: Edited) -> Any:
    rows = [
        (
            row["prompt"],
            _short(row["before"]),
            coloured(_short(row["after"]), row["took"]),
            row["target_new"],
            _loss(row.get("search_loss"), row.get("search_met")),
            _loss(row.get("loss"), row.get("met")),
        )
        for row in _answers(result)[:ROWS]
    ]
    more = f" (the first {ROWS} of {len(result.edits)})" if len(result.edits) > ROWS else ""
    columns = ("prompt", "before", "after", "target", "search loss", "loss")
    return common.make_table(f"edits{more}", columns, rows, right=columns[-2:])


def _loss(value: float | None, met: bool | None) -> Text:
    """A loss, in green where it is met, otherwise in red and with a word; a dash where none is known."""
    if met is None:
        return Text("-")
    number = "not finite" if value is None else f"{value:.2f}"
    return coloured(number if met else f"{number} missed", met)


def coloured(text: str, good: bool) -> Text:
    """An answer, in green where it is right, otherwise in red."""
    return Text(text, style="green" if good else "red")


def _short(text: str) -> str:
    return common.one_line(answer_of(text), 40)


def _facts(n: int) -> str:
    return f"{n} fact{'' if n == 1 else 's'}"


# errata ask --------------------------------------------------------------------------------------


def ask(
    lm: "HFLM",
    prompts: Sequence[str],
    patch: "Patch | None" = None,
    max_new_tokens: int = 32,
    force: bool = False,
    **sampling: "Unpack[Sampling]",
) -> list[str]:
    """The model's continuation of each prompt, with the patch in force where there is one; greedy, or drawn."""
    if patch is None:
        return lm.generate(prompts, max_new_tokens, **sampling)
    with patch.applied(lm, force=force) as edited:
        return edited.generate(prompts, max_new_tokens, **sampling)


def explain(lm: "HFLM", prompts: Sequence[str], patch: "Patch", force: bool = False) -> list[list[str]]:
    """For each prompt, a line for each entry or fact of the patch that acts on it."""
    with patch.applied(lm, force=force) as edited:
        return edited.explain(prompts)


def ask_command(
    model: common.Model,
    prompts: Annotated[list[str], typer.Argument(help="What the model shall go on from.", show_default=False)],
    patch: PatchFiles = None,
    max_new_tokens: Annotated[int, typer.Option(help="How far to go on.")] = 32,
    temperature: Annotated[
        float | None, typer.Option(help="Draw tokens, by p^(1/temperature).", show_default="greedy")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the likeliest, of this probability together.", show_default="all")
    ] = None,
    seed: common.Seed = 0,
    why: Annotated[bool, typer.Option("--why", help="Say which entry or fact of the patch fired.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Take a patch of another model all the same.")] = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Let a model go on from prompts, or answer them in a chat, edited or not."""
    from errata.model.sampling import is_drawn

    sampling: Sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = sampling if is_drawn(sampling) else {}
    loaded = load_patches(patch)
    if why and not loaded:
        raise BadInput("--why asks what in a patch fired; give one with --patch")
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
    spoken_through = joined_patch(loaded, lm, force)
    texts = ask(lm, prompts, spoken_through, max_new_tokens, force, **sampling)
    fired = explain(lm, prompts, spoken_through, force) if why and spoken_through is not None else [[] for _ in prompts]
    if as_json:
        explained = [{"why": lines} if why else {} for lines in fired]
        rows = zip(prompts, texts, explained, strict=True)
        common.print_json([{"prompt": prompt, "text": text, **more} for prompt, text, more in rows])
        return
    for prompt, text, lines in zip(prompts, texts, fired, strict=True):
        said = Text(printable(text, keep="\n\t"))
        asked = Text(printable(prompt, keep="\n\t") + "\n" * lm.chat, style="bold")
        common.stdout().print(asked + said, soft_wrap=True)
        for line in lines or (["nothing of a memory fired"] if why else []):
            common.stdout().print(Text(f"  {printable(line)}", style="dim"), soft_wrap=True)


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
    _print_line(f"{file}: {common.size(content['bytes'])}, of the model {of}")
    for made in content["made"]:
        how = f", {Asked.said_by(made).words}" if made.get("chat") else ""
        _print_line(f"{made['method']}: {_facts(made['edits'])} on {made['time']}, {made['seconds']} s{how}")
        _print_line("  " + "  ".join(f"{k}={v}" for k, v in made["resolved"].items()), style="dim")
        for line in _told(made):
            _print_line(f"  {line}")
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
        + _where({id: ended for id, ended in outcomes.items() if not missed(ended)})
        + [
            f"{site} runs as a side product: rounding to {made['dtype']} would leave {100 * share:.0f} % of its change"
            for site, share in made.get("rounded", {}).items()
        ]
    )


def _where(outcomes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where each answer comes from and why, for edits by a method that says so."""
    lines = [
        f"{id} in {ended['ended']}: {ended.get('why', '')}" for id, ended in outcomes.items() if ended.get("ended")
    ]
    return lines[:ROWS] + ([f"and {len(lines) - ROWS} more"] if len(lines) > ROWS else [])


def _print_line(text: str, style: str = "") -> None:
    """Prints one line, whatever the file holds."""
    common.stdout().print(printable(text), style=style, soft_wrap=True)


def _print_records(title: str, records: Sequence[Mapping[str, Any]]) -> None:
    columns = list(Counter(key for record in records for key in record))
    rows = [[_cell(record.get(name, "")) for name in columns] for record in records]
    titles = ["neurons" if name == "columns" else name for name in columns]
    common.stdout().print(common.make_table(title, titles, rows, right=("rank", "norm", "numbers", "radius")))


def _cell(value: Any) -> Any:
    """A list without its brackets."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value
