"""What the pages cannot say by themselves: every method with its settings, and docstrings without Sphinx's roles."""

import inspect
import re
from typing import Any

import griffe

EVERY_METHOD = "<!-- every method -->"
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?\.?([^`]+)`")


class PlainRoles(griffe.Extension):
    """``:class:`Patch` `` reads ``Patch``."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """The page, with a section for each registered method where it asks for them."""
    return markdown.replace(EVERY_METHOD, "\n".join(_sections())) if EVERY_METHOD in markdown else markdown


def _sections() -> list[str]:
    import errata

    lines: list[str] = []
    families: dict[str, list[Any]] = {}
    for about in errata.methods().values():
        families.setdefault(about.family, []).append(about)
    for family, members in families.items():
        lines += [f"## {family[0].upper()}{family[1:]}", ""]
        for about in members:
            lines += _section(about)
    return lines


def _section(about: Any) -> list[str]:
    import errata
    from errata.cli.methods import settings

    doc = inspect.cleandoc(type(errata.method(about.name)).__doc__ or "")
    lines = [
        f"### {about.name}",
        "",
        f"{about.paper}. Stores {about.stores}. {'Needs' if about.needs_prepare else 'Does not need'} `prepare`.",
        "",
        ROLE.sub(r"`\1`", doc),
        "",
        "| setting | type | default | where the default comes from |",
        "|---|---|---|---|",
    ]
    for setting in settings(about.name):
        default = "by the model" if setting["default"] is None else f"`{setting['default']}`"
        kind, note = setting["type"].removesuffix(" | None"), setting["note"].replace("|", "&#124;")
        lines.append(f"| `{setting['name']}` | `{kind}` | {default} | {note} |")
    return [*lines, ""]
