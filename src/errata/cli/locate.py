"""``errata locate``: which layers to edit in a model for which nobody has published any."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common
from errata.errors import BadInput
from errata.files import write_text
from errata.types import Case, Edit

if TYPE_CHECKING:
    from errata.locate.layers import Ranking
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

TRIAL, STATISTICS = "r-rome", "memit"  # edits a fact in one layer; prepares several layers at once
CONTEXTS = 5  # of a trial: as MEMIT has them
LIMIT = 10  # facts, without --limit


def locate(
    lm: "HFLM",
    cases: Sequence[Case],
    data: Sequence[str] | None = None,
    *,
    samples: int = 10,
    seed: int = 0,
    kept_in: Path | None = None,
    quiet: bool = True,
    **settings: Any,
) -> "Ranking":
    """The layers of a model, ranked by tracing and by trial edits (:func:`errata.locate.rank_layers`).

    ``data`` are texts for key statistics, by default what goes with the model. What is found goes into the file
    ``kept_in`` as soon as it is found, and the same call goes on from there; in the end that file is removed. Raises
    :class:`BadInput` where it is of another search.
    """
    from errata.errors import Refused
    from errata.locate.kept import Kept
    from errata.locate.layers import rank_layers

    def track(items: Sequence[Any], what: str) -> Iterator[Any]:
        return common.track(items, what, quiet)

    search: Any = {"samples": samples, "seed": seed}
    kept = Kept() if kept_in is None else Kept.at(kept_in, {**_search(lm, cases, data), **search})
    try:
        with _without_misses():
            ranking = rank_layers(
                lm, cases, _trials(lm, data, seed, quiet), track=track, kept=kept, **search, **settings
            )
    except Refused:
        kept.remove()
        raise
    kept.remove()
    return ranking


def _search(lm: "HFLM", cases: Sequence[Case], data: Sequence[str] | None) -> dict[str, Any]:
    """What decides what is found, but for what is drawn: texts by their digests."""
    from errata.model.fingerprint import versions

    return {
        "model": lm.fingerprint,
        "asked": lm.asked_label,
        "dtype": str(lm.dtype),
        "facts": _digest([asdict(case) for case in cases]),
        "texts": None if data is None else _digest(data),
        "trials": f"{TRIAL} contexts={CONTEXTS}, {STATISTICS}",
        "errata": versions()["errata"],
    }


def _digest(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:12]


def _trials(
    lm: "HFLM", data: Sequence[str] | None, seed: int, quiet: bool
) -> "Callable[[Sequence[int]], Callable[[int, Edit], Patch]]":
    import errata
    from errata.methods.state import State

    def prepare(layers: Sequence[int]) -> "Callable[[int, Edit], Patch]":
        with common.step(f"reading texts for {len(layers)} layers", quiet):
            whole = errata.method(STATISTICS, layers=tuple(layers), seed=seed).prepare(lm, data)
        of_layer: dict[int, State] = {}

        def edit(layer: int, one: Edit) -> "Patch":
            if layer not in of_layer:
                of_layer.clear()  # with the inverse of the layer before
                of_layer[layer] = State(whole.tensors, whole.info)
            trial = errata.method(TRIAL, layers=(layer,), contexts=CONTEXTS, seed=seed)
            return trial.edit(lm, [one], of_layer[layer])

        return edit

    return prepare


@contextmanager
def _without_misses() -> Iterator[None]:
    """Context manager: a trial that fails is counted, not warned of."""
    log = logging.getLogger("errata.methods.outcomes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def locate_command(
    model: common.Model,
    edits: Annotated[
        Path | None, typer.Option(help="Facts to try: one edit as JSON on each line.", show_default=False)
    ] = None,
    cases: Annotated[
        str | None, typer.Option(help="Or cases, with their questions: 'world', a file.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many are looked at.", show_default=str(LIMIT))] = None,
    tried: Annotated[int, typer.Option("--try", min=1, help="Layers in which edits are tried: the best traced.")] = 8,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Layers to choose, side by side.", show_default="as many as --method has by default"),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Whose layers they shall be: how many, where --count does not say.")
    ] = "memit",
    samples: Annotated[int, typer.Option(min=1, help="Draws of noise of a trace.")] = 10,
    data: Annotated[Path | None, typer.Option(help="Texts to prepare with, one on each line.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the layers here, for --settings.", show_default=False)
    ] = None,
    force: common.Force = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    chat: common.Chat = None,
    system: common.System = None,
    trust_remote_code: common.TrustRemoteCode = False,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Find the layers to edit: causal tracing, then trial edits in each layer."""
    if output is not None:
        common.check_output(output, force)
    chosen = common.make_method(method, None)
    default_layers: Any = getattr(chosen, "chosen_layers", None)
    if default_layers is None:
        raise BadInput(f"layers are chosen for methods that solve for weights (memit, r-rome, pmet, …), not {method}")
    asked = _read(model, edits, cases, limit or LIMIT, seed)
    texts = common.data_for(common.make_method(STATISTICS, None), data)
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
    usual = default_layers(lm)
    together = count or len(usual)
    kept_in = None if output is None else Path(f"{output}.part")
    search: Any = {"tried": tried, "together": together, "samples": samples, "seed": seed}
    try:
        ranking = locate(lm, asked, texts, kept_in=kept_in, quiet=quiet, **search)
    except KeyboardInterrupt:
        if kept_in is not None and kept_in.exists():
            common.say(f"what was found so far is kept in {kept_in}; the same command goes on from there")
        raise
    layers = ranking.best(together)
    record = {"layers": list(layers), "found": _found(lm, method, usual, ranking)}
    if output is not None:
        write_text(output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if as_json:
        common.print_json(record)
    else:
        _print(ranking, layers, usual)
    if output is not None:
        common.say(f"wrote {output}; use it: --method {method} --settings {output}")


def _read(model: str, edits: Path | None, cases: str | None, limit: int, seed: int) -> list[Case]:
    from errata.cli.requested import read_edits
    from errata.world.named import known_to

    if (edits is None) == (cases is None):
        raise BadInput("errata locate needs either --edits FILE or --cases NAME, of facts that the model knows")
    if edits is not None:
        read = read_edits(edits)
        if len(read) > limit:
            common.say(f"the first {limit} of {len(read)} edits are looked at; --limit for more")
        return [Case(edit.id, (edit,)) for edit in read[:limit]]
    import errata

    return errata.cases(known_to(model, cases or ""), limit=limit, seed=seed)


def _found(lm: "HFLM", method: str, usual: Sequence[int], ranking: "Ranking") -> dict[str, Any]:
    """How the layers were found, for the file."""
    from errata.locate.found import found_for

    whose = found_for(method, lm.name, lm.fingerprint)
    return {"by": "errata locate", **whose, "default": list(usual), **ranking.to_json()}


def _print(ranking: "Ranking", layers: Sequence[int], usual: Sequence[int]) -> None:
    rows = [
        (
            one.layer,
            f"{100 * one.effect:.1f}" + ("" if one.error is None else f" ± {100 * one.error:.1f}"),
            *(_rate(x) for x in (one.reliability, one.paraphrase, one.kept, one.score)),
            "default" if one.layer in usual else "",
        )
        for one in ranking.layers
    ]
    columns = ("layer", "effect", "took", "paraphrase", "others kept", "score", "")
    title = f"{ranking.edits} trial edits of each layer (generated), {ranking.traced} facts traced (points)"
    console = common.stdout()
    console.print(common.make_table(title, columns, rows, right=columns[:-1]))
    for one in ranking.layers:
        for reason in one.failed:
            console.print(f"layer {one.layer}, not edited: {reason}", soft_wrap=True)
    console.print(f"layers={','.join(map(str, layers))} (by default {','.join(map(str, usual))})", soft_wrap=True)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
