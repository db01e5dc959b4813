"""``errata eval``: how well a method does on cases, asked before and after."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from errata.cli import common, tasks
from errata.cli.edit import load_patch
from errata.errors import BadInput
from errata.files import write_text
from errata.types import Case, Mode, Row

if TYPE_CHECKING:
    from errata.evaluation.evaluate import Judge
    from errata.evaluation.protocols import Protocol
    from errata.methods.base import Method
    from errata.model.hf import HFLM

Setting = Literal["single", "batch"]


def eval_(
    lm: "HFLM",
    method: "Method",
    cases: Sequence[Case],
    *,
    modes: Sequence[str] | None = None,
    protocol: "str | Protocol" = "errata",
    judge: "Judge | None" = None,
    setting: Setting = "batch",
    texts: Sequence[str] | None = None,
    quiet: bool = True,
    **labels: Any,
) -> list[Row]:
    """Rows of a method on cases: each ``single`` edit alone, or all of them at once (``batch``).

    Asked and scored by a ``protocol``, in its own modes unless some are given; a ``judge`` takes the place of its
    match. ``labels`` (data, seed) go into the rows, with the model, the method and its settings.
    """
    import errata

    with common.step(f"asking {lm.name} about {len(cases)} cases", quiet):
        before = errata.baseline(lm, cases, modes, protocol=protocol)
    with common.step(f"preparing {method.name}", quiet):
        state = method.prepare(lm, texts)
    labels |= {"model": lm.name, "method": method.name, "settings": _settings(method), "setting": setting}
    batches = [[case] for case in cases] if setting == "single" else [list(cases)]
    rows: list[Row] = []
    for batch in common.track(batches, "editing and asking again", quiet):
        patch = method.edit(lm, [edit for case in batch for edit in case.edits], state)
        with patch.applied(lm) as edited:
            rows += errata.evaluate(before, edited, batch, judge=judge, **labels)
    return rows


def _settings(method: "Method") -> str:
    """The settings that differ from the defaults."""
    usual = type(method)().settings
    return " ".join(f"{name}={value}" for name, value in method.settings.items() if value != usual[name])


def _rules(name: str, mode: Mode | None, shots: Path | None) -> "Protocol":
    """The protocol, with demonstrations before its questions; a mode that it does not know is refused."""
    from errata.evaluation.evaluate import modes_of
    from errata.evaluation.protocols import protocol

    rules = protocol(name)
    modes_of(rules, None if mode is None else (mode,))
    if shots is None:
        return rules
    return replace(rules, question=f"{common.read_text(shots, 'shots').rstrip()}\n{rules.question}")


def _judge(url: str | None, model: str | None, rules: "Protocol", mode: Mode | None) -> "Judge | None":
    """The judge, if one is named and answers."""
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise BadInput("a judge needs both --judge URL and --judge-model NAME")
    if mode == "forced" or rules.modes == ("forced",):
        raise BadInput("a judge reads generated answers, and here they are fed; leave out --judge")
    from errata.evaluation.judge import Judge
    from errata.files import cache_folder

    made = Judge(url, model, cache=cache_folder() / "verdicts.sqlite")
    made.check()
    return made


def eval_command(
    model: common.Model,
    cases: Annotated[str, typer.Option(help="'world', a file of cases, or a hub id.")] = "world",
    read: common.Read = None,
    method: common.MethodName = "memit",
    set_: common.Settings = None,
    limit: Annotated[
        int | None, typer.Option(help="How many cases.", show_default="100 of the world, all of a file")
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="The model answers by itself, or is fed the answer.", show_default="the protocol's: generated in ours"
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="By whose rules: errata, rome, zsre, easyedit, mquake, rippleedits, wild, belief …")
    ] = "errata",
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let a language model say what is right: an address that speaks OpenAI's chat completions; "
            "its key is read from OPENAI_API_KEY.",
            show_default="the protocol's match",
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model.", show_default=False)] = None,
    shots: Annotated[
        Path | None,
        typer.Option(help="A text that is put before each question (MQuAKE's demonstrations).", show_default=False),
    ] = None,
    setting: Annotated[Setting, typer.Option(help="Each edit alone, or all at once.")] = "batch",
    data: common.Data = None,
    task_names: tasks.Names = None,
    task_folder: tasks.Folder = None,
    task_limit: tasks.Limit = None,
    patch: tasks.PatchFile = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the rows here, as JSON lines.")] = None,
    force: common.Force = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Measure a method: reliability, generality, locality; or tasks of lm-evaluation-harness. Before and after."""
    import errata
    from errata.report.rows import published, summary, to_jsonl
    from errata.report.tables import published_table, table

    if output is not None:
        common.check_output(output, force)
    chosen = common.make_method(method, set_, seed)
    rules = _rules(protocol, mode, shots)
    judging = _judge(judge, judge_model, rules, mode)
    common.hear(quiet)
    options = common.named("--read", read)
    alone = {"conflicts": "true"} if setting == "single" and cases != "world" else {}  # they never meet in one model
    limit = 100 if limit is None and cases == "world" else limit
    wanted = errata.cases(cases, limit=limit, seed=seed, **(alone | options))
    cases = " ".join([cases, *(f"{name}={value}" for name, value in options.items())])
    texts = common.texts_for(chosen, data)
    asked = tasks.found(task_names, task_folder, task_limit, patch)
    held = load_patch(patch)
    lm = common.load_model(model, device, dtype, quiet)
    if asked is not None:
        held = tasks.made(lm, chosen, wanted, texts, quiet) if held is None else held
        rows, by = tasks.ask(lm, held, asked, task_limit, quiet, seed), ("label",)
    else:
        how: Any = {"modes": None if mode is None else (mode,), "protocol": rules, "judge": judging, "setting": setting}
        rows, by = eval_(lm, chosen, wanted, **how, texts=texts, quiet=quiet, data=cases, seed=seed), ()
    if output is not None:
        write_text(output, to_jsonl(rows))
    if as_json:
        found = published(rows) if rules.lines and asked is None else summary(rows, by)
        common.say_json([asdict(line) for line in found])
    else:
        common.stdout().print(table(rows, by))
        if rules.lines and asked is None:
            common.stdout().print(published_table(rows))
        if lm.resources.texts is not None:
            common.stdout().print(common.PREPARED)
    if output is not None:
        typer.echo(f"wrote {output} ({len(rows)} rows)", err=True)
