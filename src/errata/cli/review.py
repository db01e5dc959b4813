"""``errata review``: what a patch changed and what it broke, with limits that can refuse it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common, guards
from errata.cli.patches import load_patch
from errata.errors import BadInput
from errata.files import write_text

if TYPE_CHECKING:
    from errata.review.record import Review

KINDS = (".json", ".jsonl", ".html")  # what -o may end in


@guards.limited
def review_command(
    model: common.Model,
    patch: Annotated[Path, typer.Argument(help="A patch.", show_default=False)],
    probes: Annotated[
        str | None,
        typer.Option(help="Cases with the questions to ask.", show_default="made from the edits and the texts"),
    ] = None,
    read: common.Read = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Texts to make questions and canaries of, one on each line.", show_default="the model's own"),
    ] = None,
    prior: Annotated[Path | None, typer.Option(help="The patch that is in force already: `before` is with it.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Edits that are asked about at most.")] = 100,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o", "--output", help="Write the review: .json whole, .html a page, .jsonl its rows; as often as needed."
        ),
    ] = None,
    force: common.Force = False,
    limits: Mapping[str, float | None] = guards.NONE,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Review a patch before it counts: what moved, before and after, and whether limits are kept.

    Ends with exit code 3 where they are not; what -o names is written all the same.
    """
    common.show_logs(quiet)
    outputs = _outputs(output, force)
    subject, earlier = load_patch(patch), load_patch(prior)
    assert subject is not None
    options = common.named_values("--read", read)
    if options and probes is None:
        raise BadInput("--read goes with --probes; name a file of cases, or leave it out")
    cases = None if probes is None else _cases(model, probes, options)
    texts = None if data is None else common.texts_in(data)
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
    import errata

    with common.step(f"reviewing {patch.name}", quiet):
        made = errata.review(
            lm, subject, cases, texts, guards=limits, prior=earlier or errata.EMPTY, limit=limit, seed=seed
        )
    print_review(made, as_json)
    for path in outputs:
        write(made, path)
        common.say(f"wrote {path} ({common.size(path.stat().st_size)})")
    made.check()


def _cases(model: str, name: str, options: dict[str, str]) -> Any:
    import errata
    from errata.world.named import known_to

    return errata.cases(known_to(model, name), **options)  # pyright: ignore[reportArgumentType]


def _outputs(paths: Sequence[Path] | None, force: bool) -> list[Path]:
    for path in paths or ():
        if path.suffix.lower() not in KINDS:
            raise BadInput(f"-o {path}: a review is written as {', '.join(KINDS)}; end the name in one of them")
        common.check_output(path, force)
    return list(dict.fromkeys(paths or ()))


def write(review: "Review", path: Path) -> None:
    """Writes a review, whole or not at all, in the form that the name's end says."""
    from errata.report.rows import to_jsonl
    from errata.review.html import page

    if path.suffix.lower() == ".html":
        write_text(path, page(review))
    elif path.suffix.lower() == ".jsonl":
        write_text(path, to_jsonl(review.rows))
    else:
        review.save(path)


def print_review(review: "Review", as_json: bool) -> None:
    """The summary on stdout, or all of it as JSON."""
    from errata.review.terminal import shown

    if as_json:
        common.print_json(review.to_json())
        return
    console = common.stdout()
    for part in shown(review):
        console.print(part)
