"""``errata eval``: a method, or a patch that anybody made, measured on cases before and after the edit."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from errata.cli import common
from errata.errors import BadInput
from errata.files import write_text
from errata.types import Case, Edit, Mode, Row

if TYPE_CHECKING:
    from errata.evaluation.baseline import Baseline
    from errata.evaluation.evaluate import Judge
    from errata.evaluation.golds import Golds
    from errata.evaluation.nearness import Nearness
    from errata.evaluation.protocols import Protocol
    from errata.methods.base import Method
    from errata.methods.state import State
    from errata.model.hf import HFLM
    from errata.model.lm import LM
    from errata.patch.patch import Patch

log = logging.getLogger(__name__)

Setting = Literal["single", "batch"]
METHOD = "memit"  # where neither a method nor a patch is given
WORLD_LIMIT = 100  # cases of the world by default


def eval_(
    lm: "HFLM",
    subject: "Method | Patch",
    cases: Sequence[Case] | None = None,
    *,
    modes: Sequence[str] | None = None,
    protocol: "str | Protocol" = "errata",
    judge: "Judge | None" = None,
    setting: Setting = "batch",
    prepare_with: Sequence[Any] | None = None,
    quiet: bool = True,
    **labels: Any,
) -> list[Row]:
    """Rows of a method or of a patch on cases, by a protocol, in its own modes unless some are given.

    A patch is measured as it is, by default on its own edits (:func:`errata.evaluation.edits.own_cases`). A method
    edits each case alone (``single``) or all at once (``batch``), and is prepared with ``prepare_with``. A ``judge``
    takes the place of the protocol's match. ``labels`` (data, seed) go into the rows, with the model, the method and
    its settings. Raises :class:`BadInput` for a method without cases.
    """
    from errata.distributed.attach import asking
    from errata.evaluation.baseline import baseline
    from errata.evaluation.edits import own_cases
    from errata.patch.patch import Patch

    if isinstance(subject, Patch):
        subject.check(lm)
        cases = own_cases(lm, subject) if cases is None else cases
        _say_what_it_does_not_hold(subject, cases)
    if cases is None:
        raise BadInput("a method is measured on cases; give some")
    with (
        common.step(f"asking {lm.name} about {len(cases)} case{'s' * (len(cases) != 1)}", quiet),
        asking(lm) as unedited,
    ):
        before = baseline(unedited, cases, modes, protocol=protocol)
    how: Any = {"judge": judge, "model": lm.name, "chat": lm.asked_label, **labels}
    if isinstance(subject, Patch):
        return _eval_patch(lm, subject, cases, before, how, quiet)
    return _eval_method(lm, subject, cases, before, setting, prepare_with, how, quiet)


def _eval_patch(
    lm: "HFLM", patch: "Patch", cases: Sequence[Case], before: "Baseline", how: Any, quiet: bool
) -> list[Row]:
    from errata.distributed.attach import asking
    from errata.evaluation.edits import makers
    from errata.evaluation.evaluate import evaluate
    from errata.evaluation.golds import Golds

    nearness = _nearness(lm, patch.edits, before, Golds())
    with common.step("asking again with the patch", quiet), asking(lm, patch) as edited:
        labels: Any = {"method": makers(patch), "setting": "patch"}
        rows = evaluate(before, edited, cases, after_edits=len(patch.edits), **how, **labels)
        return rows + _to_gold(nearness, edited, patch.edits, {**how, **labels})


def _nearness(lm: "HFLM", edits: Sequence[Edit], before: "Baseline", golds: "Golds") -> "Nearness | None":
    """How far the unedited model is from the gold that came with Errata, where that is of these edits of it."""
    from errata.evaluation.nearness import Nearness

    gold = golds.of(lm, lambda about: about.is_of(edits)) if before.protocol.name == "errata" else None
    return None if gold is None else Nearness.of(gold, lm, before.modes)


def _to_gold(nearness: "Nearness | None", edited: "LM", edits: Sequence[Edit], labels: dict[str, Any]) -> list[Row]:
    """The rows of the edited model against the gold, if it is measured against one."""
    about = {name: value for name, value in labels.items() if name != "judge"}
    return [] if nearness is None else nearness.rows(edited, edits, after_edits=len(edits), **about)


def _say_what_it_does_not_hold(patch: "Patch", cases: Sequence[Case]) -> None:
    held = {(edit.prompt, edit.target_new) for edit in patch.edits}
    foreign = [case for case in cases if not any((edit.prompt, edit.target_new) in held for edit in case.edits)]
    if held and foreign:
        log.warning(
            "the patch holds the edit of %d of the %d cases: of the others this shows what it does besides",
            len(cases) - len(foreign),
            len(cases),
        )


def _eval_method(
    lm: "HFLM",
    method: "Method",
    cases: Sequence[Case],
    before: "Baseline",
    setting: Setting,
    prepare_with: Sequence[Any] | None,
    how: Any,
    quiet: bool,
) -> list[Row]:
    from errata.evaluation.golds import Golds

    with common.step(f"preparing {method.name}", quiet):
        state = method.prepare(lm, prepare_with)
    labels: Any = {**how, "method": method.name, "settings": _settings(method), "setting": setting}
    if setting == "single" and lm.workers is not None:
        from errata.model.workers import in_shares

        with common.step("editing and asking again", quiet):
            shares = in_shares(lm, _alone, list(enumerate(cases)), method, state, before, labels)
        return [row for _, rows in sorted(pair for share in shares for pair in share) for row in rows]
    batches = [[case] for case in cases] if setting == "single" else [list(cases)]
    tracked, golds = common.track(batches, "editing and asking again", quiet), Golds()
    return [row for batch in tracked for row in _edited_rows(lm, batch, method, state, before, labels, golds)]


def _alone(
    lm: "HFLM", cases: Sequence[tuple[int, Case]], method: "Method", state: "State", before: "Baseline", labels: Any
) -> list[tuple[int, list[Row]]]:
    """In a worker: the rows of numbered cases, each edited alone."""
    from errata.evaluation.golds import Golds

    golds = Golds()
    return [(number, _edited_rows(lm, [case], method, state, before, labels, golds)) for number, case in cases]


def _edited_rows(
    lm: "HFLM",
    cases: Sequence[Case],
    method: "Method",
    state: "State",
    before: "Baseline",
    labels: dict[str, Any],
    golds: "Golds",
) -> list[Row]:
    """The rows of cases that are edited together."""
    from errata.distributed.attach import asking
    from errata.evaluation.evaluate import evaluate

    edits = [edit for case in cases for edit in case.edits]
    nearness = _nearness(lm, edits, before, golds)
    patch = method.edit(lm, edits, state)
    with asking(lm, patch) as edited:
        return evaluate(before, edited, cases, **labels) + _to_gold(nearness, edited, edits, labels)


def _settings(method: "Method") -> str:
    """The settings that differ from the defaults."""
    usual = type(method)().settings
    return " ".join(f"{name}={value}" for name, value in method.settings.items() if value != usual[name])


def _rules(name: str, mode: Mode | None, shots: Path | None) -> "Protocol":
    """The protocol, with demonstrations before its questions; a mode that it does not know is refused."""
    from errata.evaluation.baseline import modes_of
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


def _read_cases(name: str, limit: int | None, seed: int, setting: str | None, options: dict[str, str]) -> list[Case]:
    import errata
    from errata.world.named import PARAGRAPHS, world_named

    of_world = name == PARAGRAPHS or world_named(name) is not None
    alone = {"conflicts": "true"} if setting == "single" and not of_world else {}  # they never meet in one model
    limit = WORLD_LIMIT if limit is None and of_world else limit
    return errata.cases(name, limit=limit, seed=seed, **(alone | options))


def eval_command(
    model: common.Model,
    cases: Annotated[
        str | None,
        typer.Option(
            help="'world', a file of cases, or a hub id.", show_default="the model's world; of a patch, its own edits"
        ),
    ] = None,
    read: common.Read = None,
    method: Annotated[
        str | None, typer.Option("--method", help="See `errata methods`.", show_default="memit; none with --patch")
    ] = None,
    set_: common.Settings = None,
    settings: common.SettingsFile = None,
    patch: Annotated[
        Path | None,
        typer.Option(help="Measure this patch, whoever made it, in the place of a method.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="How many cases.", show_default="100 of the world, all of others")
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
    setting: Annotated[
        Setting | None, typer.Option(help="Each edit of a method alone, or all at once.", show_default="batch")
    ] = None,
    data: common.Data = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the rows here, as JSON lines.")] = None,
    force: common.Force = False,
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
    """Measure a method, or a patch: reliability, generality, locality; before and after."""
    from errata.evaluation.edits import own_cases
    from errata.patch.patch import Patch
    from errata.report.folds import published, summary
    from errata.report.rows import to_jsonl
    from errata.report.tables import published_table, table
    from errata.world.named import known_to

    if output is not None:
        common.check_output(output, force)
    common.check_workers(workers, threads, ray_address)
    given = {"--method": method, "--set": set_, "--settings": settings, "--setting": setting, "--data": data}
    if patch is not None and (extra := [option for option, value in given.items() if value]):
        raise BadInput(f"--patch and {extra[0]} were given; a patch is measured as it is, so leave out one of them")
    common.show_logs(quiet)
    subject = common.make_method(method or METHOD, set_, seed, settings) if patch is None else Patch.load(patch)
    rules = _rules(protocol, mode, shots)
    judging = _judge(judge, judge_model, rules, mode)
    options = common.named_values("--read", read)
    name = cases if cases is not None or patch is not None else "world"
    if name is None and options:
        raise BadInput("--read goes with --cases; name a file of cases, or leave it out")
    measured_on = None if name is None else _read_cases(known_to(model, name), limit, seed, setting, options)
    given = None if isinstance(subject, Patch) else common.data_for(subject, data)
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
    if not isinstance(subject, Patch):
        common.check_settings_file(settings, subject, lm.name, lm.fingerprint)
    elif measured_on is None:
        measured_on = own_cases(lm, subject, seed)[:limit]
    label = " ".join([name or "its own edits", *(f"{key}={value}" for key, value in options.items())])
    how: Any = {"modes": None if mode is None else (mode,), "protocol": rules, "judge": judging, "prepare_with": given}
    how |= {"setting": setting or "batch", "quiet": quiet, "data": label, "seed": seed}
    with common.attached(lm, workers, threads, ray_address):
        rows = eval_(lm, subject, measured_on, **how)
    if as_json:
        common.print_json([asdict(line) for line in (published(rows) if rules.lines else summary(rows))])
    else:
        common.stdout().print(table(rows))
        if rules.lines:
            common.stdout().print(published_table(rows))
        if lm.resources.texts is not None:
            common.stdout().print(common.PREPARED)
    if output is not None:  # last: what was measured is shown, also where the disk is full by now
        write_text(output, to_jsonl(rows))
        common.say(f"wrote {output} ({len(rows)} rows)")
