"""A patch that ``errata edit`` has made, with the answers before and after, and how that is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from errata.answers import answer_of, begins_with_answer
from errata.cli import common
from errata.printable import printable
from errata.types import Edit

if TYPE_CHECKING:
    from errata.patch.patch import Patch

ROWS = 20  # of a table of edits


@dataclass(frozen=True)
class Edited:
    """A patch, and the model's answers to the edits' prompts without and with it."""

    patch: "Patch"
    edits: Sequence[Edit]
    before: Sequence[str]
    after: Sequence[str]

    @property
    def took(self) -> list[bool]:
        """For each edit, whether its prompt is now answered with its target (generated)."""
        return [begins_with_answer(text, [e.target_new]) for e, text in zip(self.edits, self.after, strict=True)]

    @property
    def outcomes(self) -> list[Mapping[str, Any]]:
        """For each edit, how it ended: see :meth:`errata.methods.base.Method.edit`."""
        found = self.patch.meta["made"][-1]["outcomes"]
        return [found.get(one.id, {}) for one in self.edits]

    @property
    def missed(self) -> list[Edit]:
        """The edits that are not answered with their target, generated or fed."""
        from errata.methods.outcomes import missed

        ended = zip(self.edits, self.took, self.outcomes, strict=True)
        return [edit for edit, took, outcome in ended if not took or missed(outcome)]

    def to_json(self) -> list[dict[str, Any]]:
        """For each edit, what it asked for, what was answered without and with it, and how it ended."""
        columns = zip(self.edits, self.before, self.after, self.took, self.outcomes, strict=True)
        return [
            {
                "id": e.id,
                "prompt": e.prompt,
                "subject": e.subject,
                "target_new": e.target_new,
                "before": before,
                "after": after,
                "took": took,
            }
            | dict(outcome)
            for e, before, after, took, outcome in columns
        ]


def table_of_answers(result: Edited) -> Any:
    """Each prompt, what was answered before and after, and the losses of the search and of the patch, as a table."""
    rows = [
        (
            row["prompt"],
            _short(row["before"]),
            coloured(_short(row["after"]), row["took"]),
            row["target_new"],
            _loss(row.get("search_loss"), row.get("search_met")),
            _loss(row.get("loss"), row.get("met")),
        )
        for row in result.to_json()[:ROWS]
    ]
    more = f" (the first {ROWS} of {len(result.edits)})" if len(result.edits) > ROWS else ""
    columns = ("prompt", "before", "after", "target", "search loss", "loss")
    return common.make_table(f"edits{more}", columns, rows, right=columns[-2:])


def _loss(value: float | None, met: bool | None) -> Text:
    """A loss, in green where it is met, otherwise in red and with a word; a dash where none is known."""
    if met is None:
        return Text("-")
    number = "not finite" if value is None else f"{value:.2f}"
    return coloured(number if met else f"{number} missed", met)


def coloured(text: str, good: bool) -> Text:
    """An answer, in green where it is right, otherwise in red."""
    return Text(text, style="green" if good else "red")


def _short(text: str) -> str:
    return common.one_line(answer_of(text), 40)


def facts(n: int) -> str:
    """So many facts, in words."""
    return f"{n} fact{'' if n == 1 else 's'}"


def origins(outcomes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where each answer comes from and why, for edits by a method that says so."""
    lines = [
        f"{id} in {ended['ended']}: {ended.get('why', '')}" for id, ended in outcomes.items() if ended.get("ended")
    ]
    return lines[:ROWS] + ([f"and {len(lines) - ROWS} more"] if len(lines) > ROWS else [])


def print_line(text: str, style: str = "") -> None:
    """Prints one line, whatever the file holds."""
    common.stdout().print(printable(text), style=style, soft_wrap=True)
