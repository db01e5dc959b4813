"""Pages of HTML: the one skeleton that they share, and a report in it (``templates/report.html.j2``)."""

from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files
from typing import Any

from errata.printable import printable
from errata.report import charts
from errata.report.sections import EXPLANATION, report_sections
from errata.types import Row


def page(rows: Iterable[Row], title: str = "Methods, before and after", note: str = "") -> str:
    """The page as a file that needs no other: tables that a click sorts, and pictures of each section."""
    sections = [(section, charts.figures(section)) for section in report_sections(rows)]
    return rendered("report.html.j2", title=title, notes=[EXPLANATION, *([note] if note else [])], sections=sections)


def rendered(template: str, package: str = "errata.report", **content: Any) -> str:
    """A page from a template of a package, which extends ``page.html.j2`` (with ``title`` and ``notes``).

    All that ``content`` says is text in it, control characters written out. The browser is told to run the page's own
    script alone, which tables and pictures do without, and to load nothing from elsewhere.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, "errata.report"))]),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not what is Markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(look=_look, heat=_heat, lines=_lines, size=_SIZE)
    script = _read("report.js")
    return environment.get_template(template).render(
        style=Markup(_read("report.css")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'",
        **content,
    )


_SIZE = {
    "width": charts.WIDTH,
    "height": charts.HEIGHT,
    "left": charts.LEFT,
    "right": charts.RIGHT,
    "top": charts.TOP,
    "bottom": charts.BOTTOM,
}


def _read(name: str) -> str:
    return files("errata.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """By which the page's policy knows its script."""
    return b64encode(sha256(script.encode()).digest()).decode()


def _look(series: int) -> str:
    """The classes of a method's colour and dashes."""
    return f"c{series % charts.COLOURS} d{series // charts.COLOURS % charts.DASHES}"


def _heat(share: str) -> Any:
    """The attribute that shades a cell by the share that it begins with; "" of a dash."""
    from markupsafe import Markup

    try:
        tenths = round(10 * min(1.0, max(0.0, float(share.partition(" ")[0]))))
    except ValueError:
        return ""
    return Markup(f' class="share h{tenths}"')


def _lines(text: str) -> Any:
    """The text with its line ends, escaped."""
    from markupsafe import escape

    return escape(printable(text, keep="\n"))
