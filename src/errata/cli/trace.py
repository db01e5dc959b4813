"""``errata trace``: which hidden states decide an answer, as a map on the terminal and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from errata.cli import common
from errata.cli.maps import check_picture, picture, print_maps
from errata.errors import BadInput
from errata.files import write_bytes
from errata.inputs import parsed
from errata.printable import printable
from errata.subjects import template_of

if TYPE_CHECKING:
    from errata.locate import Average, Trace
    from errata.model.hf import HFLM

FACTS = 100  # traced at most, without --limit


class Fact(NamedTuple):
    """A true fact: the attribute answers the prompt about the subject, which stands in the place of ``{}``."""

    template: str
    subject: str
    attribute: str

    @property
    def prompt(self) -> str:
        """The template, filled with the subject."""
        return self.template.replace("{}", self.subject)


# Facts -------------------------------------------------------------------------------------------


def read_facts(name: str, limit: int | None = None, seed: int = 0) -> list[Fact]:
    """The first facts of a file like ROME's known_facts.json, or the true facts of cases (of a world, or of a file).

    Raises :class:`BadInput`.
    """
    from errata.world.named import world_named

    if limit is not None and limit < 1:
        raise BadInput(f"--limit must be at least 1, found {limit}")
    of_world = world_named(name) is not None
    facts = _of_cases(name, limit or FACTS, seed) if of_world else _of_file(Path(name), seed)
    if not facts:
        raise BadInput(f"{name} holds no fact; expected records with prompt, subject and attribute, or cases")
    if limit is not None and limit > len(facts):
        raise BadInput(f"{limit} facts were asked for; {name} holds {len(facts)}: give a limit up to {len(facts)}")
    return facts[: limit or FACTS]


def _of_file(path: Path, seed: int) -> list[Fact]:
    text = common.read_text(path, "facts")
    try:
        records: Any = parsed(text)
    except BadInput:
        records = None  # JSON lines, or broken: reading them as cases names the line
    first = records[0] if isinstance(records, list) and records else None
    if not (isinstance(first, dict) and "attribute" in first):
        return _of_cases(str(path), None, seed)
    return [_fact(record, f"{path}, record {number}") for number, record in enumerate(cast("list[Any]", records), 1)]


def _fact(record: Any, where: str) -> Fact:
    from errata.locate.tracing import filled_prompt

    values = [record.get(key) if isinstance(record, dict) else None for key in ("prompt", "subject", "attribute")]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise BadInput(f"{where}: a fact is a JSON object whose prompt, subject and attribute are texts")
    prompt, subject, attribute = cast("list[str]", values)
    try:
        prompt, subject, at = filled_prompt(prompt, subject)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    return Fact(template_of(prompt, subject, at), subject, attribute)


def _of_cases(name: str, limit: int | None, seed: int) -> list[Fact]:
    import errata

    cases = errata.cases(name, limit=limit, seed=seed)
    edits = [edit for case in cases for edit in case.edits]
    return [Fact(edit.template, edit.subject, edit.target_true) for edit in edits if edit.target_true]


def trace_facts(
    lm: "HFLM", facts: Sequence[Fact], *, quiet: bool = True, **settings: Any
) -> tuple[list["Trace"], list[Fact]]:
    """The traces of the facts that the model knows, and the other facts.

    A fact is known if each token of the attribute is the arg-max. The noise is relative to the standard deviation of
    the embeddings of all known facts' subjects, as in ROME. Raises :class:`BadInput` where none is known.
    """
    from errata.locate import embedding_std, trace

    scores = lm.score([fact.prompt for fact in facts], [fact.attribute for fact in facts])
    known = [fact for fact, score in zip(facts, scores, strict=True) if score.correct]
    unknown = [fact for fact, score in zip(facts, scores, strict=True) if not score.correct]
    if not known:
        raise BadInput(f"{lm.name} knows none of the {len(facts)} facts, so there is nothing to trace; give others")
    std = embedding_std(lm, [(fact.template, fact.subject) for fact in known])
    traces = [trace(lm, *fact, std=std, **settings) for fact in common.track(known, "tracing", quiet)]
    return traces, unknown


# errata trace ------------------------------------------------------------------------------------


def trace_command(
    model: common.Model,
    prompt: Annotated[
        str | None, typer.Argument(help="A question about the subject; {} stands for it.", show_default=False)
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Whom it is about, as it stands in the prompt.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The answer to follow; by default the model's own.", show_default=False)
    ] = None,
    facts: Annotated[
        str | None,
        typer.Option(
            help="The average over many: 'world' (the model's own), a file of cases, or one like ROME's "
            "known_facts.json. Those that the model does not know are left out and counted.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="How many facts are looked at.", show_default=f"the first {FACTS}")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="hidden, mlp or attention, as often as needed.", show_default="all three"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Draws of noise, whose mean counts.")] = 10,
    noise: Annotated[
        float, typer.Option(help="In standard deviations of the embeddings of the subject, or of all facts' subjects.")
    ] = 3.0,
    window: Annotated[
        int | None,
        typer.Option(
            help="Layers restored together for mlp and attention.", show_default="a fifth of the depth, at least 1"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a picture here (png, pdf or svg).", show_default=False)
    ] = None,
    force: common.Force = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Find the states that decide an answer: causal tracing, of one fact or on average."""
    _check_words(prompt, subject, target, facts, limit)
    if output is not None:
        check_picture(output, force)
    from errata.locate import KINDS, average, trace, tracing
    from errata.world.named import known_to

    kinds = tracing.checked_kinds(kind or tuple(KINDS), samples, noise, window)
    settings: dict[str, Any] = {"kinds": kinds, "samples": samples, "noise": noise, "window": window, "seed": seed}
    if facts is not None:
        chosen = read_facts(known_to(model, facts), limit, seed)
        lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
        traces, unknown = trace_facts(lm, chosen, quiet=quiet, **settings)
        result, one = average(traces), traces[0]
        record = {**result.to_json(), "unknown": len(unknown), "window": one.window, "sigma": one.sigma}
        of = f"the average over {result.facts} known facts ({len(unknown)} of {len(chosen)} not known)"
        title = f"{printable(lm.name)}: {of}"
        labels, closing = _roles(result), ["", *_largest(result)]
    else:
        filled, *_ = tracing.filled_prompt(prompt or "", subject or "")
        lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
        with common.step("tracing", quiet):
            result = one = trace(lm, prompt or "", subject or "", target, **settings)
        record, title, labels = result.to_json(), printable(f"{filled} → {result.answer.strip()}"), _tokens(result)
        closing = []
    tables = {f"{name}: {_about(name, one)}": table.tolist() for name, table in result.effects.items()}
    noise_text = f"noise of σ = {one.sigma:.3g}, {one.samples} draws"
    title = f"{title}\nclean {result.clean:.1%}, corrupted {result.corrupted:.1%} ({noise_text})"
    if output is not None:
        write_bytes(output, picture(title, labels, tables, output.suffix.lower()))
    if as_json:
        common.print_json(record)
    else:
        print_maps(title, labels, tables)
        for line in closing:
            common.stdout().print(line, soft_wrap=True)
    if output is not None:
        common.say(f"wrote {output}")


