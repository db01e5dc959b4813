"""``errata plan``: what an edit will take, before anything starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common
from errata.errors import BadInput, Refused

if TYPE_CHECKING:
    from errata.cost.plan import Plan
    from errata.model.size import Step


def plan_command(
    model: common.Model,
    method: common.MethodName = "memit",
    set_: common.Settings = None,
    settings: common.SettingsFile = None,
    edits: Annotated[str, typer.Option(metavar="N or FILE", help="How many, or the file of them.")] = "1",
    texts: Annotated[
        int | None, typer.Option(min=1, help="Tokens to prepare with.", show_default="what the method takes")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Tokens in a batch.", show_default="4096")] = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
    chat: common.Chat = None,
    system: common.System = None,
    trust_remote_code: common.TrustRemoteCode = False,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Say what an edit will take, and whether it fits: only the model's configuration is read.

    Ends with exit code 3 where it does not fit.
    """
    from errata.cli.requested import read_edits

    number = edits.isascii() and edits.isdigit()
    if not number and not Path(edits).exists():
        raise BadInput(f"--edits is a number of edits (100) or a file of them; found {edits!r}, which is neither")
    asked = int(edits) if number else read_edits(Path(edits))
    chosen: Any = common.make_method(method, set_, file=settings)
    common.set_up_logs(quiet)
    import errata

    about: Any = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    made = errata.plan(model, chosen, edits=asked, texts=texts, budget=budget, chat=chat, system=system, **about)
    common.check_settings_file(settings, chosen, made.model)
    if as_json:
        common.print_json(made.to_json())
    else:
        _print(made)
    if not made.fits:
        raise typer.Exit(Refused.exit_code)


def _print(made: "Plan") -> None:
    console = common.stdout()
    layers = "" if made.layers is None else f", layers {', '.join(map(str, made.layers))}"
    console.print(
        f"{made.model}: {made.parameters:,} parameters in {made.dtype} on {made.device}, {common.size(made.weights)}; "
        f"{made.method}, {made.edits:,} edit{'s' * (made.edits != 1)}{layers}, {made.budget:,} tokens in a batch",
        soft_wrap=True,
    )
    columns = ["step", "operations", "main memory", "disk", "time", ""]
    if not made.on_host:
        columns.insert(2, made.device)
    rows = [_row(made, step) for step in made.steps]
    console.print(common.make_table("", columns, rows, right=columns[1:-1]))
    if made.rates is not None:
        rates = made.rates
        console.print(
            f"at {rates.model / 1e9:,.0f} GFLOP/s in {made.dtype}, {rates.float32 / 1e9:,.0f} in float32, "
            f"{rates.float64 / 1e9:,.0f} in float64 on the host, {rates.copied / 1e9:,.1f} GB/s copied; measured now",
            soft_wrap=True,
        )
    for place, free, peak in (("main memory", made.free_host, made.peak_host), *_device(made)):
        known = "not known" if free is None else common.size(free)
        console.print(f"{place}: at most {common.size(round(peak))} at a time; free: {known}", soft_wrap=True)
    for line in made.warnings:
        console.print(f"does not fit: {line}" if "needed" in line else line, style="red", soft_wrap=True)


def _device(made: "Plan") -> list[tuple[str, int | None, float]]:
    return [] if made.on_host else [(made.device, made.free_device, made.peak_device)]


def _row(made: "Plan", step: "Step") -> list[Any]:
    flop = "not counted" if step.flop is None else f"{sum(step.flop.values()):.1e}"
    taken = made.seconds(step)
    memory = [common.size(round(made.host_bytes(step)))]
    if not made.on_host:
        memory.insert(0, common.size(round(made.device_bytes(step))))
    disk = common.size(round(step.disk)) if step.disk else ""
    return [f"{step.verb}: {step.name}", flop, *memory, disk, "-" if taken is None else _time(taken), step.note]


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
