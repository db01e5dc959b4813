"""The log of edits that every memory keeps: one record for each edit, in the order in which they were made."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator

from errata.model.tokens import Tokens, sentence
from errata.patch.header import edit_of
from errata.patch.schema import Each, Length, read
from errata.subjects import template_of
from errata.types import Edit


@dataclass(frozen=True)
class EditRecord:
    """An edit as a memory keeps it: its texts and, where the memory works on tokens, the ids of prompt and target."""

    id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    prompt_ids: list[int] = field(default_factory=list[int])
    target_ids: list[int] = field(default_factory=list[int])
    at: int | None = None

    @classmethod
    def of(cls, edit: Edit, tokens: Tokens | None = None) -> Self:
        """The record of an edit; with ``tokens`` it holds ids."""
        if tokens is None:
            return cls(**edit.to_json())
        return cls(
            **edit.to_json(),
            prompt_ids=tokens.prompt(edit.prompt),
            target_ids=tokens.target(edit.prompt, edit.target_new),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return {**vars(self), "prompt_ids": [*self.prompt_ids], "target_ids": [*self.target_ids]}

    @property
    def text(self) -> str:
        """The statement that prompt and new target make."""
        return sentence(self.prompt, self.target_new)

    def about(self, subject: str) -> str:
        """The prompt with another subject in the place of its own."""
        return template_of(self.prompt, self.subject, self.at).replace("{}", subject)

    def __str__(self) -> str:
        return f"edit {self.id}, {self.prompt!r}"


def _record_of(record: Any) -> EditRecord:
    """The record that a file holds. Raises :class:`BadInput` for one that is of no :class:`Edit`."""
    rest = {name: value for name, value in record.items() if name not in IDS} if isinstance(record, dict) else record
    values: dict[str, Any] = edit_of(rest).to_json() | {name: _ids(record.get(name)) for name in IDS}
    return EditRecord(**values)


def _ids(value: Any) -> list[int]:
    """The ids of tokens that a file holds. Raises :class:`BadInput` for what are none."""
    plain = type(value) is list and all(type(one) is int and one >= 0 for one in value)
    return value if plain else read(Ids, value)


IDS = ("prompt_ids", "target_ids")
Ids = list[Annotated[int, Field(ge=0)]]
EditLog = Annotated[tuple[Annotated[EditRecord, PlainValidator(_record_of)], ...], Each(_record_of), Length("n")]


def newest(questions: Iterable[Hashable]) -> list[int]:
    """Indices of the questions that no later one repeats, in order."""
    return sorted({question: i for i, question in enumerate(questions)}.values())


def current(log: Sequence[EditRecord]) -> list[int]:
    """Indices of the edits whose prompt (by its ids) no later edit repeats, in order."""
    return newest(tuple(record.prompt_ids) for record in log)


def log_without(log: Sequence[EditRecord], edit_id: str) -> tuple[EditRecord, ...]:
    """The log without the edit of that id."""
    return tuple(record for record in log if record.id != edit_id)


def log_entries(log: Sequence[EditRecord], in_use: Sequence[int]) -> list[dict[str, Any]]:
    """A JSON record for each edit: its id, its statement, and whether it answers or a newer one has taken its place."""
    states = {True: "yes", False: "a newer one"}
    used = set(in_use)
    return [{"edit": record.id, "fact": record.text, "in use": states[i in used]} for i, record in enumerate(log)]
