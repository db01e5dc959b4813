"""What is asked for each measure, and what its value is: metrics brought to probes and to what was said to them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from errata.answers import MATCHES
from errata.evaluation import metrics
from errata.evaluation.metrics import Tfidf
from errata.types import Mode, Probe, Score

if TYPE_CHECKING:
    import numpy as np

Asked = tuple[str, str]  # a prompt, and the answer that is fed; or "" where the model answers, or which text it writes
Verdicts = Mapping[tuple[str, tuple[str, ...]], bool]  # (prompt, accepted answers) -> whether it was answered right


@dataclass(frozen=True)
class Replies:
    """What a model said: a text to each prompt, a score to each prompt and answer, what comes next after a prompt."""

    texts: Mapping[Asked, str] = field(default_factory=dict[Asked, str])
    scores: Mapping[Asked, Score] = field(default_factory=dict[Asked, Score])
    nexts: Mapping[str, "np.ndarray"] = field(default_factory=dict)  # log-probabilities (V,)


@dataclass(frozen=True)
class Heard:
    """Replies, and how they are held against accepted answers: by a kind of match, or by a judge's verdicts."""

    replies: Replies
    match: str = "begins"
    verdicts: Verdicts | None = None
    tfidf: Tfidf | None = None

    def text(self, probe: Probe) -> str:
        return self.replies.texts[probe.prompt, ""]

    def score(self, probe: Probe, answer: str) -> Score:
        return self.replies.scores[probe.prompt, answer]

    def answered(self, probe: Probe) -> bool:
        if self.verdicts is not None:
            return self.verdicts[probe.prompt, probe.answers]
        return MATCHES[self.match](self.text(probe), probe.answers)


Probes = Sequence[Probe]


@dataclass(frozen=True)
class Measure:
    """One way to a number about probes that count as one.

    ``needs`` are the fields that a probe must have to be looked at, ``hears`` tells what the model must be asked for
    those; ``value`` is of (probes, before, now). ``match`` says in the row how an answer was held against others; "" is
    the protocol's own.
    """

    value: Callable[[Probes, Heard, Heard], float]
    hears: Callable[[Probes], Iterable[Asked]]
    needs: tuple[str, ...] = ("answers",)
    match: str = ""
    next: bool = False  # asks what comes next, too

    def of(self, probes: Probes) -> Probes:
        """Those of the probes that have what is needed."""
        return [probe for probe in probes if all(getattr(probe, name) for name in self.needs)]


def _each(value: Callable[[Probe, Heard, Heard], float]) -> Callable[[Probes, Heard, Heard], float]:
    """Of probes that count as one: the best of them, or the worst, by their rule; of one prompt's, the worst."""

    def combined(probes: Probes, before: Heard, now: Heard) -> float:
        values: dict[str, float] = {}
        for probe in probes:
            found = value(probe, before, now)
            values[probe.prompt] = min(found, values.get(probe.prompt, found))
        return max(values.values()) if probes[0].rule == "any" else min(values.values())

    return combined


# What is asked -----------------------------------------------------------------------------------


def answers(probes: Probes) -> list[Asked]:
    return [(probe.prompt, "") for probe in probes]


def fed(probes: Probes) -> list[Asked]:
    return [(probe.prompt, answer) for probe in probes for answer in probe.answers]


def first(probes: Probes) -> list[Asked]:
    return [(probe.prompt, answer) for probe in probes for answer in probe.answers[:1]]


def both(probes: Probes) -> list[Asked]:
    return [
        asked for probe in probes for asked in ((probe.prompt, probe.answers[0]), (probe.prompt, probe.rival or ""))
    ]


def choices(probes: Probes) -> list[Asked]:
    return [*fed(probes), *((probe.prompt, probe.rival or "") for probe in probes)]


def replies(probes: Probes) -> list[Asked]:
    return [(probe.prompt, text) for probe in probes for text in probe.references]


def nothing(probes: Probes) -> list[Asked]:
    return []


def texts(probes: Probes) -> list[Asked]:
    """A text to each probe; one that is asked again writes another text."""
    seen: Counter[str] = Counter()
    asked: list[Asked] = []
    for probe in probes:
        seen[probe.prompt] += 1
        asked.append((probe.prompt, f"text {seen[probe.prompt]}"))
    return asked


