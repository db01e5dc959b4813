"""A review as a value: what was measured and asked, what moved, and which guards were kept. JSON there and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import TypeAdapter, ValidationError

from errata.errors import BadInput, Refused
from errata.files import write_text
from errata.inputs import parsed, read_text
from errata.printable import shown
from errata.report.folds import Summary, summary
from errata.report.rows import record_of
from errata.review.guards import JSON, Guard
from errata.types import Edit, Row

Verdict = Literal["took", "missed", "kept", "moved", "unknown"]
BAD = ("missed", "moved")


@dataclass(frozen=True)
class Question:
    """A question and its answers before and after; None where the model could not be asked.

    What should change ``took`` (an ``expected`` answer is given now) or is ``missed``; what should stay is ``kept``
    (the answer is the one given before) or ``moved``. ``label`` says where the question comes from.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = JSON

    case: str
    kind: str
    prompt: str
    before: str | None
    after: str | None
    expected: tuple[str, ...]
    verdict: Verdict
    label: str = ""


@dataclass(frozen=True)
class Review:
    """What a patch does to a model, asked before and after.

    ``edits`` is how many the patch makes, ``asked`` how many of them were asked about. ``rows`` are the measurements:
    of answers as :func:`errata.evaluate` gives them, of kinds ``text`` (loss and KL on canary text), ``block``
    (relative change of a block's output) and ``drift`` (relative norm and ranks of a weight's change). ``parts`` is the
    patch's own summary, ``notes`` what could not be asked or measured. ``patch`` names the patch
    (:attr:`errata.Patch.digest`), ``edited`` are all edits that it holds. Equal to what :meth:`from_json` makes of its
    JSON.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = JSON

    model: str
    fingerprint: str
    method: str
    edits: int
    asked: int
    rows: tuple[Row, ...]
    questions: tuple[Question, ...]
    guards: tuple[Guard, ...]
    parts: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    chat: str = ""
    seed: int = 0
    seconds: float = 0.0
    time: str = ""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    patch: str = ""
    edited: tuple[Edit, ...] = ()

    @property
    def refused(self) -> tuple[Guard, ...]:
        """The guards that were not kept."""
        return tuple(guard for guard in self.guards if guard.passed is False)

    @property
    def passed(self) -> bool:
        """Whether no guard refuses the patch."""
        return not self.refused

    @property
    def moved(self) -> tuple[Question, ...]:
        """The questions whose answers are not what they should be now: missed edits, and what did not stay."""
        return tuple(question for question in self.questions if question.verdict in BAD)

    @property
    def summary(self) -> list[Summary]:
        """Means over cases, before and after, of each kind and metric."""
        return summary(self.rows)

    @property
    def sites(self) -> dict[str, dict[str, float]]:
        """Changed weight -> relative ``norm``, ``rank`` and ``effective`` rank of its change."""
        return self._by_place("drift")

    @property
    def blocks(self) -> dict[str, float]:
        """Block -> the relative change of its output, in order."""
        return {path: of["output_change"] for path, of in self._by_place("block").items()}

    def _by_place(self, kind: str) -> dict[str, dict[str, float]]:
        places: dict[str, dict[str, float]] = {}
        for row in self.rows:
            if row.kind == kind and row.after is not None:
                places.setdefault(row.case, {})[row.metric] = float(row.after)
        return places

    def check(self) -> Self:
        """The review itself; raises :class:`Refused`, which names the guards, where one refuses the patch."""
        if self.refused:
            raise Refused(
                f"the review refuses the patch: {'; '.join(map(str, self.refused))}; make it anew (of fewer "
                "edits, weaker, by another method), or move the limit"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """The review as a JSON object, with ``passed``."""
        lists = ("rows", "questions", "guards", "edited")
        record = {name: value for name, value in vars(self).items() if name not in lists}
        return {
            "passed": self.passed,
            **record,
            "parts": list(self.parts),
            "notes": list(self.notes),
            "edited": [edit.to_json() for edit in self.edited],
            "guards": [{**asdict(guard), "passed": guard.passed} for guard in self.guards],
            "questions": [asdict(q) | {"expected": list(q.expected)} for q in self.questions],
            "rows": [record_of(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, record: Any) -> "Review":
        """The review of :meth:`to_json`. Raises :class:`BadInput`, which names the field that is wrong."""
        if not isinstance(record, Mapping):
            raise BadInput(f"a review is a JSON object, found {shown(record)}; `errata review -o FILE.json` writes one")
        known = {name: value for name, value in record.items() if name != "passed"}
        guards = known.get("guards")
        if isinstance(guards, list):
            known["guards"] = [
                {k: v for k, v in g.items() if k != "passed"} if isinstance(g, Mapping) else g for g in guards
            ]
        try:
            return _REVIEW.validate_json(json.dumps(known))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the object"
            raise BadInput(f"no review: {where}: {first['msg']}; `errata review -o FILE.json` writes one") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"no review ({error}); `errata review -o FILE.json` writes one") from error

    def save(self, path: str | Path) -> Path:
        """Writes the JSON, whole or not at all, and returns the path."""
        write_text(path, json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Review":
        """The review in a file of :meth:`save`. Raises :class:`BadInput`."""
        try:
            return cls.from_json(parsed(read_text(Path(path), "a review")))
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error


_REVIEW = TypeAdapter(Review)
