"""The review itself: what is asked, before and after, and what becomes of it."""

import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.answers import answer_of
from errata.errors import BadInput, Unsupported
from errata.evaluation.asking import Replies
from errata.evaluation.baseline import Baseline, baseline
from errata.evaluation.drift import drift
from errata.evaluation.edits import cases_of, makers, own_cases
from errata.evaluation.evaluate import evaluated
from errata.evaluation.metrics import generated_agreement
from errata.evaluation.protocols import CHANGED, STAYING
from errata.evaluation.scorers import GradedReplies
from errata.model.fingerprint import versions
from errata.model.hf import HFLM
from errata.patch.patch import EMPTY, Patch
from errata.review.canary import Pulse, canary_of
from errata.review.guards import guards_of, limits
from errata.review.probes import pool, probes_for
from errata.review.record import Question, Review, Verdict
from errata.types import Case, Edit, Probe, Row

log = logging.getLogger(__name__)
LIMIT = 100  # edits that are asked about
SIZES = ("norm", "rank", "effective")  # of a change of weights, as errata.evaluation.drift.Drift
MADE = {  # kinds of questions -> their words where there are none
    "paraphrase": "in other words",
    "neighborhood": "about others nearby",
    "same_subject": "about other facts of the subject",
    "multi_hop": "of two hops (they come with cases alone)",
}


def review(
    lm: HFLM,
    patch: Patch,
    cases: Sequence[Case] | None = None,
    texts: Iterable[str] | None = None,
    *,
    guards: Mapping[str, float | None] | None = None,
    prior: Patch = EMPTY,
    limit: int | None = LIMIT,
    seed: int = 0,
) -> Review:
    """What the patch changed and what it broke, asked before and after (generated answers), with guards.

    Questions are those of ``cases`` that hold edits of the patch; of a model of the world those that the world's cases
    have; for all other edits they are made (:func:`errata.review.probes.probes_for`) from ``texts``, by default those
    that go with the model or ones sampled from it. Texts far from the edits are the canary set. ``guards`` maps names
    of :data:`errata.review.guards.RULES` to limits, None for none. With ``prior`` in force "before" is that patch, and
    only edits that it does not hold are asked about. Of more edits than ``limit`` some are drawn, by ``seed``. Raises
    :class:`BadInput` for a patch that names no edits where no cases are given; :meth:`Review.check` refuses.
    """
    limits(guards)
    patch.check(lm)
    return reviewed(before_review(lm, patch, cases, texts, prior=prior, limit=limit, seed=seed), patch, guards)


@dataclass(frozen=True)
class Before:
    """What a review asks, and the model's replies before the edit: for one patch, or several of the same edits."""

    lm: HFLM
    prior: Patch
    edits: list[Edit]
    cases: list[Case]
    baseline: Baseline
    pulse: Pulse
    notes: list[str]
    seed: int
    seconds: float


def before_review(
    lm: HFLM,
    patch: Patch,
    cases: Sequence[Case] | None = None,
    texts: Iterable[str] | None = None,
    *,
    prior: Patch = EMPTY,
    limit: int | None = LIMIT,
    seed: int = 0,
) -> Before:
    """The questions of :func:`review` about a patch's edits, asked before them."""
    start = time.perf_counter()
    prior.check(lm)
    lm.check()
    read, notes = pool(lm, texts, seed), _sampled(lm, texts)
    edits = _new(patch, prior)
    asked = _cases(lm, patch, _drawn(edits, limit, seed, notes), cases, read, seed, notes)
    canary = canary_of(lm, edits or [edit for case in asked for edit in case.edits], read, seed)
    asked = canary.joined(asked)
    with prior.applied(lm) as unedited:
        answers, pulse = baseline(unedited, asked), Pulse.of(unedited, canary)
    return Before(lm, prior, edits, asked, answers, pulse, notes, seed, time.perf_counter() - start)


def reviewed(before: Before, patch: Patch, guards: Mapping[str, float | None] | None = None) -> Review:
    """The review of a patch of the edits that were asked about before."""
    start, lm, notes = time.perf_counter(), before.lm, list(before.notes)
    about: dict[str, Any] = {"model": lm.name, "method": makers(patch), "chat": lm.asked_label, "seed": before.seed}
    about |= {"setting": "review", "after_edits": len(patch.edits)}
    with patch.applied(lm) as edited:
        rows, replies = evaluated(before.baseline, edited, before.cases, **about)
        rows += before.pulse.rows(Pulse.of(edited, before.pulse.canary), **about)
    rows += _drift(lm, patch, about, notes)
    notes += list(dict.fromkeys(f"not measured: {row.error}" for row in rows if row.error))
    return Review(
        model=lm.name,
        fingerprint=lm.fingerprint,
        method=makers(patch),
        edits=len(before.edits),
        asked=sum(len(case.edits) for case in before.cases),
        rows=tuple(rows),
        questions=tuple(q for case in before.cases for q in _questions(case, before.baseline.replies, replies)),
        guards=guards_of(rows, guards),
        parts=tuple(patch.summary()),
        notes=tuple(notes),
        chat=lm.asked_label,
        seed=before.seed,
        seconds=round(before.seconds + time.perf_counter() - start, 1),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        versions=versions(),
        patch=patch.digest,
        edited=tuple(patch.edits),
    )


