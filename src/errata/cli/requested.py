"""Which edits ``errata edit`` is asked for: by options, or a file of them; a subject that is left out is found in the
prompt once the model is loaded, and said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from errata.cli import common
from errata.errors import BadInput
from errata.inputs import parsed
from errata.printable import listed, shown
from errata.types import LONGEST, Edit, as_text

if TYPE_CHECKING:
    from errata.model.hf import HFLM

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """An edit whose subject is still to be found in its prompt. Raises :class:`BadInput` for texts that cannot do."""

    prompt: str
    target_new: str
    target_true: str | None = None
    id: str = ""

    def __post_init__(self) -> None:
        for name in ("prompt", "target_new", "id", *(["target_true"] if self.target_true is not None else [])):
            as_text(getattr(self, name), f"an edit's {name}", LONGEST)
        if "{}" in self.prompt:
            raise BadInput(f"{{}} in {shown(self.prompt)} stands for the subject; give it (--subject)")
        if not self.prompt.strip() or not self.target_new.strip():
            raise BadInput("an edit needs a prompt and a target that are not empty")

    @classmethod
    def from_json(cls, record: Any) -> "Edit | Draft":
        """The edit of a JSON object, or a draft where it has no subject. Raises :class:`BadInput`."""
        if not isinstance(record, dict) or "subject" in record or "at" in record:
            return Edit.from_json(record)
        given = cast("dict[str, Any]", record)
        names = [field.name for field in fields(cls)]
        if (unknown := sorted(set(given) - set(names))) or not {"prompt", "target_new"} <= set(given):
            raise BadInput(
                f"an edit needs prompt and target_new, and may have subject, target_true, id and at; found "
                f"{listed(unknown or given)}"
            )
        return cls(**given)


def edits_of(
    prompt: str | None, subject: str | None, target: str | None, file: Path | None, text: str | None = None
) -> list[Edit | Draft]:
    """The edits that the options give: one by its parts, or a file of them; none where a text gives them.

    A subject may be left out. Raises :class:`BadInput`.
    """
    parts = {"--prompt": prompt, "--subject": subject, "--target": target}
    given = [name for name, value in parts.items() if value is not None]
    for other, of in ((file, "--edits"), (text, "a text")):
        if other is not None and (extra := [*given, *(["--edits"] if file is not None and other is text else [])]):
            raise BadInput(f"{' and '.join(extra)} and {of} were given; use one edit, a file of them, or a text")
    if file is not None:
        return read_edits(file, Draft.from_json)
    if text is not None:
        return []
    if prompt is None or target is None:
        missing = " and ".join(name for name in ("--prompt", "--target") if name not in given)
        raise BadInput(f"an edit needs --prompt and --target (or --edits FILE, or a text); {missing} missing")
    return [Draft(prompt, target) if subject is None else Edit(prompt, subject, target)]


@overload
def read_edits(file: Path) -> list[Edit]: ...
@overload
def read_edits(file: Path, make: Callable[[Any], T]) -> list[T]: ...
def read_edits(file: Path, make: Callable[[Any], Any] = Edit.from_json) -> list[Any]:
    """The edits of a file with one as JSON on each line. Raises :class:`BadInput`, with the number of the line."""
    edits: list[Any] = []
    for number, line in enumerate(common.read_text(file, "edits").split("\n"), start=1):
        if line.strip():
            try:
                edits.append(make(parsed(line)))
            except BadInput as error:
                raise BadInput(f"{file}, line {number}: {error}; expected one edit as JSON on each line") from error
    if not edits:
        raise BadInput(f"{file} holds no edit; expected one as JSON on each line")
    return edits


def completed(lm: "HFLM", requested: Sequence[Edit | Draft], quiet: bool) -> list[Edit]:
    """The edits, the subjects of drafts found by tracing, which is said. Raises what ``subject_of`` raises."""
    return [one if isinstance(one, Edit) else _traced(lm, one, quiet) for one in requested]


def _traced(lm: "HFLM", draft: Draft, quiet: bool) -> Edit:
    from errata.locate import subject_of

    found = subject_of(lm, draft.prompt, draft.target_true)
    if not quiet:
        doubtful = "" if found.named else "; no name stands there, so look twice, or give --subject"
        common.say(f"{draft.prompt}: {found.words}{doubtful}")
    return Edit(draft.prompt.rstrip(" "), found.subject, draft.target_new, draft.target_true, draft.id, found.start)
