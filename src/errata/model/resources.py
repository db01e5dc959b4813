"""What goes with a model besides its weights: texts, cases, and how it was trained to be given facts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from errata.types import Case


@dataclass(frozen=True)
class Resources:
    """What methods take where the caller gives no data. Everything is None or empty for a model that brings nothing.

    ``texts`` gives texts of the kind that the model was trained on, for key statistics; ``cases`` training cases, for
    methods that are trained or need demonstrations; ``templates`` by purpose ("fact": before a prompt, "reminder":
    around it, "loop": MeLLo's examples) how facts are laid out in its context.
    """

    texts: "Callable[[], Iterator[str]] | None" = None
    cases: "Callable[[], list[Case]] | None" = None
    templates: Mapping[str, str] = field(default_factory=dict[str, str])
