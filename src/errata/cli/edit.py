"""``errata edit``: make a patch."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common, conflicts, guards
from errata.cli.edited import ROWS, Edited, facts, origins, print_line, table_of_answers
from errata.cli.patches import load_patch
from errata.cli.requested import completed, edits_of
from errata.cli.sentences import found_in, reader_of, settled
from errata.errors import BadInput, Refused
from errata.types import Edit

if TYPE_CHECKING:
    from errata.methods.base import Method
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch
    from errata.review.record import Review

NAME_LENGTH = 60


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
    with common.step(f"editing {facts(len(edits))}", quiet):
        patch = method.edit(lm, edits, state, prior)
    prompts = [one.prompt for one in edits]
    with common.step("asking before and after", quiet):
        with prior.applied(lm) as unchanged:
            before = unchanged.generate(prompts, until_answer=True)
        with patch.applied(lm) as edited:
            after = edited.generate(prompts, until_answer=True)
    return Edited(patch, edits, before, after)


@guards.limited
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
    limits: Mapping[str, float | None] = guards.NONE,
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
            f"{len(failed)} of {facts(len(requested))} did not take, so nothing was written: {missing}; "
            "try more steps, another method, or do without --strict"
        )
    reviewed = _reviewed(lm, result.patch, earlier, prepared_with, limits, seed, quiet, as_json) if review else None
    result.patch.save(path)
    if failed := result.missed:
        common.say(
            f"{len(failed)} of {facts(len(requested))} did not take, and the patch was written all the same; "
            "with --strict it is not (exit 3)"
        )
    if as_json:
        more = {"conflicts": records} if (records := decided.records()) else {}
        more |= {} if reviewed is None else {"review": reviewed.to_json()}
        common.print_json({"file": str(path), "edits": result.to_json(), "took": sum(result.took), **more})
        return
    common.stdout().print(table_of_answers(result))
    for line in origins(dict(zip((one.id for one in result.edits), result.outcomes, strict=True))):
        print_line(f"  {line}", style="dim")
    common.stdout().print(
        f"{sum(result.took)} of {facts(len(requested))} now answered with the target (generated)", soft_wrap=True
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


def default_name(edits: Sequence[Edit]) -> Path:
    """A file in the working folder, named after the first subject."""
    subjects = list(dict.fromkeys(one.subject for one in edits))
    slug = re.sub(r"\W+", "-", subjects[0].lower()).strip("-")[:NAME_LENGTH] or "edit"
    more = f"-and-{len(subjects) - 1}-more" if len(subjects) > 1 else ""
    return Path(f"{slug}{more}.safetensors")