# What is asked -----------------------------------------------------------------------------------


def _new(patch: Patch, prior: Patch) -> list[Edit]:
    """The patch's edits that the prior does not hold; of those with one prompt the last, which is in force."""
    held = {edit.id for edit in prior.edits}
    return list({edit.prompt: edit for edit in patch.edits if edit.id not in held}.values())


def _sampled(lm: HFLM, texts: Iterable[str] | None) -> list[str]:
    own = texts is None and lm.resources.texts is None
    return ["the texts were sampled from the model itself; give some with --data"] * own


def _drawn(edits: list[Edit], limit: int | None, seed: int, notes: list[str]) -> list[Edit]:
    if limit is not None and limit < 1:
        raise BadInput(f"{limit} edits cannot be asked about; give a limit of 1 at least, or None for all")
    if limit is None or len(edits) <= limit:
        return edits
    notes.append(f"asked about {limit} of {len(edits)} edits, drawn by seed {seed}; --limit asks about more")
    return random.Random(f"review {seed}").sample(edits, limit)


def _cases(
    lm: HFLM,
    patch: Patch,
    edits: Sequence[Edit],
    given: Sequence[Case] | None,
    texts: Sequence[str],
    seed: int,
    notes: list[str],
) -> list[Case]:
    """The cases that are asked: those given that hold edits of the patch, and for other edits lent or made ones."""
    if not patch.edits and not given:
        cases_of(patch)  # says what to do
    wanted = {(edit.prompt, edit.target_new): edit for edit in edits}
    held = [case for case in given or () if any((e.prompt, e.target_new) in wanted for e in case.edits)]
    if given and not patch.edits:
        held = list(given)
    elif given and len(held) < len(given):
        notes.append(f"{len(given) - len(held)} of the {len(given)} cases given hold no edit of the patch: left out")
    covered = {(e.prompt, e.target_new) for case in held for e in case.edits if case.probes}
    held = [case for case in held if case.probes]
    left = [edit for key, edit in wanted.items() if key not in covered]
    lent = {case.edits[0].id: case for case in own_cases(lm, patch, seed) if case.probes} if left else {}
    made = probes_for(lm, [edit for edit in left if edit.id not in lent], texts, seed)
    cases = [*held, *(lent[edit.id] for edit in left if edit.id in lent), *made]
    for kind, words in MADE.items():
        lacking = sum(all(probe.kind != kind for probe in case.probes) for case in cases)
        if lacking:
            notes.append(f"no questions {words} for {lacking} of {len(cases)} cases")
    return cases


# Answers -----------------------------------------------------------------------------------------


def _questions(case: Case, before: Replies, after: Replies) -> Iterable[Question]:
    for edit in case.edits:
        yield _question(case, "edit", Probe("paraphrase", edit.prompt, (edit.target_new,)), before, after)
    for probe in case.probes:
        if probe.kind in (*CHANGED, *STAYING):
            yield _question(case, probe.kind, probe, before, after)


def _question(case: Case, kind: str, probe: Probe, before: Replies, after: Replies) -> Question:
    """With the answers as far as they are compared."""
    was, now = (replies.answers.get(probe.prompt) for replies in (before, after))
    verdict: Verdict = "unknown"
    if was is not None and now is not None:
        if kind in CHANGED:
            verdict = "took" if GradedReplies(after).right(probe) else "missed"
        else:
            verdict = "kept" if generated_agreement(was, now, probe.answers) else "moved"
    before_text, after_text = (None if text is None else answer_of(text, probe.answers) for text in (was, now))
    return Question(case.id, kind, probe.prompt, before_text, after_text, probe.answers, verdict, probe.label)


def _drift(lm: HFLM, patch: Patch, about: dict[str, Any], notes: list[str]) -> list[Row]:
    """Rows of the relative norm and the ranks of each changed matrix; read while no patch is in force."""
    try:
        drifts = drift(lm, patch)
    except Unsupported as error:
        notes.append(f"changes of weights are not measured: {error}")
        return []
    values = ((site, name, float(vars(change)[name])) for site, change in drifts.items() for name in SIZES)
    return [
        Row(kind="drift", case=site, probe=site, metric=name, before=0.0, after=value, **about)
        for site, name, value in values
    ]
