"""Asks a model before and after, and writes down what changed. Knows text, and no method.

    before = baseline(lm, cases)                       # the unedited model, once
    with patch.applied(lm) as edited:
        rows = evaluate(before, edited, cases)

By whose rules it asks and scores is a value, ``errata.evaluation.protocols``; what each measure needs is
``errata.evaluation.scorers``.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from errata.answers import cut
from errata.errors import BadInput, Unsupported, unknown
from errata.evaluation import protocols
from errata.evaluation.metrics import Tfidf, forced_accuracy
from errata.evaluation.protocols import METRICS as METRICS
from errata.evaluation.protocols import Speech
from errata.evaluation.scorers import MEASURES, Asked, Heard, Measure, Replies, Verdicts
from errata.files import write_text
from errata.types import MODES, Case, Edit, Mode, Probe, Row, Score

if TYPE_CHECKING:
    from errata.model.lm import LM

LABELS = ("model", "method", "settings", "data", "seed", "setting")
SAME_FACT = ("paraphrase", "question", "alias")  # what competes there is the edit's old answer


class Judge(Protocol):
    """Who says whether an answer is right, in the place of a match: (question, accepted answers, answer) in batches."""

    @property
    def name(self) -> str: ...
    def __call__(self, asked: Sequence[tuple[str, tuple[str, ...], str]]) -> list[bool]: ...


@dataclass(frozen=True)
class Baseline:
    """The unedited model's replies to everything that some cases ask, and how they were asked for.

    ``idf`` are the word frequencies of all reference texts of these cases, which RS weighs words with.
    """

    protocol: protocols.Protocol
    modes: tuple[Mode, ...]
    replies: Replies
    idf: dict[str, float] = field(default_factory=dict[str, float])

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, at once or not at all."""
        record = {
            "protocol": self.protocol.name,
            "modes": self.modes,
            "max_new_tokens": self.protocol.answer.tokens,
            "generated": [[*asked, text] for asked, text in self.replies.texts.items()],
            "forced": [[*asked, asdict(score)] for asked, score in self.replies.scores.items()],
            "next": [[p, base64.b85encode(its.tobytes()).decode()] for p, its in self.replies.nexts.items()],
            "idf": self.idf,
        }
        write_text(path, json.dumps(record))

    @classmethod
    def load(cls, path: str | Path) -> "Baseline":
        """What :meth:`save` wrote."""
        import numpy as np

        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            texts = {(prompt, what): text for prompt, what, text in record["generated"]}
            scores = {
                (prompt, answer): Score(**{name: tuple(entries) for name, entries in score.items()})
                for prompt, answer, score in record["forced"]
            }
            nexts = {p: np.frombuffer(base64.b85decode(its), np.float32) for p, its in record["next"]}
            chosen = _with_tokens(protocols.protocol(record["protocol"]), record["max_new_tokens"])
            return cls(chosen, tuple(record["modes"]), Replies(texts, scores, nexts), record["idf"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} holds no baseline ({error}); make one with errata.baseline(lm, cases)") from error


def baseline(
    lm: "LM",
    cases: Sequence[Case],
    modes: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    *,
    protocol: "str | protocols.Protocol" = "errata",
) -> Baseline:
    """The model's replies before any edit, to every prompt of the cases once.

    ``modes`` are the protocol's own where they are not given (of ``errata``: generated alone), and so is the length
    of an answer.
    """
    chosen = _with_tokens(protocols.protocol(protocol), max_new_tokens)
    asked_in = modes_of(chosen, modes)
    units = [unit for case in cases for unit in _units(case, chosen)]
    replies = Replies()
    for mode in asked_in:
        required = [p for unit in units if unit.measures(mode) for p in _required(unit.probes)]
        found = _ask(lm, _wanted(units, required, mode), chosen)
        replies = Replies(*(old | new for old, new in zip(vars(replies).values(), vars(found).values(), strict=True)))
    references = dict.fromkeys(text for unit in units for probe in unit.probes for text in probe.references)
    idf = Tfidf.of(references).idf if references and "reference" in chosen.asks.get("generation", ()) else {}
    return Baseline(chosen, asked_in, replies, idf)


def evaluate(
    before: Baseline,
    edited: "LM",
    cases: Sequence[Case],
    *,
    after_edits: int | None = None,
    judge: Judge | None = None,
    **labels: Any,
) -> list[Row]:
    """A row for each case, probe (or group of probes), metric and mode of the baseline, by the baseline's protocol.

    ``labels`` (model, method, settings, data, seed, setting) are copied into the rows; ``after_edits`` is the
    number of edits in force, the cases' own where it is not given. Each distinct prompt is asked once. A ``judge``
    takes the place of the protocol's match on generated answers. Where the model cannot answer in some mode, its rows
    say so in ``error``. Raises :class:`BadInput` where ``before`` is a baseline of other cases.
    """
    if extra := sorted(set(labels) - set(LABELS)):
        raise BadInput(f"a row has no label {', '.join(extra)}; the labels are {', '.join(LABELS)}")
    if after_edits is None:
        after_edits = sum(len(case.edits) for case in cases)
    its = before.protocol
    units = [unit for case in cases for unit in _units(case, its)]
    for mode in before.modes:
        _check_covered(before, units, mode)
    tfidf = Tfidf(before.idf) if before.idf else None
    match = its.match if judge is None else f"judge {judge.name}"
    rows: list[Row] = []
    for mode in before.modes:
        asked = [unit for unit in units if unit.measures(mode)]
        judged = [p for unit in asked if unit.judged(mode) for p in unit.probes]
        judged += [p for unit in asked for p in _required(unit.probes) if mode == "generated"]
        was = Heard(before.replies, its.match, _verdicts(judge, judged, before.replies), tfidf)
        counted = [unit.where_required(was, mode) for unit in asked]
        replies, error = _ask_again(edited, [unit for unit in counted if unit.probes], mode, its)
        now = None
        if replies is not None:
            judged = [p for unit in counted if unit.judged(mode) for p in unit.probes]
            now = Heard(replies, its.match, _verdicts(judge, judged, replies), tfidf)
        for unit, full in zip(counted, asked, strict=True):
            for measured in (*full.conditions(unit), *unit.values(mode, was, now, match)):
                shared: Any = {"mode": mode, "after_edits": after_edits, "protocol": its.name, **labels}
                rows.append(Row(**shared, **measured, error=error if measured["after"] is None else None))
    return rows


# What is asked -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
    """What becomes one row of each metric: an edit's own prompt, a probe, or a group of probes."""

    case: str
    kind: str
    name: str
    probes: tuple[Probe, ...]
    protocol: protocols.Protocol

    def measures(self, mode: Mode) -> list[tuple[str, Measure]]:
        """The protocol's measures that can be taken of these probes."""
        names = self.protocol.asked_of(self.kind, mode)
        known = [(name, MEASURES[name, mode]) for name in names if (name, mode) in MEASURES]
        return [(name, measure) for name, measure in known if measure.of(self.probes)]

    def judged(self, mode: Mode) -> bool:
        """Whether the answers themselves are held against the accepted ones."""
        return any(not measure.match for _, measure in self.measures(mode))

    def where_required(self, before: Heard, mode: Mode) -> "_Unit":
        """With the probes alone whose required probes were answered before the edit."""
        kept = tuple(p for p in self.probes if all(_answered(other, before, mode) for other in p.require))
        return replace(self, probes=kept)

    def conditions(self, counted: "_Unit") -> Iterator[dict[str, Any]]:
        """Whether what these probes require held, where the protocol wants that said."""
        if self.protocol.executed and any(probe.require for probe in self.probes):
            held = float(bool(counted.probes))
            yield self._row("executed", "conditions", held, held)

    def values(self, mode: Mode, was: Heard, now: Heard | None, match: str) -> Iterator[dict[str, Any]]:
        """The value of each measure, before and after."""
        for name, measure in self.measures(mode):
            its = measure.of(self.probes)
            after = None if now is None else measure.value(its, was, now)
            yield self._row(name, measure.match or match, measure.value(its, was, was), after)

    def _row(self, metric: str, match: str, before: float, after: float | None) -> dict[str, Any]:
        names = {"case": self.case, "probe": self.name, "kind": self.kind, "metric": metric, "match": match}
        label = self.probes[0].label if self.probes else ""
        return {**names, "label": label, "before": before, "after": after}


def _units(case: Case, protocol: protocols.Protocol) -> Iterator[_Unit]:
    """The case's units whose kind the protocol asks, with prompts in the protocol's form."""
    for edit in case.edits if "edit" in protocol.asks else ():
        probe = Probe("paraphrase", protocol.asks_in(edit.prompt), (edit.target_new,), rival=edit.target_true)
        yield _Unit(case.id, "edit", edit.prompt, (probe,), protocol)
    grouped: dict[tuple[str, object], list[Probe]] = {}
    for number, probe in enumerate(case.probes):
        if probe.kind in protocol.asks:
            alone = "generation" if probe.kind == "generation" else number  # a case's texts are read as one
            grouped.setdefault((probe.kind, alone if probe.group is None else probe.group), []).append(probe)
    for probes in grouped.values():
        name = probes[0].group or probes[0].prompt
        asked = tuple(_in_form(probe, case.edits, protocol) for probe in probes)
        yield _Unit(case.id, probes[0].kind, name, asked, protocol)


def _in_form(probe: Probe, edits: Sequence[Edit], protocol: protocols.Protocol) -> Probe:
    """The probe as the protocol asks it; of the edited fact in other words, the old answer is the rival."""
    rival = probe.rival
    if rival is None and probe.kind in SAME_FACT:
        rival = next((edit.target_true for edit in edits if edit.target_new in probe.answers), None)
    require = tuple(_in_form(other, edits, protocol) for other in probe.require)
    return replace(probe, prompt=protocol.asks_in(probe.prompt), rival=rival, require=require)


def _required(probes: Iterable[Probe]) -> Iterator[Probe]:
    """What the probes require, and what that requires in turn."""
    for probe in probes:
        yield from probe.require
        yield from _required(probe.require)


@dataclass(frozen=True)
class _Wanted:
    """What to ask, each once."""

    texts: tuple[Asked, ...] = ()
    scores: tuple[Asked, ...] = ()
    nexts: tuple[str, ...] = ()


def _wanted(units: Iterable[_Unit], required: Iterable[Probe], mode: Mode) -> _Wanted:
    taken = [(measure, measure.of(unit.probes)) for unit in units for _, measure in unit.measures(mode)]
    taken += [(MEASURES["accuracy", mode], [probe]) for probe in required]
    asked = tuple(dict.fromkeys(its for measure, probes in taken for its in measure.hears(probes)))
    if mode == "generated":
        return _Wanted(texts=asked)
    nexts = dict.fromkeys(probe.prompt for measure, probes in taken if measure.next for probe in probes)
    return _Wanted(scores=asked, nexts=tuple(nexts))


def _with_tokens(protocol: protocols.Protocol, tokens: int | None) -> protocols.Protocol:
    return protocol if tokens is None else replace(protocol, answer=replace(protocol.answer, tokens=tokens))


def modes_of(protocol: protocols.Protocol, modes: Sequence[str] | None) -> tuple[Mode, ...]:
    """The modes in which a protocol is asked: its own, or those given, where it knows them."""
    if modes is None:
        return protocol.modes
    chosen = (modes,) if isinstance(modes, str) else tuple(dict.fromkeys(modes))
    if not chosen:
        raise BadInput(f"no mode was given; expected one or more of {', '.join(MODES)}")
    for mode in chosen:
        if mode not in MODES:
            raise unknown("mode", mode, list(MODES))
        if mode not in (*protocol.modes, *protocol.also):
            raise BadInput(
                f"the protocol {protocol.name} asks nothing {mode}; its modes are {', '.join(protocol.modes)}"
            )
    return cast(tuple[Mode, ...], chosen)


def _check_covered(before: Baseline, units: Sequence[_Unit], mode: Mode) -> None:
    required = [p for unit in units if unit.measures(mode) for p in _required(unit.probes)]
    wanted = _wanted(units, required, mode)
    missing = [asked[0] for asked in wanted.texts if asked not in before.replies.texts]
    missing += [asked[0] for asked in wanted.scores if asked not in before.replies.scores]
    missing += [prompt for prompt in wanted.nexts if prompt not in before.replies.nexts]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(
            f"the baseline has no {mode} reply to {missing[0]!r}{more}; "
            "make it on the unedited model with errata.baseline(lm, cases) of these cases"
        )


# Asking and judging ------------------------------------------------------------------------------


def _ask_again(
    edited: "LM", units: Sequence[_Unit], mode: Mode, protocol: protocols.Protocol
) -> tuple[Replies | None, str | None]:
    """The edited model's replies, or why there are none."""
    try:
        return _ask(edited, _wanted(units, (), mode), protocol), None
    except Unsupported as error:
        return None, str(error) or "unsupported"


def _ask(lm: "LM", wanted: _Wanted, protocol: protocols.Protocol) -> Replies:
    texts: dict[Asked, str] = {}
    for speech, asked in (
        (protocol.answer, [its for its in wanted.texts if not its[1]]),
        (protocol.text, [its for its in wanted.texts if its[1]]),
    ):
        texts |= zip(asked, _say(lm, asked, speech), strict=True) if asked else ()
    scores: dict[Asked, Score] = {}
    if wanted.scores:
        found = lm.score([prompt for prompt, _ in wanted.scores], [answer for _, answer in wanted.scores])
        scores = dict(zip(wanted.scores, found, strict=True))
    nexts: dict[str, Any] = {}
    if wanted.nexts:
        nexts = dict(zip(wanted.nexts, lm.next_logprobs(wanted.nexts).astype("float32"), strict=True))
    return Replies(texts, scores, nexts)


def _say(lm: "LM", asked: Sequence[Asked], speech: Speech) -> list[str]:
    """What the model says to each prompt, cut as the protocol cuts it."""
    prompts = [prompt for prompt, _ in asked]
    if speech.total is None:
        said = lm.generate(prompts, speech.tokens, until_answer=speech.until_answer)
    else:
        prolong = getattr(lm, "prolong", None)
        if prolong is None:
            raise Unsupported("what is in force cannot write texts of a given length in all")
        seeds = [zlib.crc32("\n".join(its).encode()) for its in asked]  # a draw depends on nothing else
        said = prolong(prompts, [speech.total(prompt) for prompt in prompts], top_k=speech.top_k, seeds=seeds)
    front = prompts if speech.with_prompt else [""] * len(prompts)
    return [a + cut(b, speech.stops, speech.markers) for a, b in zip(front, said, strict=True)]


def _verdicts(judge: Judge | None, probes: Sequence[Probe], replies: Replies) -> Verdicts | None:
    """What a judge says to each distinct answer, asked together; None without a judge."""
    if judge is None:
        return None
    keys = list(dict.fromkeys((probe.prompt, probe.answers) for probe in probes))
    said = judge([(prompt, answers, replies.texts[prompt, ""]) for prompt, answers in keys]) if keys else []
    return dict(zip(keys, said, strict=True))


def _answered(probe: Probe, heard: Heard, mode: Mode) -> bool:
    """Whether the probe, and what it requires in turn, was answered right."""
    if not all(_answered(other, heard, mode) for other in probe.require):
        return False
    if mode == "generated":
        return heard.answered(probe)
    return bool(forced_accuracy(heard.score(probe, answer) for answer in probe.answers))
