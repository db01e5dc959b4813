"""A table of effects by row and layer, as coloured text on the terminal and as a picture."""

import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from rich.text import Text

from errata.cli import common
from errata.errors import BadInput

LABEL, CELL = 28, 4  # characters: of a row's name at most, and of a number
BLOCKS = " ▁▂▃▄▅▆▇█"
PICTURES = (".png", ".pdf", ".svg")
SOLID = 0.35  # share of the largest effect from which a cell's text is white

Table = Sequence[Sequence[float]]  # (rows, layers)


# On the terminal ---------------------------------------------------------------------------------


def print_maps(title: str, labels: Sequence[str], tables: Mapping[str, Table]) -> None:
    """Prints a title and a map for each table."""
    console = common.stdout()
    console.print(title, soft_wrap=True)
    for name, table in tables.items():
        console.print()
        for line in heat_map(name, labels, table, console.width):
            console.print(line, soft_wrap=True)


def heat_map(name: str, labels: Sequence[str], table: Table, width: int) -> Iterator[Text]:
    """Lines of text: a row for each label, a column for each layer, red for positive effects.

    Cells are points of probability (a gain of 0.12 is 12). Where they do not fit ``width``, they are blocks of a height
    relative to the largest effect ("-" below minus a tenth of it), and each row ends with its largest number.
    """
    layers = range(len(table[0]))
    largest = max((abs(x) for row in table for x in row if not math.isnan(x)), default=0.0)
    names = [label if len(label) < LABEL else f"{label[: LABEL - 2]}…" for label in labels]
    side = max(map(len, names)) + 1
    numbers = side + CELL * len(layers) <= width
    unit = "points of probability" if numbers else f"█ is {100 * largest:.0f} points of probability"
    yield Text(f"{name}; by layer, {unit}", style="bold")
    yield Text(" " * side + "".join(_heading(layer, numbers) for layer in layers), style="dim")
    for label, row in zip(names, table, strict=True):
        line = Text(label.ljust(side))
        for x in row:
            line.append(_number(x) if numbers else _block(x, largest), style=_colour(x, largest))
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


def _block(x: float, largest: float) -> str:
    if math.isnan(x) or not largest:
        return " "
    return "-" if x < -largest / 10 else BLOCKS[max(0, math.ceil(x / largest * (len(BLOCKS) - 1) - 0.5))]


def _colour(x: float, largest: float) -> str:
    """The style of a cell: none for no effect, red for positive ones, blue for negative ones."""
    share = 0.0 if math.isnan(x) or not largest else x / largest
    if abs(share) < 0.05:
        return ""
    pale, rest = round(235 * (1 - abs(share))), 200
    red, green, blue = (rest, pale, pale) if share > 0 else (pale, pale, rest)
    return f"{'white' if abs(share) > SOLID else 'black'} on rgb({red},{green},{blue})"


# As a picture ------------------------------------------------------------------------------------


def check_picture(path: Path, force: bool) -> None:
    """Raises :class:`BadInput` unless a picture can be drawn and written there. To be called before the work."""
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
        largest = max((abs(x) for row in table for x in row if not math.isnan(x)), default=0.0) or 1.0
        drawn = axis.imshow(table, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_yticks(range(len(labels)), labels if i == 0 else [""] * len(labels), parse_math=False)
        figure.colorbar(drawn, ax=axis, label="indirect effect on P(answer)" if i == len(tables) - 1 else "")
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font lacks
        figure.savefig(content, format=suffix.removeprefix("."), dpi=150)
    return content.getvalue()
