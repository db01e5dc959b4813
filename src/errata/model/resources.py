"""What goes with a model besides its weights: texts, cases, and templates for facts in its context."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from errata.types import Case


@dataclass(frozen=True)
class Resources:
    """What methods use where the caller gives no data. All empty for a model that brings nothing along."""

    texts: "Callable[[], Iterator[str]] | None" = None
    """Gives texts of the kind that the model was trained on, for key statistics."""
    cases: "Callable[[], list[Case]] | None" = None
    """Gives training cases, for methods that need demonstrations."""
    draw: "Callable[[int], list[Case]] | None" = None
    """Gives the training cases of a draw of that number, which ask about no subject of another split."""
    templates: Mapping[str, str] = field(default_factory=dict[str, str])
    """How facts are laid out in its context, by purpose: "fact" before a prompt, "reminder" around it, "loop" MeLLo's
    examples."""
