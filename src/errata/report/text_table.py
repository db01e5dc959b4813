"""Tables of text, which Markdown and HTML only lay out; and how a mean is written in them."""

from dataclasses import dataclass

from errata.evaluation.metrics import Mean


@dataclass(frozen=True)
class TextTable:
    """A table of text: a caption ("" where it has none), headings, and lines as long as the headings.

    ``shares`` are the places of columns whose means lie between 0 and 1; ``aside`` marks one that is large and seldom
    wanted, which a page folds away.
    """

    caption: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    shares: tuple[int, ...] = ()
    aside: bool = False


def mean_text(mean: Mean | None) -> str:
    """Mean ± standard error (count), or a dash."""
    return "-" if mean is None else str(mean)
