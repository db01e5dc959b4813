"""Plain data that all layers share: requested changes, questions about them, measurements."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, cast, get_args

from errata.errors import BadInput
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


def check_text(text: Any, what: str) -> None:
    """Raises :class:`BadInput` for what is no text, and half a character in one, which no tokenizer takes."""
    if not isinstance(text, str):
        raise BadInput(f"{what} must be text, found {type(text).__name__}: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{what} holds half of a character ({text[error.start]!r} at {error.start}), which is no text: "
            f"{text[:60]!r}; mend it where it comes from, or leave it out"
        ) from error


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
        for field in fields(self):
            value = getattr(self, field.name)
            wanted, words = (int, "a whole number") if field.name == "at" else (str, "text")
            if value is None and field.name in ("target_true", "at"):
                continue
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise BadInput(f"an edit's {field.name} must be {words}, found {type(value).__name__}: {value!r}")
            if isinstance(value, str):
                check_text(value, f"an edit's {field.name}")
        if not self.subject.strip():
            raise BadInput(f"the subject of the edit {self.prompt!r} is empty; name what the fact is about")
        if not self.target_new.strip():
            raise BadInput(f"the target of the edit {self.prompt!r} is empty; give the answer it shall have")
        object.__setattr__(self, "subject", self.subject.strip(" "))
        prompt, at = placed(self.prompt.rstrip(" "), self.subject, self.at)
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "at", None if at == last_word(prompt, self.subject) else at)
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
            raise BadInput(f"an edit has no key {', '.join(unknown)}; its keys are {', '.join(names)}")
        if missing := [name for name in names[:3] if name not in record]:
            raise BadInput(f"an edit needs {', '.join(missing)}; found only {', '.join(record) or 'nothing'}")
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object; :meth:`from_json` gives back an equal edit."""
        return asdict(self)


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
            raise BadInput(f"unknown kind of probe {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.rule not in ("any", "all"):
            raise BadInput(f"a probe's rule is 'any' or 'all', found {self.rule!r}")
        for name in ("answers", "require", "references"):
            value = getattr(self, name)
            if isinstance(value, str | Probe):
                raise BadInput(f"a probe's {name} are a tuple, found {value!r}; write ({value!r},)")
            object.__setattr__(self, name, tuple(value))
        for text in (self.prompt, *self.answers, *self.references, self.rival, self.group, self.label):
            if text is not None:
                check_text(text, "what a probe holds")
        object.__setattr__(self, "answers", tuple(answer.strip() for answer in self.answers))
        rival = (self.rival or "").strip()
        object.__setattr__(self, "rival", None if rival in ("", *self.answers) else rival)
        if "" in self.answers:
            raise BadInput(f"an answer of the probe {self.prompt!r} is empty; leave it out")


@dataclass(frozen=True)
class Case:
    """One item of a data set: edits that belong together, and the questions about them."""

    id: str
    edits: tuple[Edit, ...]
    probes: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        object.__setattr__(self, "probes", tuple(self.probes))
        if not self.edits:
            raise BadInput(f"case {self.id!r} has no edit")


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

    ``protocol`` names the rules by which it was asked and scored, ``label`` is the probe's. ``match`` is how an answer
    was compared with the accepted ones, ``after_edits`` the number of edits made before. ``error`` stands in the place
    of ``after`` where a verb was unsupported.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    model: str = ""
    method: str = ""
    settings: str = ""
    data: str = ""
    seed: int = 0
    setting: str = ""
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
