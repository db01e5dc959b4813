"""Every picture of rows: how sequences of edits go, and what becomes of the model meanwhile. Needs matplotlib."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from errata.errors import BadInput
from errata.report.tables import COURSE, CURVES, WHY, Section, sections
from errata.types import Row

SHARES = (*CURVES, "facts in context")  # between 0 and 1


def curves(rows: Iterable[Row], path: "str | Path | IO[str]", form: str | None = None) -> None:
    """Draws how sequences go: a line for each method, ± standard error, against the number of edits.

    Each section has a row of pictures of what becomes of the model (how far its weights and its
    outputs change, its loss on text, facts that it follows in its context), where that was asked, and a row of what becomes of the
    edits. Raises :class:`BadInput` where no sequence was asked twice, without matplotlib, and where nothing can be
    written.
    """
    found = [section for section in sections(rows) if section.course]
    lines = [(section, columns) for section in found for columns in (WHY, CURVES) if _told(section, columns)]
    if not lines:
        raise BadInput("no sequence was asked at more than one checkpoint, so there is no curve to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput('curves need matplotlib: pip install "errata[plots]"') from error
    names = list(dict.fromkeys(name for section in found for name, _ in section.course))
    looks = {name: {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10 % 3]} for i, name in enumerate(names)}
    figure = Figure(figsize=(4 * len(CURVES) + 3, 3.2 * len(lines)), layout="constrained")
    grid: Any = figure.subplots(len(lines), len(CURVES), squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (section, columns) in zip(grid, lines, strict=True):
        for axis, column in zip(axes, columns, strict=True):
            handles |= _draw(axis, section, column, looks)
        axes[0].set_ylabel(section.title.replace(" · ", "\n").replace(", ", ",\n"), fontsize="small")
    figure.legend([handles[name] for name in names if name in handles], [n for n in names if n in handles],
                  loc="outside right upper", fontsize="small")  # fmt: skip
    try:
        figure.savefig(path, format=form)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot draw {path}: {error}") from error


def svg(rows: Iterable[Row]) -> str:
    """The same as SVG to stand in a page; "" where there is no curve to draw."""
    rows = list(rows)
    if not any(section.course for section in sections(rows)):
        return ""
    text = io.StringIO()
    curves(rows, text, "svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _told(section: Section, columns: Iterable[str]) -> bool:
    places = [COURSE.index(column) for column in columns]
    return any(its[place] is not None for its in section.course.values() for place in places)


def _draw(axis: Any, section: Section, column: str, looks: dict[str, Any]) -> dict[str, Any]:
    """One picture; what stands for each method in the legend."""
    handles: dict[str, Any] = {}
    place = COURSE.index(column)
    for name in dict.fromkeys(name for name, _ in section.course):
        known = sorted((n, its[place]) for (of, n), its in section.course.items() if of == name and its[place])
        if known:
            x, y, spread = zip(*((n, value.mean, value.error or 0.0) for n, value in known if value), strict=True)
            handles[name] = axis.errorbar(x, y, spread, marker="o", markersize=3, capsize=2, **looks[name])
    axis.set(title=column, xlabel="edits")
    if column in SHARES:
        axis.set_ylim(-0.03, 1.03)
    return handles
