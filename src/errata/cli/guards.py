"""Options of the limits that a review's guards keep; for ``errata review`` and ``errata edit --review``."""

import inspect
from collections.abc import Callable, Mapping
from functools import update_wrapper
from types import MappingProxyType
from typing import Annotated, Any

import typer

NONE: Mapping[str, float | None] = MappingProxyType({})
PANEL = "Guards (0 or inf switches one off)"


def _least(what: str, usual: float) -> typer.models.OptionInfo:
    return typer.Option(min=0, max=1, help=f"Least share of {what}.", show_default=f"{usual:g}", rich_help_panel=PANEL)


def _most(what: str, usual: float) -> typer.models.OptionInfo:
    return typer.Option(min=0, help=f"Most {what}.", show_default=f"{usual:g}", rich_help_panel=PANEL)


# As errata.review.guards.RULES, which is too heavy to import here; a test compares them.
OPTIONS: dict[str, Any] = {
    "min_reliability": _least("edits answered with their target", 0.9),
    "min_paraphrase": _least("edits in other words that are", 0.5),
    "min_neighborhood": _least("answers nearby that stay", 0.7),
    "min_same_subject": _least("answers about the subject that stay", 0.25),
    "min_unrelated": _least("answers far from the edits that stay", 0.8),
    "max_kl": _most("KL of the next token on canary text, in nats", 0.02),
    "max_loss": _most("rise of the loss on canary text, in nats a token", 0.02),
    "max_norm": _most("‖Δ‖ / ‖W‖ of a weight, over the root of the number of edits", 2.0),
    "max_block": _most("relative change of a block's output on canary text", 0.1),
}


def limited(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each limit in the place of its parameter ``limits``, which gets those typed."""

    def run(**given: Any) -> None:
        typed = {name: given.pop(name) for name in OPTIONS}
        command(**given, limits={name: limit for name, limit in typed.items() if limit is not None})

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        parameters += _options(parameter.kind) if parameter.name == "limits" else [parameter]
    shown: Any = update_wrapper(run, command)
    del shown.__wrapped__  # whose signature would be shown
    shown.__signature__ = inspect.Signature(parameters)
    shown.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return shown


def _options(kind: Any) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(name, kind, default=None, annotation=Annotated[float | None, made])
        for name, made in OPTIONS.items()
    ]


def option(name: str) -> str:
    """How a guard is named on the command line."""
    return f"--{name.replace('_', '-')}"
