"""Plain data that all layers share: requested changes, questions about them, measurements."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, cast, get_args

from errata.errors import BadInput
from errata.printable import listed, shown
from errata.subjects import last_word, placed, template_of

Mode = Literal["forced", "generated"]
Kind = Literal[
    "paraphrase",
    "question",
    "neighborhood",
    "unrelated",
    "same_subject",
    "alias",
    "inverse",
    "logical",  # follows by the relation's own logic: a symmetric or transitive one
    "one_hop",
    "multi_hop",
    "new_single_hop",  # a fact of the chain behind a multi-hop question, as it is after the edits
    "single_hop",  # the same as it was before
    "preservation",  # the other objects of a relation that has several
    "attribute",  # another subject that has the new object already
    "distractor",
    "other_task",
    "in_context",  # a fact that the prompt itself states
    "generation",
]
MODES: tuple[str, ...] = get_args(Mode)
KINDS: tuple[str, ...] = get_args(Kind)


LONGEST = 100_000  # characters of a text of an edit; some 25 thousand tokens
MOST_COMPARED = 10**8  # characters of a prompt times those of its subject: what it takes at most to find it there


def as_text(value: Any, what: str, longest: int | None = None) -> str:
    """The value, which must be a text of whole characters; ``what`` names it in the :class:`BadInput`."""
    if not isinstance(value, str):
        raise BadInput(f"{what} is a text, found {type(value).__name__}: {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{what} holds half a character (a lone surrogate): {shown(value)}; mend it where it comes from"
        ) from error
    if longest is not None and len(value) > longest:
        raise BadInput(f"{what} has {longest:,} characters at most; this one has {len(value):,}: {shown(value)}")
    return value


def _tuple(value: Any, what: str, of: type[Any]) -> tuple[Any, ...]:
    """The items of a list or another collection, which must be of one type; :class:`BadInput` names it."""
    if isinstance(value, of | Mapping) or not isinstance(value, Iterable):
        raise BadInput(f"{what} are a tuple, found {shown(value)}; write ({shown(value)},)")
    items = tuple(cast("Iterable[Any]", value))
    for item in items:
        if of is str:
            as_text(item, f"each of {what}")
        elif not isinstance(item, of):
            raise BadInput(f"each of {what} is an errata.{of.__name__}, found {type(item).__name__}: {shown(item)}")
    return items


@dataclass(frozen=True)
class Edit:
    """One requested change: after ``prompt`` the model shall answer ``target_new``.

    A ``{}`` in the prompt is filled with the subject and is the place where it is meant (the last one counts). Without
    one that is the subject's last occurrence as a word. ``at`` is where it begins, kept only where that is elsewhere.
    Spaces around the subject and behind the prompt are dropped: one is put before the target. ``id`` is a digest of
    the content where none is given. Raises :class:`BadInput`.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    id: str = ""
    at: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "prompt",
            "subject",
            "target_new",
            "id",
            *(["target_true"] if self.target_true is not None else []),
        ):
            as_text(getattr(self, name), f"an edit's {name}", LONGEST)
        at: Any = self.at
        if at is not None and (not isinstance(at, int) or isinstance(at, bool)):
            raise BadInput(f"an edit's at must be a whole number, found {type(at).__name__}: {shown(at)}")
        if not self.subject.strip():
            raise BadInput(f"the subject of the edit {shown(self.prompt)} is empty; name what the fact is about")
        if not self.target_new.strip():
            raise BadInput(f"the target of the edit {shown(self.prompt)} is empty; give the answer it shall have")
        if (filled := len(self.prompt) + self.prompt.count("{}") * len(self.subject)) > LONGEST:
            raise BadInput(f"the prompt of an edit has {LONGEST:,} characters at most; filled, this one has {filled:,}")
        if filled * len(self.subject) > MOST_COMPARED:
            raise BadInput(f"a prompt of {filled:,} characters about a subject of {len(self.subject):,}: shorten one")
        object.__setattr__(self, "subject", self.subject.strip(" "))
        plain = at is None and "{}" not in self.prompt
        prompt, at = placed(self.prompt.rstrip(" "), self.subject, self.at)
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "at", None if plain or at == last_word(prompt, self.subject) else at)
        if not self.id:
            content = [self.prompt, self.subject, self.target_new, *([] if self.at is None else [self.at])]
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
            object.__setattr__(self, "id", digest)

    @property
    def start(self) -> int:
        """Where in the prompt the subject begins."""
        return last_word(self.prompt, self.subject) if self.at is None else self.at

    @property
    def template(self) -> str:
        """The prompt with ``{}`` in the subject's place."""
        return template_of(self.prompt, self.subject, self.at)

    @classmethod
    def from_json(cls, record: Any) -> "Edit":
        """The edit of a JSON object; unknown and missing keys are named."""
        if not isinstance(record, dict):
            raise BadInput(f"an edit is a JSON object, found {type(record).__name__}")
        record = cast("dict[str, Any]", record)
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(record) - set(names)):
            raise BadInput(f"an edit has no key {listed(unknown)}; its keys are {', '.join(names)}")
        if missing := [name for name in names[:3] if name not in record]:
            raise BadInput(f"an edit needs {', '.join(missing)}; found only {listed(record)}")
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object; :meth:`from_json` gives back an equal edit."""
        return dict(vars(self))


@dataclass(frozen=True)
class Probe:
    """A question that is asked before and after an edit.

    Any of ``answers`` is right. Probes of one ``group`` count as one, by ``rule``; of those that share a prompt, all
    answers are expected where a text is searched for them (RippleEdits), any where one answer is given. A probe with
    others in ``require`` counts only where all of those were answered before the edit. ``rival`` is the competing
    object, ``references`` are texts. ``label`` is the data set's own name where that is finer than the kind (a
    criterion of RippleEdits, the hops of MQuAKE); rows carry it. Space around answers and rival is left out, and a
    rival that is an accepted answer is none. Raises :class:`BadInput`, for an empty answer too.
    """

    kind: Kind
    prompt: str
    answers: tuple[str, ...] = ()
    group: str | None = None
    rule: Literal["any", "all"] = "any"
    require: "tuple[Probe, ...]" = ()
    rival: str | None = None
    references: tuple[str, ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"unknown kind of probe {shown(self.kind)}; expected one of {', '.join(KINDS)}")
        if self.rule not in ("any", "all"):
            raise BadInput(f"a probe's rule is 'any' or 'all', found {shown(self.rule)}")
        for name in ("prompt", "label", *(name for name in ("group", "rival") if getattr(self, name) is not None)):
            as_text(getattr(self, name), f"a probe's {name}")
        for name, of in (("answers", str), ("require", Probe), ("references", str)):
            object.__setattr__(self, name, _tuple(getattr(self, name), f"a probe's {name}", of))
        object.__setattr__(self, "answers", tuple(answer.strip() for answer in self.answers))
        rival = (self.rival or "").strip()
        object.__setattr__(self, "rival", None if rival in ("", *self.answers) else rival)
        if "" in self.answers:
            raise BadInput(f"an answer of the probe {shown(self.prompt)} is empty; leave it out")


@dataclass(frozen=True)
class Case:
    """One item of a data set: edits that belong together, and the questions about them."""

    id: str
    edits: tuple[Edit, ...]
    probes: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        as_text(self.id, "a case's id")
        object.__setattr__(self, "edits", _tuple(self.edits, "a case's edits", Edit))
        object.__setattr__(self, "probes", _tuple(self.probes, "a case's probes", Probe))
        if not self.edits:
            raise BadInput(f"case {shown(self.id)} has no edit")


@dataclass(frozen=True)
class Score:
    """The model's prediction of a target, with an entry for each of its tokens.

    ``tokens`` are the target's ids, ``logprobs`` their natural log-probabilities given prompt and earlier tokens,
    ``argmax`` the most likely ids in their places.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    argmax: tuple[int, ...]

    @property
    def total(self) -> float:
        """log P(target | prompt)."""
        return sum(self.logprobs)

    @property
    def correct(self) -> bool:
        """Whether every token is the arg-max: correct in the mode ``forced``."""
        return self.tokens == self.argmax


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. ``before`` and ``after`` are the metric's values without and with the patch.

    ``chat`` says under which chat template the model was asked; ``plain`` where it was not, nothing where its tokenizer
    has none. ``protocol`` names the rules by which it was asked and scored, ``label`` is the probe's. ``match`` is how
    an answer was compared with the accepted ones, ``after_edits`` the number of edits made before. ``error`` stands in
    the place of ``after`` where a verb was unsupported.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    model: str = ""
    method: str = ""
    settings: str = ""
    data: str = ""
    seed: int = 0
    setting: str = ""
    chat: str = ""
    protocol: str = "errata"
    case: str = ""
    probe: str = ""
    kind: str = ""
    label: str = ""
    metric: str = ""
    mode: Mode = "generated"
    match: str = ""
    before: float | bool | None = None
    after: float | bool | None = None
    after_edits: int = 0
    error: str | None = None
