# pyright: strict
"""What a journal records: a commit, which is named by the digest of all that it says, its parents' names included."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar, cast

from errata.errors import BadInput
from errata.inputs import parsed
from errata.printable import shown
from errata.types import Edit, as_text

SHORT = 10  # characters of a digest that are shown
MOST_WHY = 100_000  # characters
MOST_AUTHOR = 1000
MOST_REVIEW = 16 * 2**20  # characters of a review as JSON


class Damaged(BadInput):
    """What a journal holds is not what was written there."""


def fact(edit: Edit) -> str:
    """What an edit asks for, as a digest: equal for equal prompts, subjects and targets, whatever their ids."""
    return Edit(edit.prompt, edit.subject, edit.target_new, at=edit.at).id


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a method's ``edit`` whose edits came with a commit: the method and its hyper-parameters."""

    __pydantic_config__: ClassVar[Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    method: str
    settings: dict[str, Any]
    """As they were given; None where the model decides."""
    resolved: dict[str, Any]
    """As they were for this model."""
    time: str
    edits: int
    """How many of the call's edits came with the commit."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A patch on record: who, when, why, from which patches, by which method, and with what it was accepted.

    ``id`` is the SHA-256 of everything else in it, so that equal ids mean equal histories.
    """

    __pydantic_config__: ClassVar[Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    id: str
    parents: tuple[str, ...] = ()
    """Commits that it goes on from: none, one, or for a merge two, ours first."""
    depth: int = 1
    """Commits on the longest way to a first one, both counted."""
    patch: str
    """SHA-256 of the patch file."""
    size: int
    """Bytes of the patch file."""
    author: str
    time: str
    """UTC, as ISO 8601 writes it."""
    why: str
    model: str | None = None
    fingerprint: str | None = None
    """Of the base model; None of a patch that names none."""
    made: tuple[Call, ...] = ()
    edits: tuple[str, ...] = ()
    """:func:`fact` of every edit of the patch, in order."""
    added: tuple[Edit, ...] = ()
    """The edits that the first parent does not have."""
    scores: dict[str, float]
    review: dict[str, Any] | None = None
    how: dict[str, Any] | None = None
    """How a revert or a merge was had."""

    @property
    def short(self) -> str:
        """The beginning of the id."""
        return self.id[:SHORT]

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))


def commit_of(**content: Any) -> Commit:
    """The commit with this content, named by its digest."""
    return Commit(id=digest_of(Commit(id="", **content)), **content)


def digest_of(commit: Commit) -> str:
    """SHA-256 of all that a commit says, but for its id; what it does not say is left out, so that more can be said."""
    said = {name: value for name, value in commit.to_json().items() if name != "id" and value is not None}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_commit(record: Mapping[str, Any]) -> Commit:
    """The commit of a record. Raises :class:`Damaged` for one of other fields, and for one that is not its id's."""
    from pydantic import ValidationError

    named = shown(record.get("id"))
    try:
        commit = _adapter().validate_json(json.dumps(dict(record)), strict=True)
    except (ValidationError, TypeError, ValueError, RecursionError) as error:
        line = str(error).splitlines()[1].strip() if "\n" in str(error) else type(error).__name__
        raise Damaged(f"the commit {named} cannot be read ({line[:100]})") from error
    if digest_of(commit) != commit.id:
        raise Damaged(f"the commit {named} is not what its id says: it was changed")
    return commit


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Commit)


# What is said with a commit ------------------------------------------------------------------------


def now() -> str:
    """The time in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def checked_text(value: Any, what: str, most: int) -> str:
    """The text, which must say something. Raises :class:`BadInput`."""
    text = as_text(value, what, most).strip()
    if not text or "\0" in text:
        raise BadInput(f"{what} is a text that says something, found {shown(value)}")
    return text


def checked_scores(scores: Mapping[str, Any] | None) -> dict[str, float]:
    """The scores, each of which must be a finite number. Raises :class:`BadInput`."""
    checked: dict[str, float] = {}
    for name, value in (scores or {}).items():
        name = checked_text(name, "the name of a score", MOST_AUTHOR)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadInput(f"the score {shown(name)} is a finite number, found {shown(value)}")
        checked[name] = float(value)
    return checked


def checked_review(review: Any) -> dict[str, Any] | None:
    """A review as a JSON object: a mapping, its text, or what has ``to_json``. Raises :class:`BadInput`."""
    if review is None:
        return None
    if callable(to_json := getattr(review, "to_json", None)):
        review = to_json()
    try:
        text = review if isinstance(review, str) else json.dumps(review, allow_nan=False)
        read = parsed(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"a review is a JSON object ({error}); give what `errata review --json` says") from error
    if not isinstance(read, dict):
        raise BadInput(f"a review is a JSON object, found {type(read).__name__}: {shown(read)}")
    if len(text) > MOST_REVIEW:
        raise BadInput(f"a review has {MOST_REVIEW:,} characters at most; this one has {len(text):,}: leave rows out")
    return cast("dict[str, Any]", read)


def calls_of(made: Iterable[Mapping[str, Any]], added: Sequence[Edit]) -> tuple[Call, ...]:
    """Of the calls in a patch's ``meta``, those that some of the added edits are of."""
    new = {fact(edit) for edit in added}
    calls: list[Call] = []
    for record in made:
        count = sum(fact(Edit.from_json(edit)) in new for edit in record["edits"])
        if count:
            settings = {name: dict(record.get(name, {})) for name in ("settings", "resolved")}
            calls.append(Call(method=record["method"], time=record.get("time", ""), edits=count, **settings))
    return tuple(calls)
