"""Options of the limits that a review's guards keep; for ``errata review`` and ``errata edit --review``."""

from typing import Annotated

import typer

PANEL = "Guards (0 or inf switches one off)"


def _least(what: str, usual: float) -> typer.models.OptionInfo:
    return typer.Option(min=0, max=1, help=f"Least share of {what}.", show_default=f"{usual:g}", rich_help_panel=PANEL)


def _most(what: str, usual: float) -> typer.models.OptionInfo:
    return typer.Option(min=0, help=f"Most {what}.", show_default=f"{usual:g}", rich_help_panel=PANEL)


# As errata.review.guards.RULES, which is too heavy to import here; a test compares them.
MinReliability = Annotated[float | None, _least("edits answered with their target", 0.9)]
MinParaphrase = Annotated[float | None, _least("edits in other words that are", 0.5)]
MinNeighborhood = Annotated[float | None, _least("answers nearby that stay", 0.7)]
MinSameSubject = Annotated[float | None, _least("answers about the subject that stay", 0.25)]
MinUnrelated = Annotated[float | None, _least("answers far from the edits that stay", 0.8)]
MaxKL = Annotated[float | None, _most("KL of the next token on canary text, in nats", 0.02)]
MaxLoss = Annotated[float | None, _most("rise of the loss on canary text, in nats a token", 0.02)]
MaxNorm = Annotated[float | None, _most("‖Δ‖ / ‖W‖ of a weight, over the root of the number of edits", 2.0)]
MaxBlock = Annotated[float | None, _most("relative change of a block's output on canary text", 0.1)]


def option(name: str) -> str:
    """How a guard is named on the command line."""
    return f"--{name.replace('_', '-')}"


def given(**limits: float | None) -> dict[str, float | None]:
    """The limits that were typed, by the names of the guards."""
    return {name: limit for name, limit in limits.items() if limit is not None}
