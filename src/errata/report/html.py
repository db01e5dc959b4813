"""A report as one page of HTML, from the template ``templates/report.html.j2``."""

from collections.abc import Iterable

from errata.printable import printable
from errata.report.sections import EXPLANATION, report_sections
from errata.types import Row


def page(rows: Iterable[Row], title: str = "Methods, before and after", note: str = "", picture: str = "") -> str:
    """The page as a file that needs no other; ``picture`` is SVG, which goes in as it is, all else is escaped.

    There is no script in it and no link to elsewhere; control characters are written out.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("errata.report"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not what is Markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    notes = [EXPLANATION, *([note] if note else [])]
    template = environment.get_template("report.html.j2")
    return template.render(title=title, notes=notes, picture=Markup(picture), sections=report_sections(rows))
