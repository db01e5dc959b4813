"""A review as lines that a person reads: the measures with their limits, what moved, where weights changed.

The one place for the words of the terminal's summary and of the page.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from errata.evaluation.metrics import Mean
from errata.report.folds import mean_of
from errata.report.headings import NAMES
from errata.report.text_table import mean_text
from errata.review.guards import RULES, Guard
from errata.review.record import Question, Review

DASH = "–"
SEVERAL = "two hops and more"
# Kind and metric of rows -> words, and the guard on their mean, in the order in which they are shown.
MEASURES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("edit", "accuracy"): ("edited facts, right", "min_reliability"),
    ("paraphrase", "accuracy"): ("in other words, right", "min_paraphrase"),
    ("question", "accuracy"): ("as questions, right", ""),
    ("alias", "accuracy"): ("by another name, right", ""),
    ("inverse", "accuracy"): ("the other way round, right", ""),
    ("logical", "accuracy"): ("by the relation's logic, right", ""),
    ("one_hop", "accuracy"): ("one hop away, right", ""),
    ("multi_hop", "accuracy"): (f"{SEVERAL}, right", ""),
    ("neighborhood", "agreement"): ("facts nearby, as before", "min_neighborhood"),
    ("same_subject", "agreement"): ("same subject, as before", "min_same_subject"),
    ("unrelated", "agreement"): ("far from it, as before", "min_unrelated"),
    ("text", "kl"): ("KL of the next token, nats", "max_kl"),
    ("text", "loss"): ("loss on text, nats", "max_loss"),
}
ALWAYS = ("edit", "paraphrase", "multi_hop", "neighborhood", "same_subject", "unrelated", "text")  # a dash for unknown
LARGEST = {
    "max_norm": "‖Δ‖ / ‖W‖ of a weight, over √edits",
    "max_block": "relative change of a block's output",
}


@dataclass(frozen=True)
class Line:
    """A measure in words, its numbers as text, its limit if it has one, and whether that is kept."""

    words: str
    before: str
    after: str
    limit: str = ""
    passed: bool | None = None

    @property
    def sign(self) -> str:
        """What became of the limit."""
        return {True: "ok", False: "refused", None: ""}[self.passed]


def measures(review: Review) -> list[Line]:
    """A line for each measure that was asked, or always is; then the largest changes inside of the model."""
    guards = {guard.name: guard for guard in review.guards}
    lines: list[Line] = []
    for (kind, metric), (words, name) in MEASURES.items():
        rows = [r for r in review.rows if (r.kind, r.metric, r.mode) == (kind, metric, "generated")]
        if rows or kind in ALWAYS:
            text = _small if kind == "text" else _mean
            before, after = (text(mean_of(rows, side)) for side in ("before", "after"))
            lines.append(Line(words, before, after, *_limit(guards.get(name))))
    for name, words in LARGEST.items():
        if guard := guards.get(name):
            lines.append(Line(words, DASH, number(guard.value), *_limit(guard)))
    return lines


def _limit(guard: Guard | None) -> tuple[str, bool | None]:
    if guard is None:
        return "", None
    rise = "+" * (guard.name == "max_loss" and guard.limit is not None)
    return guard.bound.replace("≤ ", f"≤ {rise}"), guard.passed


def _mean(mean: Mean | None) -> str:
    return DASH if mean is None else mean_text(mean)


def _small(mean: Mean | None) -> str:
    return number(None if mean is None else mean.mean)


def number(value: float | None) -> str:
    """A number in three digits; a dash for none."""
    if value is None:
        return DASH
    return f"{value:.3g}" if not value or abs(value) >= 1e-3 else f"{value:.0e}"


# In words ----------------------------------------------------------------------------------------


def about(review: Review) -> str:
    """What was reviewed, in a line."""
    some = f" ({review.asked} asked about)" * (review.asked != review.edits)
    facts = f"{review.edits} edit{'s' * (review.edits != 1)}{some}"
    chat = f", {review.chat}" if review.chat else ""
    return f"{facts} by {review.method or 'a method not named'} on {review.model or 'a model'}{chat}"


def verdict(review: Review) -> str:
    """Whether it passed, in a line; what refused it stands in the table."""
    if review.passed:
        passed = sum(guard.passed is True for guard in review.guards)
        return f"passed: {passed} of {len(review.guards)} limits kept" + _unknown(review)
    names = ", ".join(RULES[guard.name].words if guard.name in RULES else guard.words for guard in review.refused)
    return f"refused: {names}"


def _unknown(review: Review) -> str:
    off = sum(guard.limit is None for guard in review.guards)
    unknown = sum(guard.passed is None for guard in review.guards) - off
    parts = [f"{off} off"] * bool(off) + [f"{unknown} not measured"] * bool(unknown)
    return f", {', '.join(parts)}" if parts else ""


def counted(review: Review) -> str:
    """How many answers moved that should have stayed, and how many are missed that should have changed."""
    verdicts = [question.verdict for question in review.questions]
    moved, kept, missed, took = (verdicts.count(name) for name in ("moved", "kept", "missed", "took"))
    stayed = f"{moved} of {moved + kept} answers moved that should have stayed"
    return f"{stayed}; {missed} of {missed + took} that should have changed are not as asked"


def examples(review: Review, most: int | None = None) -> list[Question]:
    """Questions that moved, those that should have stayed first; with ``most`` some of each kind in turn."""
    order = {kind: i for i, kind in enumerate(NAMES)}
    ranked = sorted(review.moved, key=lambda q: (q.verdict == "missed", order.get(q.kind, len(order))))
    if most is None:
        return ranked
    turn: dict[str, int] = {}
    places: list[tuple[int, int]] = []
    for i, question in enumerate(ranked):
        places.append((turn.get(question.kind, 0), i))
        turn[question.kind] = turn.get(question.kind, 0) + 1
    return [ranked[i] for i in sorted(i for _, i in sorted(places)[:most])]


def kind_words(kind: str) -> str:
    """Words for a question's kind."""
    found = (words for (of, _), (words, _) in MEASURES.items() if of == kind)
    return next(found, NAMES.get(kind, kind)).partition(",")[0]


def source(question: Question) -> str:
    """Where a question comes from."""
    return "the edit" if question.kind == "edit" else question.label or "a case"


def weights(review: Review) -> list[tuple[str, str, str, str]]:
    """Changed weights: site, ‖Δ‖ / ‖W‖, rank, effective rank."""
    return [
        (site, number(of.get("norm")), f"{of.get('rank', 0):.0f}", f"{of.get('effective', 0):.1f}")
        for site, of in review.sites.items()
    ]


def other_parts(review: Review) -> list[str]:
    """Parts of the patch that change no weight, each in a line."""
    others = (part for part in review.parts if part.get("kind") != "delta")
    return [", ".join(f"{name} {value}" for name, value in part.items()) for part in others]