def _check_words(
    prompt: str | None, subject: str | None, target: str | None, facts: str | None, limit: int | None
) -> None:
    given = {"PROMPT": prompt, "--subject": subject, "--target": target}
    if facts is not None and (extra := [name for name, value in given.items() if value is not None]):
        raise BadInput(f"{' and '.join(extra)} and --facts were given; trace either one prompt or a file of facts")
    if facts is None and (missing := [name for name in ("PROMPT", "--subject") if given[name] is None]):
        raise BadInput(f"a trace needs PROMPT and --subject (or --facts FILE); {' and '.join(missing)} missing")
    if facts is None and limit is not None:
        raise BadInput("--limit counts facts; give --facts, or leave it out")


def _about(kind: str, trace: "Trace") -> str:
    from errata.locate import KINDS

    return KINDS[kind] if kind == "hidden" else KINDS[kind].replace("layers", f"{trace.window} layers")


def _tokens(trace: "Trace") -> list[str]:
    """A name for each row: the token, with a star where it belongs to the subject."""
    first, end = trace.subject
    pieces = [printable(" ".join(piece.split())) or repr(piece) for piece in trace.tokens]
    return [f"{piece}{'*' if first <= i < end else ''}" for i, piece in enumerate(pieces)]


def _roles(average: "Average") -> list[str]:
    """A name for each row: the role, with the number of facts that have it where not all do."""
    return [role if count == average.facts else f"{role} ({count})" for role, count in average.counts.items()]


def _largest(average: "Average") -> list[str]:
    """A line for each kind: its largest average effect, with standard error and count."""
    lines: list[str] = []
    for kind, table in average.effects.items():
        row, layer = divmod(int(table.nan_to_num(-1.0).argmax()), table.shape[1])
        role, error = list(average.counts)[row], float(average.errors[kind][row, layer])
        lines.append(
            f"{kind}: at most {100 * float(table[row, layer]):.1f} ± {100 * error:.1f} points, {role}, layer {layer} "
            f"({average.counts[role]} facts)"
        )
    return lines
