"""Pictures for a page, as numbers that a template draws: what edits cost and trade off, and how sequences go."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from errata.evaluation.metrics import Mean, harmonic_mean
from errata.report.headings import MODEL_CURVES, SHARES
from errata.report.names import short_names
from errata.report.published import SECONDS, PublishedSection
from errata.report.sections import Section
from errata.report.text_table import mean_text

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46  # of the frame, in the units of the picture
COLOURS, DASHES = 8, 3
NEAR = 9  # marks this close are drawn as one
LETTER, LINE = 6.7, 13  # of a label, roughly
NAMED = 3  # methods that a label names
(SPEED,) = SECONDS.values()


@dataclass(frozen=True)
class Axis:
    """A named axis from ``low`` to ``high`` over so many units of the picture; ``log`` of base ten."""

    name: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        low, high, value = (log10(x) if self.log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)

    def x(self, value: float) -> float:
        """The value's place from the left."""
        return round(LEFT + self.share(value) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """The value's place from the top."""
        return round(HEIGHT - BOTTOM - self.share(value) * (HEIGHT - TOP - BOTTOM), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values between the ends, and their words."""
        if self.log:
            bases = (1, 2, 5) if self.high / self.low < 100 else (1,)
            powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            values = [base * 10.0**power for power in powers for base in bases]
        else:
            step = _step(self.high - self.low)
            values = [i * step for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]
        return [(value, f"{value:,.6g}") for value in values if self.low * 0.999 <= value <= self.high * 1.001]


@dataclass(frozen=True)
class Mark:
    """One or more methods at one place; ``label`` is text at a place of its own, "" where there was no room."""

    x: float
    y: float
    series: int
    count: int
    title: str
    label: str = ""
    label_x: float = 0
    label_y: float = 0
    anchor: str = "start"


@dataclass(frozen=True)
class Curve:
    """A line of one method, as paths of SVG: the line, its dots, and its standard errors."""

    series: int
    title: str
    line: str
    dots: str
    errors: str


@dataclass(frozen=True)
class Chart:
    """One picture; ``note`` says what an axis is, where its name does not."""

    title: str
    x: Axis
    y: Axis
    note: str = ""
    marks: tuple[Mark, ...] = ()
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class Figure:
    """Pictures that stand side by side under one heading; ``legend``: number, short and full name of each line."""

    title: str
    charts: tuple[Chart, ...]
    legend: tuple[tuple[int, str, str], ...] = ()


def figures(section: Section | PublishedSection) -> list[Figure]:
    """What can be drawn of a section: trade-offs of two methods or more, and curves of a sequence."""
    made = [Figure("Trade-offs", tuple(_trade_offs(section))), _curves(section)]
    return [figure for figure in made if figure.charts]


# Trade-offs --------------------------------------------------------------------------------------


def _trade_offs(section: Section | PublishedSection) -> Iterable[Chart]:
    axes, seconds = section.axes, section.ends(SPEED)
    generality, locality = section.ends(axes.generality), section.ends(axes.locality)
    if axes.generality and axes.locality:
        yield from _scatter("Generality against locality", (axes.locality, locality), (axes.generality, generality))
    parts = [section.ends(name) for name in axes.names]
    if parts:
        of_all = set(parts[0]).intersection(*parts[1:])
        quality = {n: Mean(harmonic_mean([part[n].mean for part in parts]), None, 1) for n in parts[0] if n in of_all}
        note = f"Quality: the harmonic mean of {', '.join(axes.names)}" if len(axes.names) > 1 else ""
        name = "quality" if note else axes.names[0]
        yield from _scatter("Cost against quality", (SPEED, seconds), (name, quality), True, note)


def _scatter(
    title: str,
    along: tuple[str, Mapping[str, Mean]],
    up: tuple[str, Mapping[str, Mean]],
    log: bool = False,
    note: str = "",
) -> Iterable[Chart]:
    """A mark for each method that has both; nothing of fewer than two."""
    (x_name, xs), (y_name, ys) = along, up
    names = [name for name in xs if name in ys and (xs[name].mean > 0 or not log)]
    if len(names) < 2:
        return
    x = _axis(x_name, [xs[name].mean for name in names], log)
    y = _axis(y_name, [ys[name].mean for name in names])
    short = short_names([*xs, *ys])
    groups: list[list[str]] = []
    places = {name: (x.x(xs[name].mean), y.y(ys[name].mean)) for name in names}
    for name in names:
        near = (of for of in groups if all(abs(a - b) < NEAR for a, b in zip(places[of[0]], places[name])))
        if (group := next(near, None)) is None:
            groups.append([name])
        else:
            group.append(name)
    marks = [
        Mark(
            *places[group[0]],
            names.index(group[0]),
            len(group),
            "\n".join(f"{n}: {_words(x, xs[n])} {x_name}, {_words(y, ys[n])} {y_name}" for n in group),
            ", ".join(short[name] for name in group[:NAMED]) + (f" +{len(group) - NAMED}" * (len(group) > NAMED)),
        )
        for group in groups
    ]
    yield Chart(title, x, y, note, tuple(_labelled(marks)))


def _words(axis: Axis, mean: Mean) -> str:
    return f"{mean.mean:.3g}" if axis.log or mean.error is None else mean_text(mean)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _labelled(marks: Sequence[Mark]) -> Iterable[Mark]:
    """The marks, each with its label where there is room for it beside the others."""
    taken: list[Box] = [(mark.x - 4, mark.y - 4, mark.x + 4, mark.y + 4) for mark in marks]
    for mark in marks:
        width = LETTER * len(mark.label)
        tries = [
            (dx * 8, dy * LINE, anchor)
            for dy in (0, -1, 1, -2, 2)
            for dx, anchor in ((1, "start"), (-1, "end"), (0, "middle"))
            if dx or dy
        ]
        for dx, dy, anchor in tries:
            left = mark.x + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
            box = (left, mark.y + dy - 6, left + width, mark.y + dy + 6)
            inside = box[0] > LEFT and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at = (round(mark.x + dx, 1), round(mark.y + dy + 4, 1))
                yield Mark(mark.x, mark.y, mark.series, mark.count, mark.title, mark.label, *at, anchor)
                break
        else:
            yield Mark(mark.x, mark.y, mark.series, mark.count, mark.title)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# Curves ------------------------------------------------------------------------------------------


def _curves(section: Section | PublishedSection) -> Figure:
    published = isinstance(section, PublishedSection)
    columns = section.axes.names if published else [*dict.fromkeys((*section.axes.names, *SHARES, *MODEL_CURVES))]
    courses = {column: section.course_of(column) for column in columns}
    of_column = {column: means for column, means in courses.items() if any(n for _, n in means)}  # 0: before alone
    names = list(dict.fromkeys(name for means in of_column.values() for name, _ in means))
    series, short = {name: i for i, name in enumerate(names)}, short_names(names)
    charts = tuple(_curve_chart(column, means, series) for column, means in of_column.items())
    return Figure("Over the sequence", charts, tuple((series[name], short[name], name) for name in names))


def _curve_chart(column: str, means: Mapping[tuple[str, int], Mean], series: Mapping[str, int]) -> Chart:
    values = [mean.mean for mean in means.values()]
    x = Axis("edits", 0, max(n for _, n in means) * 1.02)
    y = Axis(column, -0.03, 1.03) if column in SHARES else _axis(column, [0, *values])
    names = dict.fromkeys(name for name, _ in means)
    return Chart(
        column,
        x,
        y,
        curves=tuple(
            _curve(name, sorted((n, mean) for (of, n), mean in means.items() if of == name), x, y, series[name])
            for name in names
        ),
    )


def _curve(name: str, points: Sequence[tuple[int, Mean]], x: Axis, y: Axis, series: int) -> Curve:
    places = [f"{x.x(n):g} {y.y(mean.mean):g}" for n, mean in points]
    whiskers = (
        f"M{x.x(n):g} {y.y(max(y.low, mean.mean - mean.error)):g}V{y.y(min(y.high, mean.mean + mean.error)):g}"
        for n, mean in points
        if mean.error
    )
    title = f"{name}\n" + "\n".join(f"{n} edits: {mean_text(mean)}" for n, mean in points)
    return Curve(series, title, "M" + "L".join(places), "".join(f"M{place}h0" for place in places), "".join(whiskers))


# Axes --------------------------------------------------------------------------------------------


def _axis(name: str, values: Sequence[float], log: bool = False) -> Axis:
    """An axis with a little room around all values."""
    low, high = min(values), max(values)
    if log:
        return Axis(name, low / 1.5, high * 1.5, True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(name, low - room, high + room)


def _step(span: float) -> float:
    """The round step that takes six to a span at most."""
    power = 10.0 ** floor(log10(span / 6))
    return next(power * base for base in (1, 2, 5, 10) if power * base >= span / 6)
