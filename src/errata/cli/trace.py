"""``errata trace``: which hidden states decide an answer, as a map on the terminal and as a picture."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.text import Text

from errata.cli import common
from errata.errors import BadInput
from errata.files import write_bytes

if TYPE_CHECKING:
    from errata.locate import Average, Trace
    from errata.model.hf import HFLM

FACTS = 100  # traced at most, unless --limit says otherwise
LABEL, CELL = 28, 4  # characters: of a row's name at most, and of a number
BLOCKS = " ▁▂▃▄▅▆▇█"
PICTURES = (".png", ".pdf", ".svg")
SOLID = 0.35  # share of the largest effect from which a cell's text is white

Table = Sequence[Sequence[float]]  # (rows, layers)


class Fact(NamedTuple):
    prompt: str
    subject: str
    attribute: str


# Facts -------------------------------------------------------------------------------------------


def read_facts(name: str, limit: int | None = None, seed: int = 0) -> list[Fact]:
    """The first facts of a file like ROME's known_facts.json, or the true ones of cases ("world", or a file)."""
    if limit is not None and limit < 1:
        raise BadInput(f"--limit must be at least 1, found {limit}")
    facts = _of_cases(name, limit, seed) if name == "world" else _of_file(Path(name), seed)
    if not facts:
        raise BadInput(f"{name} holds no fact; expected records with prompt, subject and attribute, or cases")
    if limit is not None and limit > len(facts):
        raise BadInput(f"{limit} facts were asked for; {name} holds {len(facts)}: give a limit up to {len(facts)}")
    return facts[: limit or FACTS]


def _of_file(path: Path, seed: int) -> list[Fact]:
    text = common.read_text(path, "facts")
    try:
        records: Any = json.loads(text)
    except json.JSONDecodeError:
        records = None  # JSON lines, or broken: reading them as cases names the line
    first = records[0] if isinstance(records, list) and records else None
    if not (isinstance(first, dict) and "attribute" in first):
        return _of_cases(str(path), None, seed)
    return [_fact(record, f"{path}, record {number}") for number, record in enumerate(cast("list[Any]", records), 1)]


def _fact(record: Any, place: str) -> Fact:
    from errata.locate.tracing import asked

    values = [record.get(key) if isinstance(record, dict) else None for key in ("prompt", "subject", "attribute")]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise BadInput(f"{place}: a fact is a JSON object whose prompt, subject and attribute are texts")
    prompt, subject, attribute = cast("list[str]", values)
    try:
        return Fact(*asked(prompt, subject), attribute)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error


def _of_cases(name: str, limit: int | None, seed: int) -> list[Fact]:
    import errata

    cases = errata.cases(name, limit=(limit or FACTS) if name == "world" else None, seed=seed)
    edits = [edit for case in cases for edit in case.edits]
    return [Fact(edit.prompt, edit.subject, edit.target_true) for edit in edits if edit.target_true]


