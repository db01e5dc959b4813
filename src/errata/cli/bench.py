"""``errata bench`` and ``errata report``: many runs from one file, and tables and curves of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from errata.cli import common
from errata.errors import BadInput
from errata.files import write_bytes, write_text
from errata.inputs import read_text
from errata.types import Row

if TYPE_CHECKING:
    from errata.bench.plan import Plan
    from errata.bench.progress import OnProgress

PICTURES = (".png", ".svg", ".pdf")


def bench(
    plan: "str | Path | Plan",
    output: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    chat: bool | None = None,
    system: str | None = None,
    retry: bool = False,
    workers: int = 0,
    threads: int = 1,
    ray_address: str | None = None,
    quiet: bool = True,
) -> int:
    """Measures what a plan, or a TOML file of one, crosses and ``output`` lacks; returns the number of units measured.

    Code that comes with a model runs with ``trust_remote_code`` alone: a file of models never says so itself. With
    ``workers`` as many processes measure, with ``threads`` each: here, or in the Ray cluster at ``ray_address``.
    """
    import errata
    from errata.bench.plan import Plan
    from errata.bench.run import run
    from errata.world import bundled

    about_chat: Any = {"chat": chat, "system": system}
    chosen = plan if isinstance(plan, Plan) else Plan.read(plan, every=list(errata.methods()))

    load = partial(errata.load, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **about_chat)
    with (
        common.worker_pool(workers, threads, ray_address, device) as pool,
        _progress_bar(quiet) as on_progress,
    ):
        check = partial(bundled.check, trust_remote_code=trust_remote_code)
        asked = partial(bundled.asked_label, trust_remote_code=trust_remote_code, **about_chat)
        made = {"load": load, "method": errata.method, "cases": errata.cases, "check": check, "asked": asked}
        return run(chosen, output, **made, on_progress=on_progress, retry=retry, workers=pool)


@contextmanager
def _progress_bar(quiet: bool) -> Iterator["OnProgress"]:
    """Context manager: a bar on the terminal over the cases that are left; yields what updates it."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = common.stderr(quiet)
    bar = Progress(
        *columns,
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def paper_plan(
    protocol: str, models: Sequence[str], data: Sequence[str], limit: int | None = None, train: Sequence[str] = ()
) -> "Plan":
    """The plan of a paper's settings on these models; ``data`` are texts as ``counterfact=FILE``, and so are those of
    ``train``: what methods are trained on for that data."""
    from errata.bench.plan import Plan
    from errata.bench.recipes import filled

    files, plain = _by_role("data", data)
    given: Any = plain or {role: {"name": file} for role, file in files.items()}
    trained_on, all_of_them = _by_role("train", train)
    for role, file in trained_on.items():
        if role not in files:
            raise BadInput(f"--train {role}={file} goes with --data {role}=FILE; found {' '.join(data) or 'none'}")
        given[role]["train"] = file
    more = {"train": all_of_them} if all_of_them else {}
    return Plan.of(filled(protocol, {"models": list(models), "data": given, **more}, limit))


def _by_role(option: str, entries: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """Files by the role that is typed before them; or the only file, without one. Raises :class:`BadInput`."""
    files = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    plain = [entry for entry in entries if "=" not in entry]
    if len(files) + len(plain) < len(entries) or (plain and len(entries) > 1):
        raise BadInput(f"each file of {option} has a name of its own, as counterfact=FILE; found {' '.join(entries)}")
    return files, plain[0] if plain else None


def _plan(file: Path | None, protocol: str | None, **options: Any) -> "Path | Plan":
    """What to measure: a file's plan, or a paper's, with the options of :func:`paper_plan`."""
    if protocol is not None and file is None:
        return paper_plan(protocol, **options)
    if file is None:
        raise BadInput("nothing to measure: name a TOML file, or --protocol with --model and --data")
    if protocol is not None or any(options.values()):
        raise BadInput(
            f"--protocol, --model, --data, --train and --limit go without a file; write protocol, models, data and "
            f"train in {file}"
        )
    return file


def bench_command(
    plan: Annotated[
        Path | None, typer.Argument(help="A TOML file: models, methods, data, settings.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="A paper's settings in the place of a file: yao2023, memit2023, …"),
    ] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="The model, with --protocol; repeatable.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="With --protocol: counterfact=FILE; repeatable.")
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option("--train", help="With --protocol: counterfact=FILE, what methods are trained on; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="With --protocol: try it on so many cases of each data set.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the rows go; the same command resumes.")] = Path(
        "rows.jsonl"
    ),
    retry: Annotated[bool, typer.Option("--retry", help="Do again what ended with an error.")] = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    workers: common.Workers = 0,
    threads: common.Threads = 1,
    ray_address: common.RayAddress = None,
    quiet: common.Quiet = False,
) -> None:
    """Measure methods on data in settings. Interrupted, the same command resumes."""
    if output.suffix == ".toml":
        raise BadInput(f"the rows would go to {output}, a TOML file; name another file with -o")
    common.check_output(output, force=True)
    common.set_up_logs(quiet)
    about: Any = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    about |= {"chat": chat, "system": system}
    about |= {"workers": workers, "threads": threads, "ray_address": ray_address}
    of_paper: Any = {"models": model or (), "data": data or (), "limit": limit, "train": train or ()}
    chosen = _plan(plan, protocol, **of_paper)
    done = bench(chosen, output, **about, retry=retry, quiet=quiet)
    outcome = f"wrote {output}: {done} units more" if done else f"{output} holds all of it already"
    common.say(f"{outcome}; see `errata report {output}`")


def report(path: str | Path, form: str = ".md", picture: str = "", intro: str = "") -> str:
    """The tables of a file of rows, as markdown or (``form=".html"``) as a page of HTML with pictures of its own.

    ``picture`` is the path of a file that a page of markdown shows, ``intro`` markdown that it begins with, in the
    place of its title.
    """
    from errata.report.html import page
    from errata.report.markdown import markdown

    rows = _rows(Path(path))
    note = common.PREPARED[1:-1] if any(row.model == "world" for row in rows) else ""
    return page(rows, note=note) if form == ".html" else markdown(rows, note=note, picture=picture, intro=intro)


def _rows(path: Path) -> list[Row]:
    from errata.report.rows import read_rows

    if not (rows := read_rows(path)):
        raise BadInput(f"{path} holds no rows; make some with errata bench or errata eval")
    return rows


def _picture(rows: Path, page: Path, force: bool) -> str:
    """The name of a file of the curves, as SVG beside a page of markdown; "" without curves."""
    from errata.report.pictures import svg

    beside = page.with_suffix(".svg")
    try:
        drawn = svg(_rows(rows))
    except BadInput as error:  # no matplotlib
        common.say(f"no picture: {error}")
        return ""
    if not drawn:
        return ""
    common.check_output(beside, force)
    write_text(beside, drawn)
    return beside.name


def report_command(
    rows: Annotated[Path, typer.Argument(help="What bench or eval wrote.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A page (.md, .html), or the curves of sequences (.png, .svg, .pdf)."),
    ] = None,
    intro: Annotated[
        Path | None,
        typer.Option("--intro", help="A file of Markdown that a page (.md) begins with, in the place of its title."),
    ] = None,
    force: common.Force = False,
) -> None:
    """Show what was measured: tables for each setting, and curves over a sequence."""
    form = ".md" if output is None else output.suffix.lower()
    if intro is not None and form != ".md":
        raise BadInput(
            f"--intro goes with a page of Markdown, and {output} is none; end its name in .md, or leave it out"
        )
    begin = "" if intro is None else read_text(intro, "--intro")
    if output is None:
        typer.echo(report(rows, intro=begin), nl=False)
        return
    if form not in (".md", ".html", *PICTURES):
        raise BadInput(f"cannot tell what to make of {output}; end its name in .md, .html, {', '.join(PICTURES)}")
    common.check_output(output, force)
    if form in PICTURES:
        from errata.report.pictures import curves

        drawn = BytesIO()
        curves(_rows(rows), drawn, form=form[1:])
        write_bytes(output, drawn.getvalue())
    else:
        picture = _picture(rows, output, force) if form == ".md" else ""
        write_text(output, report(rows, form, picture, begin))
    common.say(f"wrote {output}")