# What it is worth --------------------------------------------------------------------------------


def _against(measure: Callable[[Score, Score], float]) -> Callable[[Probes, Heard, Heard], float]:
    """The first answer against the rival."""
    return _each(lambda p, before, now: measure(now.score(p, p.answers[0]), now.score(p, p.rival or "")))


def _old_first(probe: Probe, before: Heard, now: Heard) -> float:
    rival = probe.rival or ""
    return metrics.ranks_first(rival, {option: now.score(probe, option) for option in (*probe.answers, rival)})


def _entropy(probes: Probes, before: Heard, now: Heard) -> float:
    return metrics.fluency(now.replies.texts[asked] for asked in texts(probes))


def _reference(probes: Probes, before: Heard, now: Heard) -> float:
    assert now.tfidf is not None
    references = dict.fromkeys(text for probe in probes for text in probe.references)
    return metrics.reference_score([now.replies.texts[asked] for asked in texts(probes)], list(references), now.tfidf)


def _sentiment(probes: Probes, before: Heard, now: Heard) -> float:
    """Of the replies of probes labelled ``wanted`` against those of the others."""
    wanted, opposite = ([p for p in probes if (p.label == "wanted") == of] for of in (True, False))
    was, same, other = (
        [heard.replies.scores[its] for its in replies(of)]
        for heard, of in ((before, wanted), (now, wanted), (now, opposite))
    )
    return metrics.sentiment(was, same, other)


def _kl(probe: Probe, before: Heard, now: Heard) -> float:
    return metrics.kl(now.replies.nexts[probe.prompt], before.replies.nexts[probe.prompt])


MEASURES: Mapping[tuple[str, Mode], Measure] = {
    ("accuracy", "generated"): Measure(_each(lambda p, _, now: now.answered(p)), answers),
    ("strict", "generated"): Measure(lambda ps, _, now: min(float(now.answered(p)) for p in ps), answers),
    ("released", "generated"): Measure(  # as RippleEdits' scorer: a question without answers passes
        _each(lambda p, _, now: float(not p.answers or now.answered(p))), answers, needs=()
    ),
    ("accuracy", "forced"): Measure(
        _each(lambda p, _, now: metrics.forced_accuracy(now.score(p, a) for a in p.answers)), fed, match="argmax"
    ),
    ("agreement", "generated"): Measure(
        _each(lambda p, before, now: metrics.generated_agreement(before.text(p), now.text(p))),
        answers,
        needs=(),
        match="agreement",
    ),
    ("identity", "generated"): Measure(
        _each(lambda p, before, now: float(before.text(p) == now.text(p))), answers, needs=(), match="identity"
    ),
    ("agreement", "forced"): Measure(
        _each(
            lambda p, before, now: metrics.forced_agreement(before.score(p, p.answers[0]), now.score(p, p.answers[0]))
        ),
        first,
        match="agreement",
    ),
    ("token_accuracy", "forced"): Measure(
        _each(lambda p, _, now: metrics.token_accuracy(now.score(p, p.answers[0]))), first, match="share of tokens"
    ),
    ("token_agreement", "forced"): Measure(
        _each(
            lambda p, before, now: metrics.token_agreement(before.score(p, p.answers[0]), now.score(p, p.answers[0]))
        ),
        first,
        match="share of tokens",
    ),
    ("success", "forced"): Measure(_against(metrics.success), both, ("answers", "rival"), "likelier"),
    ("magnitude", "forced"): Measure(_against(metrics.magnitude), both, ("answers", "rival"), "likelier"),
    ("old_first", "forced"): Measure(_each(_old_first), choices, ("answers", "rival"), "likeliest"),
    ("kl", "forced"): Measure(_each(_kl), nothing, (), "next token", next=True),
    ("sentiment", "forced"): Measure(_sentiment, replies, ("references",), "likelier"),
    ("entropy", "generated"): Measure(_entropy, texts, (), "n-grams"),
    ("reference", "generated"): Measure(_reference, texts, ("references",), "TF-IDF"),
}
