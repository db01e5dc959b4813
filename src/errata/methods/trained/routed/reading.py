"""What small models read: a text as the base model's token ids, each with the role that it has for the reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from errata.model.padding import pad
from errata.model.tokens import Tokens

PROMPT, TARGET, QUERY = 0, 1, 2  # roles: of an edit's prompt, of its new answer, of what is asked now
ROLES = 3


def words(tokens: Tokens, text: str) -> list[int]:
    """Ids of a text as it stands inside a sentence, so that a word has the same ids at its beginning."""
    return tokens.pair("a", " " + text.strip())[1]


@dataclass(frozen=True)
class Row:
    """Token ids and their roles, and the text that they are of where somebody reads that."""

    ids: tuple[int, ...]
    roles: tuple[int, ...]
    text: str = ""

    @classmethod
    def of(cls, *parts: tuple[Sequence[int], int], text: str = "") -> "Row":
        """The row of some parts in order: ids and the role that they all have."""
        ids = tuple(id for some, _ in parts for id in some)
        return cls(ids, tuple(role for some, role in parts for _ in range(len(some))), text)

    def __add__(self, other: "Row") -> "Row":
        return Row(self.ids + other.ids, self.roles + other.roles)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Rows, padded on the right: ids, roles and mask are (b, t)."""

    ids: Tensor
    roles: Tensor
    mask: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: Any) -> "Batch":
        """The rows of one batch."""
        ids = pad([row.ids for row in rows], "right", 0, device)
        return cls(ids.ids, pad([row.roles for row in rows], "right", 0, device).ids, ids.mask > 0)
