"""``errata export`` and ``errata import``: a patch as others read it, and what others made as a patch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata import inputs
from errata.cli import common
from errata.errors import BadInput, unknown
from errata.files import check_folder

if TYPE_CHECKING:
    from errata.exchange.export import Exported
    from errata.patch.patch import Patch

FORMS = {"peft": "adapter_config.json", "merged": "config.json", "patch": "patch.safetensors"}  # and what each has
ROWS = 20

Force = Annotated[bool, typer.Option("--force", help="Replace an earlier export.")]


def export_command(
    model: common.Model,
    patch: Annotated[Path, typer.Argument(help="A patch.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="peft (a LoRA adapter), merged (the whole model), or patch (the file with a card).")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.", show_default=False)],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of an adapter: cut changes to this rank.", show_default="exact")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Of a merged model: the largest file.")] = "5GB",
    memory: Annotated[bool, typer.Option(help="Of a patch: keep what only further edits need.")] = True,
    licence: Annotated[str, typer.Option("--license", metavar="ID", help="For the card: apache-2.0, say.")] = "unknown",
    base: Annotated[
        str | None, typer.Option("--base-model", metavar="ID", help="For the card: its hub id.", show_default="MODEL")
    ] = None,
    review: Annotated[Path | None, typer.Option(help="For the card: a review's JSON.", show_default=False)] = None,
    force: Force = False,
    device: common.Device = None,
    dtype: Annotated[str | None, typer.Option(help="Of a merged model.", show_default="as the model is saved")] = None,
    trust_remote_code: common.TrustRemoteCode = False,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Write a patch as a LoRA adapter, as a whole model, or as a folder for a hub, each with its card."""
    if to not in FORMS:
        raise unknown("form", to, list(FORMS))
    if rank is not None and to != "peft":
        raise BadInput(f"--rank is of adapters (--to peft), and {to} keeps every change whole; leave it out")
    check_folder(output, replace=FORMS[to] if force else None)
    loaded = load(patch)
    about: dict[str, Any] = {"licence": licence, "review": review_of(review)}
    about |= {} if base is None else {"base": base}
    if to == "patch":
        from errata.exchange import to_folder

        exported = to_folder(loaded, output, memory=memory, force=force, **({"base": model} | about))
    else:
        exported = _of_model(model, loaded, to, output, rank, shard_size, force, about, device, dtype,
                             trust_remote_code, quiet)  # fmt: skip
    _say(exported, as_json)


def _of_model(
    model: str,
    patch: "Patch",
    to: str,
    output: Path,
    rank: int | None,
    shard_size: str,
    force: bool,
    about: dict[str, Any],
    device: str | None,
    dtype: str | None,
    trust_remote_code: bool,
    quiet: bool,
) -> "Exported":
    """Writes a form of which the model is needed."""
    from errata.exchange import to_merged, to_peft
    from errata.world.bundled import saved_dtype

    common.set_up_logs(quiet)
    kept = dtype or saved_dtype(model, trust_remote_code=trust_remote_code)
    lm = common.load_model(model, device, kept, quiet, trust_remote_code)
    with common.step(f"writing {output}", quiet):
        if to == "peft":
            return to_peft(lm, patch, output, rank=rank, force=force, **about)
        return to_merged(lm, patch, output, shard_size=shard_size, force=force, **about)


def load(path: Path) -> "Patch":
    """The patch in a file."""
    from errata.patch.patch import Patch

    return Patch.load(path)


def review_of(path: Path | None) -> Mapping[str, Any] | None:
    """The review in a file of JSON. Raises :class:`BadInput` for what is no object."""
    if path is None:
        return None
    try:
        review = inputs.parsed(common.read_text(path, "review"))
    except BadInput as error:
        raise BadInput(f"{path}: {error}; --review wants a review's JSON") from error
    if not isinstance(review, dict):
        raise BadInput(f"{path} holds a {type(review).__name__}; --review wants a review's JSON, an object")
    return review


def _say(exported: "Exported", as_json: bool) -> None:
    if as_json:
        common.print_json(exported.to_json())
        return
    sizes = [(name, common.size((exported.folder / name).stat().st_size)) for name in exported.files]
    common.stdout().print(common.make_table(f"{exported.folder}", ("file", "size"), sizes, right=("size",)))
    for note in exported.notes[:ROWS]:
        common.say(note)
    if exported.rounded:
        common.say("export in more precision (--dtype float32), or keep the patch, which loses nothing")


# errata import -----------------------------------------------------------------------------------


def import_command(
    base: Annotated[str, typer.Argument(help="The base model: 'world', a folder, or a hub id.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The patch to write.", show_default=False)],
    peft: Annotated[
        Path | None, typer.Option("--peft", metavar="FOLDER", help="A LoRA adapter.", show_default=False)
    ] = None,
    edited: Annotated[
        str | None, typer.Option("--edited", metavar="FOLDER", help="Another checkpoint.", show_default=False)
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Of a checkpoint: keep its rounding, in full size.")] = False,
    force: common.Force = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Make a patch of a LoRA adapter, or of the difference between two checkpoints."""
    if (peft is None) == (edited is None):
        raise BadInput("errata import needs either --peft FOLDER (a LoRA adapter) or --edited FOLDER (a checkpoint)")
    if exact and edited is None:
        raise BadInput("--exact is of checkpoints (--edited); an adapter is always read exactly")
    common.check_output(output, force)
    from errata.exchange import from_checkpoints, from_peft

    lm = common.load_model(base, device, dtype, quiet, trust_remote_code)
    with common.step(f"reading {peft or edited}", quiet):
        how: Any = {"exact": exact, "trust_remote_code": trust_remote_code}
        patch = from_peft(lm, peft) if peft is not None else from_checkpoints(lm, str(edited), **how)
    if not patch:
        raise BadInput(f"{edited} differs from {base} in no weight, so there is no patch; nothing was written")
    patch.save(output)
    if as_json:
        common.print_json({"file": str(output), "parts": patch.summary(), "imported": patch.meta["imported"]})
        return
    records = patch.summary()
    rows = [[r["site"], " x ".join(map(str, r["shape"])), r["rank"], r["norm"]] for r in records[:ROWS]]
    more = f" (the first {ROWS} of {len(records)})" if len(records) > ROWS else ""
    columns = ("weight", "shape", "rank", "norm")
    common.stdout().print(common.make_table(f"weights that change{more}", columns, rows, right=columns[2:]))
    common.say(f"wrote {output} ({common.size(output.stat().st_size)})")