def trace_facts(
    lm: "HFLM", facts: Sequence[Fact], *, quiet: bool = True, **settings: Any
) -> tuple[list["Trace"], list[Fact]]:
    """The traces of the facts that the model knows (each token of the attribute is its arg-max), and the other facts.

    The noise is relative to the standard deviation of the embeddings of all known facts' subjects, as in ROME.
    """
    from errata.locate import embedding_std, trace

    scores = lm.score([fact.prompt for fact in facts], [fact.attribute for fact in facts])
    known = [fact for fact, score in zip(facts, scores, strict=True) if score.correct]
    unknown = [fact for fact, score in zip(facts, scores, strict=True) if not score.correct]
    if not known:
        raise BadInput(f"{lm.name} knows none of the {len(facts)} facts, so there is nothing to trace; give others")
    std = embedding_std(lm, [(fact.prompt, fact.subject) for fact in known])
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
            help="The average over many: 'world', a file of cases, or one like ROME's known_facts.json. Those that "
            "the model does not know are left out and counted.",
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
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Find the states that decide an answer: causal tracing, of one fact or on average."""
    _check_words(prompt, subject, target, facts, limit)
    if output is not None:
        _check_picture(output, force)
    from errata.locate import KINDS, average, trace, tracing

    kinds = tracing.checked(kind or tuple(KINDS), samples, noise, window)
    settings: dict[str, Any] = {"kinds": kinds, "samples": samples, "noise": noise, "window": window, "seed": seed}
    if facts is not None:
        wanted = read_facts(facts, limit, seed)
        lm = common.load_model(model, device, dtype, quiet)
        traces, unknown = trace_facts(lm, wanted, quiet=quiet, **settings)
        its = average(traces)
        record = {**its.to_json(), "unknown": len(unknown), "window": traces[0].window, "sigma": traces[0].sigma}
        title = f"{lm.name}: the average over {its.facts} known facts ({len(unknown)} of {len(wanted)} not known)"
        labels, of, ends = _roles(its), traces[0], ["", *_largest(its)]
    else:
        pair = tracing.asked(prompt or "", subject or "")
        lm = common.load_model(model, device, dtype, quiet)
        with common.step("tracing", quiet):
            its = of = trace(lm, *pair, target, **settings)
        record, title, labels, ends = its.to_json(), f"{pair[0]} → {its.answer.strip()}", _tokens(its), []
    tables = {f"{name}: {_about(name, of)}": table.tolist() for name, table in its.effects.items()}
    below = f"clean {its.clean:.1%}, corrupted {its.corrupted:.1%} (noise of σ = {of.sigma:.3g}, {of.samples} draws)"
    if output is not None:
        write_bytes(output, picture(f"{title}\n{below}", labels, tables, output.suffix.lower()))
    if as_json:
        common.say_json(record)
    else:
        _show(f"{title}\n{below}", labels, tables)
        for line in ends:
            common.stdout().print(line, soft_wrap=True)
    if output is not None:
        typer.echo(f"wrote {output}", err=True)


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


def _about(kind: str, its: "Trace") -> str:
    from errata.locate import KINDS

    return KINDS[kind] if kind == "hidden" else KINDS[kind].replace("layers", f"{its.window} layers")


def _tokens(its: "Trace") -> list[str]:
    """A name for each row: the token, with a star where it belongs to the subject."""
    first, end = its.subject
    pieces = [" ".join(piece.split()) or repr(piece) for piece in its.tokens]
    return [f"{piece}{'*' if first <= i < end else ''}" for i, piece in enumerate(pieces)]


def _roles(its: "Average") -> list[str]:
    return [role if count == its.facts else f"{role} ({count})" for role, count in its.counts.items()]


def _largest(its: "Average") -> list[str]:
    """A line for each kind: its largest average effect, with standard error and count."""
    found: list[str] = []
    for kind, table in its.effects.items():
        row, layer = divmod(int(table.nan_to_num(-1.0).argmax()), table.shape[1])
        role, error = list(its.counts)[row], float(its.errors[kind][row, layer])
        found.append(
            f"{kind}: at most {100 * float(table[row, layer]):.1f} ± {100 * error:.1f} points, {role}, layer {layer} "
            f"({its.counts[role]} facts)"
        )
    return found


# On the terminal ---------------------------------------------------------------------------------


def _show(title: str, labels: Sequence[str], tables: Mapping[str, Table]) -> None:
    console = common.stdout()
    console.print(title, soft_wrap=True)
    for name, table in tables.items():
        console.print()
        for line in heat_map(name, labels, table, console.width):
            console.print(line, soft_wrap=True)


def heat_map(name: str, labels: Sequence[str], table: Table, width: int) -> Iterator[Text]:
    """Lines of text: a row for each label, a column for each layer, red for what brings the answer back.

    Cells are points of probability (a gain of 0.12 is 12); where they do not fit ``width``, blocks of a height relative
    to the largest effect ("-" below its negative tenth), and each row's largest number behind them.
    """
    layers = range(len(table[0]))
    most = max((abs(x) for row in table for x in row if not math.isnan(x)), default=0.0)
    names = [label if len(label) < LABEL else f"{label[: LABEL - 2]}…" for label in labels]
    side = max(map(len, names)) + 1
    numbers = side + CELL * len(layers) <= width
    unit = "points of probability" if numbers else f"█ is {100 * most:.0f} points of probability"
    yield Text(f"{name}; by layer, {unit}", style="bold")
    yield Text(" " * side + "".join(_heading(layer, numbers) for layer in layers), style="dim")
    for label, row in zip(names, table, strict=True):
        line = Text(label.ljust(side))
        for x in row:
            line.append(_number(x) if numbers else _block(x, most), style=_colour(x, most))
        if not numbers and not math.isnan(row[0]):
            best = max(layers, key=row.__getitem__)
            line.append(f" {100 * row[best]:.0f} at {best}")
        yield line


def _heading(layer: int, numbers: bool) -> str:
    if numbers:
        return f"{layer:>{CELL}}"
    return str(layer // 10 % 10) if layer % 10 == 0 else "·" if layer % 5 == 0 else " "


def _number(x: float) -> str:
    return f"{'' if math.isnan(x) else round(100 * x):>{CELL}}"


def _block(x: float, most: float) -> str:
    if math.isnan(x) or not most:
        return " "
    return "-" if x < -most / 10 else BLOCKS[max(0, math.ceil(x / most * (len(BLOCKS) - 1) - 0.5))]


def _colour(x: float, most: float) -> str:
    """Nothing for no effect, red above and blue below, the stronger the more."""
    share = 0.0 if math.isnan(x) or not most else x / most
    if abs(share) < 0.05:
        return ""
    pale, rest = round(235 * (1 - abs(share))), 200
    red, green, blue = (rest, pale, pale) if share > 0 else (pale, pale, rest)
    return f"{'white' if abs(share) > SOLID else 'black'} on rgb({red},{green},{blue})"


# As a picture ------------------------------------------------------------------------------------


def _check_picture(path: Path, force: bool) -> None:
    """Raises before the work where no picture can be drawn or written."""
    common.check_output(path, force)
    if path.suffix.lower() not in PICTURES:
        raise BadInput(f"{path}: a picture ends with {', '.join(PICTURES)}; found {path.suffix or 'no ending'!r}")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput(
            "a picture is drawn by matplotlib, which is not here: pip install 'errata[plots]', or leave -o out"
        ) from error
    return Figure, FigureCanvasAgg


def picture(title: str, labels: Sequence[str], tables: Mapping[str, Table], suffix: str = ".png") -> bytes:
    """The bytes of a figure with a panel for each table, each with its own scale (red above zero, blue below)."""
    import warnings

    Figure, Canvas = _matplotlib()
    figure = Figure(figsize=(5.2 * len(tables) + 1, 1.6 + 0.28 * max(len(labels), 6)), layout="constrained")
    Canvas(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for i, (axis, (name, table)) in enumerate(zip(axes, tables.items(), strict=True)):
        most = max((abs(x) for row in table for x in row if not math.isnan(x)), default=0.0) or 1.0
        drawn = axis.imshow(table, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_yticks(range(len(labels)), labels if i == 0 else [""] * len(labels), parse_math=False)
        figure.colorbar(drawn, ax=axis, label="indirect effect on P(answer)" if i == len(tables) - 1 else "")
    made = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font does not have become boxes
        figure.savefig(made, format=suffix.removeprefix("."), dpi=150)
    return made.getvalue()
