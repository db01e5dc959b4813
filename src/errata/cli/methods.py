"""``errata methods``: the methods, and the settings of each."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, get_type_hints

import typer

from errata.cli import common


def methods() -> Mapping[str, Any]:
    """Name -> family, paper, what it stores, whether it needs ``prepare``."""
    import errata

    return errata.methods()


def settings(name: str) -> list[dict[str, Any]]:
    """The settings of a method, a record for each: name, type, default, and a note on where the default is from."""
    from errata.methods.registry import method_class
    from errata.methods.settings import notes

    cls = method_class(name)
    hints, texts = get_type_hints(cls), notes(cls)
    return [
        {"name": f.name, "type": _type(hints[f.name]), "default": f.default, "note": texts[f.name]} for f in fields(cls)
    ]


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return text.replace("typing.", "")


def methods_command(
    name: Annotated[str | None, typer.Argument(help="Tell of this one.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """List the methods, or the settings of one."""
    if name is None:
        known = methods().values()
        if as_json:
            common.print_json([asdict(method) for method in known])
            return
        rows = [(m.name, m.family, m.paper, m.stores, "yes" if m.needs_prepare else "no") for m in known]
        common.stdout().print(common.make_table("", ("name", "family", "paper", "stores", "prepares"), rows))
        return
    records = settings(name)
    if as_json:
        common.print_json(records)
        return
    from errata.methods.registry import method_class

    console, cls = common.stdout(), method_class(name)
    console.print(f"{name}: {cls.paper}", soft_wrap=True)
    console.print(inspect.cleandoc(cls.__doc__ or ""), soft_wrap=True)
    rows = [
        (s["name"], s["type"], s["default"] if s["default"] is not None else "by the model", s["note"]) for s in records
    ]
    console.print(common.make_table("settings (--set name=value)", ("name", "type", "default", "note"), rows))
