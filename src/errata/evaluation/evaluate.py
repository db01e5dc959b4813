"""Rows of an edited model: what it replies to some cases, beside what the unedited model replied. Knows no method.

    before = baseline(lm, cases)                       # the unedited model, once
    with patch.applied(lm) as edited:
        rows = evaluate(before, edited, cases)

What is asked and how it is scored is a value, ``errata.evaluation.protocols``; a model is anything with the verbs of
:class:`errata.model.lm.LM`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from errata.errors import BadInput
from errata.evaluation.asking import Replies, Requests, ask
from errata.evaluation.baseline import Baseline
from errata.evaluation.metrics import Tfidf
from errata.evaluation.scorers import GradedReplies, Verdicts
from errata.types import Case, Probe, Row

if TYPE_CHECKING:
    from errata.model.lm import LM

LABELS = ("model", "method", "settings", "data", "seed", "setting", "chat")


class Judge(Protocol):
    """Decides whether answers are right, in the place of a protocol's match."""

    @property
    def name(self) -> str:
        """Stands in the rows."""
        ...

    def __call__(self, answers: Sequence[tuple[str, tuple[str, ...], str]]) -> list[bool]:
        """Whether each is right; an entry is (question, accepted answers, given answer)."""
        ...


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

    ``labels`` (model, method, settings, data, seed, setting, chat) are copied into the rows; ``after_edits`` is the
    number of edits in force, by default the cases' own. Each distinct prompt is asked once. A ``judge`` takes the place
    of the protocol's match on generated answers. Where a model does not support a verb, rows say so in ``error``.
    Raises :class:`BadInput` where ``before`` is a baseline of other cases.
    """
    return evaluated(before, edited, cases, after_edits=after_edits, judge=judge, **labels)[0]


def evaluated(
    before: Baseline,
    edited: "LM",
    cases: Sequence[Case],
    *,
    after_edits: int | None = None,
    judge: Judge | None = None,
    **labels: Any,
) -> tuple[list[Row], Replies]:
    """The rows of :func:`evaluate`, and the edited model's replies that they were made of."""
    if extra := sorted(set(labels) - set(LABELS)):
        raise BadInput(f"a row has no label {', '.join(extra)}; the labels are {', '.join(LABELS)}")
    if after_edits is None:
        after_edits = sum(len(case.edits) for case in cases)
    protocol, groups = before.protocol, before.groups(cases)
    tfidf = Tfidf(before.idf) if before.idf else None
    match = protocol.match if judge is None else f"judge {judge.name}"
    rows, every = list[Row](), Replies()
    for mode in before.modes:
        scored = [group for group in groups if group.scorers(mode)]
        judged = [probe for group in scored if group.compares_answers(mode) for probe in group.probes]
        judged += [probe for group in scored for probe in group.required(mode) if mode == "generated"]
        then = _graded(before.replies, protocol.match, judge, judged, tfidf)
        counted = [group.where_required(then, mode) for group in scored]
        requests = Requests.joined(group.requests(mode) for group in counted)
        judged = [probe for group in counted if group.compares_answers(mode) for probe in group.probes]
        replies = ask(edited, requests, protocol.answer, protocol.text)
        every |= replies
        now = _graded(replies, protocol.match, judge, judged, tfidf)
        shared: Any = {"mode": mode, "after_edits": after_edits, "protocol": protocol.name, **labels}
        for group, left in zip(scored, counted, strict=True):
            rows += [Row(**shared, **about) for about in group.rows(mode, then, now, match, left)]
    return rows, every


def _graded(
    replies: Replies, match: str, judge: Judge | None, judged: Sequence[Probe], tfidf: Tfidf | None
) -> GradedReplies:
    """Replies with a judge's verdicts on these probes' answers, each distinct one judged once."""
    verdicts: Verdicts | None = None
    if judge is not None:
        keys = list(dict.fromkeys((p.prompt, p.answers) for p in judged if p.prompt in replies.answers))
        given = [(prompt, answers, replies.answers[prompt]) for prompt, answers in keys]
        verdicts = dict(zip(keys, judge(given) if given else [], strict=True))
    return GradedReplies(replies, match, verdicts, tfidf)
