"""Pictures of sequences: what becomes of the edits and of the model as more are made. Needs matplotlib."""

import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import IO, Any

from errata.errors import BadInput
from errata.printable import printable
from errata.report.headings import EDIT_CURVES, MODEL_CURVES, SHARES
from errata.report.names import short_names
from errata.report.sections import Section, sections
from errata.types import Row

TITLE = 150  # characters on a line of a title
LEGEND = 6  # methods on a line of the legend


def curves(rows: Iterable[Row], path: "str | Path | IO[Any]", form: str | None = None) -> None:
    """Draws how sequences go: a line for each method, ± standard error, against the number of edits.

    Each section has a row of pictures of what becomes of the model (how far its weights move and how much that changes
    outputs, its loss on text, facts it follows in its context), where that was asked, and a row of what becomes of the
    edits. ``form`` is the file format where the path has no ending. Raises :class:`BadInput` where no sequence was
    asked twice or nothing was asked that has a curve, without matplotlib, and where nothing can be written.
    """
    sequences = [section for section in sections(rows) if section.course]
    grid_rows = _grid_rows(sequences)
    if not sequences:
        raise BadInput("no sequence was asked at more than one checkpoint, so there is no curve to draw")
    if not grid_rows:
        raise BadInput(f"there is no curve to draw: none of {', '.join((*EDIT_CURVES, *MODEL_CURVES))} was asked")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput('curves need matplotlib: pip install "errata[plots]"') from error
    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():  # no formulas
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font lacks
        figure = _figure(Figure, sequences, grid_rows)
        try:
            figure.savefig(path, format=form)
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot draw {path}: {error}") from error


def _figure(Figure: Any, sequences: Iterable[Section], grid_rows: Sequence[tuple[Section, tuple[str, ...]]]) -> Any:
    names = list(dict.fromkeys(name for section in sequences for name, _ in section.course))
    looks = {name: {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10 % 3]} for i, name in enumerate(names)}
    height, lines = 3.2 * len(grid_rows), -(-len(names) // LEGEND) if names else 0
    figure = Figure(figsize=(4 * len(EDIT_CURVES) + 1, height + 0.22 * lines + 0.3), layout="constrained")
    handles: dict[str, Any] = {}
    parts: Any = figure.subfigures(len(grid_rows), 1, squeeze=False)
    for (part,), (section, columns) in zip(parts, grid_rows, strict=True):
        part.suptitle(_title(section.title), fontsize="medium")
        for axis, column in zip(part.subplots(1, len(EDIT_CURVES)), columns, strict=True):
            handles |= _draw(axis, section, column, looks)
    drawn, short = [name for name in names if name in handles], short_names(names)
    labels = [printable(short[name]) for name in drawn]
    figure.legend([handles[name] for name in drawn], labels, loc="outside lower center", ncols=LEGEND, fontsize="small")
    return figure


def _title(text: str) -> str:
    """A title on lines of its own width, above the pictures that it is of."""
    return fill(printable(text), TITLE, max_lines=3, placeholder="…")


def svg(rows: Iterable[Row]) -> str:
    """The curves as SVG that can stand in a page; "" where there is no curve to draw."""
    rows = list(rows)
    if not _grid_rows(sections(rows)):
        return ""
    text = io.StringIO()
    curves(rows, text, "svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _grid_rows(of: Iterable[Section]) -> list[tuple[Section, tuple[str, ...]]]:
    """The rows of pictures: a section, and the columns that are drawn side by side; those alone that have a value."""
    every = [(section, columns) for section in of for columns in (MODEL_CURVES, EDIT_CURVES)]
    return [(section, columns) for section, columns in every if any(map(section.course_of, columns))]


def _draw(axis: Any, section: Section, column: str, looks: dict[str, Any]) -> dict[str, Any]:
    """Draws one picture; returns each method's handle for the legend."""
    handles: dict[str, Any] = {}
    means = section.course_of(column)
    for name in dict.fromkeys(name for name, _ in means):
        points = sorted((n, mean.mean, mean.error or 0.0) for (of, n), mean in means.items() if of == name)
        x, y, spread = zip(*points, strict=True)
        handles[name] = axis.errorbar(x, y, spread, marker="o", markersize=3, capsize=2, **looks[name])
    axis.set(title=column, xlabel="edits")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if column in SHARES:
        axis.set_ylim(-0.03, 1.03)
    return handles
