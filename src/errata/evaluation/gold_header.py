"""What a gold is of, which is known before the rest of its file is read.

about = About.load(path)
about.is_of(edits) and about.is_of_model(lm)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

from typing_extensions import TypedDict

from errata.errors import BadInput, WrongModel
from errata.patch.schema import read
from errata.tensor_files import read_header
from errata.types import Edit

if TYPE_CHECKING:
    from errata.model.hf import HFLM


class Model(TypedDict):
    """The unedited model."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class About:
    """What a gold is of: the unedited model with its tokenizer, and the edits, whose ids these are."""

    model: Model
    data: str
    vocabulary: str
    edits: list[str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Of the gold in a file, of which its header alone is read. Raises :class:`BadInput`."""
        header = read_header(path, "gold")
        try:
            return read(cls, {name: header[name] for name in header if name in cls.__dataclass_fields__})
        except BadInput as error:
            raise unreadable(path, error) from error

    @cached_property
    def _edits(self) -> set[str]:
        return set(self.edits)

    def is_of(self, edits: Iterable[Edit]) -> bool:
        """Whether these are its edits, in any order."""
        return {edit.id for edit in edits} == self._edits

    def is_of_model(self, lm: "HFLM") -> bool:
        """Whether this is the model whose edits it is about, with its own tokenizer."""
        return lm.fingerprint == self.model["fingerprint"] and vocabulary_of(lm) == self.vocabulary

    def check_model(self, lm: "HFLM") -> None:
        """Raises :class:`WrongModel` for another model, or another tokenizer: its probabilities are of other tokens."""
        if vocabulary_of(lm) != self.vocabulary:
            raise WrongModel(
                f"the tokenizer of {lm.name or 'this model'} is not that of the gold of {self.model['name']}, so their "
                "tokens cannot be compared; load the model with its own tokenizer"
            )
        if not self.is_of_model(lm):
            raise WrongModel(
                f"this is the gold of {self.model['name']} ({self.model['fingerprint']}), found {lm.name or 'a model'} "
                f"({lm.fingerprint}): load that model, or make a gold of this one (`errata world gold`)"
            )


def vocabulary_of(lm: "HFLM") -> str:
    """Sixteen hexadecimal digits of what the tokenizer's ids stand for."""
    tokens: Mapping[str, int] = lm.tokens.tokenizer.get_vocab()
    return sha256(repr(sorted(tokens.items())).encode()).hexdigest()[:16]


def unreadable(path: Path, error: BadInput) -> BadInput:
    """The error of a file that holds no gold."""
    return BadInput(f"{path} is no gold that can be read: {error}; make it again")
