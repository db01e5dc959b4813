# pyright: strict
"""What the header of a patch file may say: kinds and configs of parts, the model, how each edit was made (pydantic).

Keys that are not known here are kept, so that a later version may add some.
"""

from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from errata.errors import BadInput
from errata.patch.schema import STRICT, read
from errata.printable import shown
from errata.types import Edit

MOST_PARTS = 10_000


class Texts(BaseModel):
    """The types of an edit's fields, before an :class:`Edit` is made of them; a file gives the ``id`` too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1)
    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    at: int | None = None


def edit_of(record: Any) -> Edit:
    """The edit of a record in a file. Raises :class:`BadInput` for one that no :class:`Edit` is equal to."""
    texts = record if _is_plain(record) else read(Texts, record).model_dump()
    edit = Edit(**texts)
    if edit.to_json() != {"target_true": None, "at": None, **texts}:
        raise BadInput(f"an edit that Errata would not keep like this, but as {shown(edit.prompt)}")
    return edit


def _is_plain(record: Any) -> bool:
    """Whether :class:`Texts` has nothing against a record: as with nearly all, of which a file may hold 100,000."""
    if type(record) is not dict or not record.keys() <= Texts.model_fields.keys():
        return False
    of = cast("dict[str, Any]", record).get
    return (
        type(of("id")) is type(of("prompt")) is type(of("subject")) is type(of("target_new")) is str
        and of("id") != ""
        and (of("target_true") is None or type(of("target_true")) is str)
        and (of("at") is None or type(of("at")) is int)
    )


class Record(BaseModel):
    """A JSON object whose types are taken strictly, and that may say more."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Model(Record):
    """The model that a patch or a state is of."""

    fingerprint: str
    name: str | None = None


class Outcome(Record):
    """How an edit ended: :mod:`errata.methods.outcomes`."""

    loss: float | None = None
    met: bool = False
    recalled: float | None = None
    search_loss: float | None = None
    search_met: bool = False
    ended: str = ""
    why: str = ""


class Made(Record):
    """A call of a method's ``edit``."""

    method: str
    edits: list[Annotated[Edit, PlainValidator(edit_of)]]
    settings: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    outcomes: dict[str, Outcome] = {}
    versions: dict[str, str] = {}
    time: str = ""
    seconds: float = Field(default=0.0, ge=0)
    dtype: str = ""
    chat: bool | None = None
    template: str | None = None
    system: str | None = None
    rounded: dict[str, float] = {}
    targets: list[str] = []

    @model_validator(mode="after")
    def _of_these_edits(self) -> Self:
        if strange := set(self.outcomes) - {edit.id for edit in self.edits}:
            raise ValueError(f"an outcome is of {min(strange)!r}, which is none of the edits")
        return self


class Meta(Record):
    """``Patch.meta``."""

    model: Model | None = None
    made: list[Made] = []
    transformed: list[dict[str, Any]] = []
    reverted: list[dict[str, Any]] = []
    scaled: float = 1.0

    @model_validator(mode="after")
    def _not_null(self) -> Self:
        if self.model is None and "model" in self.model_fields_set:
            raise ValueError("model is null; leave it out")
        return self


class PartRecord(BaseModel):
    """A part: the name of its class, and what its tensors do not say."""

    model_config = STRICT

    kind: str
    config: dict[str, Any]


class Header(BaseModel):
    """The header of a patch file."""

    model_config = STRICT

    parts: list[PartRecord] = Field(max_length=MOST_PARTS)
    meta: Meta
