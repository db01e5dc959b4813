"""Scorers: what a model must be asked about probes, and how replies before and after an edit become a number."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from errata.answers import MATCHES, SEARCHED, holds_a_stop, is_text
from errata.encoders import SENTENCES, sentences
from errata.errors import BadInput, Unsupported
from errata.evaluation import metrics
from errata.evaluation.asking import Pair, Replies, Requests
from errata.evaluation.metrics import Overlap, Tfidf, rouge
from errata.types import Mode, Probe, Score

Verdicts = Mapping[tuple[str, tuple[str, ...]], bool]  # (prompt, accepted answers) -> whether it was answered right
Probes = Sequence[Probe]


@dataclass(frozen=True)
class GradedReplies:
    """Replies, and how answers are compared with the accepted ones: by a kind of match, or by a judge's verdicts."""

    replies: Replies
    match: str = "begins"
    verdicts: Verdicts | None = None
    tfidf: Tfidf | None = None

    def answer(self, probe: Probe) -> str:
        """The answer that was generated."""
        return self.replies.answers[probe.prompt]

    def score(self, probe: Probe, target: str | None = None) -> Score:
        """The score of a target behind the probe's prompt; of the first accepted answer without one."""
        return self.replies.scores[probe.prompt, probe.answers[0] if target is None else target]

    def right(self, probe: Probe) -> bool:
        """Whether the generated answer is an accepted one."""
        if self.verdicts is not None:
            return self.verdicts[probe.prompt, probe.answers]
        return MATCHES[self.match](self.answer(probe), probe.answers)

    @property
    def same_prompt(self) -> Callable[[Sequence[float]], float]:
        """The value of probes with one prompt: all are expected in a text that is searched, else any is right."""
        return min if self.match in SEARCHED else max


Value = Callable[[Probes, GradedReplies, GradedReplies], float]  # (probes that count as one, before, after)
OfProbe = Callable[[Probe, GradedReplies, GradedReplies], float]


@dataclass(frozen=True)
class Scorer:
    """A number about probes that count as one.

    ``requests`` are what the model must be asked, ``value`` is of (probes, replies before the edit, replies now), and
    ``needs`` are the fields without which a probe is left out, ``labels`` those of which some probe must be there. With
    ``texts`` those probes alone count one of whose answers is a text (``errata.answers.is_text``).
    ``match`` is what the row says of how an answer was compared; "" stands for the protocol's own. ``without`` says how
    to give what is needed: there is a row, with this as its error, also where no probe is usable.
    """

    value: Value
    requests: Callable[[Probes], Requests]
    needs: tuple[str, ...] = ("answers",)
    match: str = ""
    labels: tuple[str, ...] = ()
    without: str = ""
    texts: bool = False

    def usable(self, probes: Probes) -> Probes:
        """Those of the probes that have what is needed."""
        found = [probe for probe in probes if all(getattr(probe, name) for name in self.needs)]
        found = [probe for probe in found if not self.texts or any(map(is_text, probe.answers))]
        return found if {probe.label for probe in found}.issuperset(self.labels) else []


def _grouped(value: OfProbe) -> Value:
    """The values of probes that count as one, combined by their rule; first those with one prompt."""

    def combined(probes: Probes, before: GradedReplies, after: GradedReplies) -> float:
        values: dict[str, list[float]] = {}
        for probe in probes:
            values.setdefault(probe.prompt, []).append(value(probe, before, after))
        return metrics.any_or_all([after.same_prompt(of_prompt) for of_prompt in values.values()], probes[0].rule)

    return combined


# What is asked -----------------------------------------------------------------------------------


def _answers(probes: Probes) -> Requests:
    answers = ((probe.prompt, answer) for probe in probes for answer in probe.answers)
    whole = tuple(pair for pair in answers if holds_a_stop(pair[1]) or is_text(pair[1]))
    return Requests(answers=tuple(probe.prompt for probe in probes), whole=whole)


def _all_answers(probes: Probes) -> Requests:
    return Requests(scores=tuple((probe.prompt, answer) for probe in probes for answer in probe.answers))


def _first_answers(probes: Probes) -> Requests:
    return Requests(scores=tuple((probe.prompt, answer) for probe in probes for answer in probe.answers[:1]))


def _rivals(probes: Probes) -> Requests:
    return Requests(scores=tuple((probe.prompt, probe.rival or "") for probe in probes))


def _first_and_rival(probes: Probes) -> Requests:
    return Requests.joined([_first_answers(probes), _rivals(probes)])


def _all_and_rival(probes: Probes) -> Requests:
    return Requests.joined([_all_answers(probes), _rivals(probes)])


def _references(probes: Probes) -> Requests:
    return Requests(scores=tuple((probe.prompt, text) for probe in probes for text in probe.references))


def _next_tokens(probes: Probes) -> Requests:
    return Requests(next_logprobs=tuple(probe.prompt for probe in probes))


def _texts(probes: Probes) -> Requests:
    return Requests(texts=tuple(_numbered(probes)))


def _numbered(probes: Probes) -> list[Pair]:
    """A text for each probe; probes with the same prompt get different texts."""
    seen: Counter[str] = Counter()
    pairs: list[Pair] = []
    for probe in probes:
        seen[probe.prompt] += 1
        pairs.append((probe.prompt, f"text {seen[probe.prompt]}"))
    return pairs


# The values --------------------------------------------------------------------------------------


def _of_score(metric: Callable[[Score], float]) -> Value:
    """Of the first answer's score."""
    return _grouped(lambda probe, before, after: metric(after.score(probe)))


def _of_two_scores(metric: Callable[[Score, Score], float]) -> Value:
    """Of the first answer's scores before and after."""
    return _grouped(lambda probe, before, after: metric(before.score(probe), after.score(probe)))


def _against_rival(metric: Callable[[Score, Score], float]) -> Value:
    """Of the first answer's score and its rival's."""
    return _grouped(lambda probe, before, after: metric(after.score(probe), after.score(probe, probe.rival or "")))


def _forced_accuracy(probe: Probe, before: GradedReplies, after: GradedReplies) -> float:
    return metrics.forced_accuracy(after.score(probe, answer) for answer in probe.answers)


def _old_first(probe: Probe, before: GradedReplies, after: GradedReplies) -> float:
    rival = probe.rival or ""
    return metrics.ranks_first(rival, {option: after.score(probe, option) for option in (*probe.answers, rival)})


def _strict(probes: Probes, before: GradedReplies, after: GradedReplies) -> float:
    return metrics.any_or_all([float(after.right(probe)) for probe in probes], "all")


def _entropy(probes: Probes, before: GradedReplies, after: GradedReplies) -> float:
    return metrics.fluency(after.replies.texts[pair] for pair in _numbered(probes))


def _reference(probes: Probes, before: GradedReplies, after: GradedReplies) -> float:
    assert after.tfidf is not None
    references = dict.fromkeys(text for probe in probes for text in probe.references)
    texts = [after.replies.texts[pair] for pair in _numbered(probes)]
    return metrics.reference_score(texts, list(references), after.tfidf)


def _sentiment(probes: Probes, before: GradedReplies, after: GradedReplies) -> float:
    """Of the references of probes labelled ``wanted`` against those of the ``opposite`` ones."""
    same, opposite = (_references([probe for probe in probes if probe.label == side]).scores for side in SIDES)
    return metrics.sentiment(
        [before.replies.scores[pair] for pair in same],
        [after.replies.scores[pair] for pair in same],
        [after.replies.scores[pair] for pair in opposite],
    )


def _rouge(of: Callable[[Overlap], float], n: int | None, *, as_long: bool = False) -> Value:
    """Of the reply and the answer that it is most like."""

    def value(probe: Probe, before: GradedReplies, after: GradedReplies) -> float:
        reply = after.answer(probe)
        return max(of(rouge(reply, answer, n, as_long=as_long)) for answer in probe.answers)

    return _grouped(value)


def _similarity(probe: Probe, before: GradedReplies, after: GradedReplies) -> float:
    try:
        encode = sentences(SENTENCES)
    except BadInput as error:
        raise Unsupported(str(error)) from error
    reply, *answers = encode([after.answer(probe), *probe.answers])
    return max(float(reply @ answer) for answer in answers)


def _kl(probe: Probe, before: GradedReplies, after: GradedReplies) -> float:
    return metrics.kl(after.replies.next_logprobs[probe.prompt], before.replies.next_logprobs[probe.prompt])


RIVALS = ("answers", "rival")
SIDES = ("wanted", "opposite")  # labels of replies with the sentiment of the edit, and with the other one
NO_REFERENCES = (
    "there are no texts to compare with (RS); CounterFact's are in attribute_snippets.json "
    "(https://rome.baulab.info/data/dsets), which is read where it lies beside the file of cases"
)
SCORERS: Mapping[tuple[str, Mode], Scorer] = {
    ("accuracy", "generated"): Scorer(_grouped(lambda p, _, after: after.right(p)), _answers),
    ("accuracy", "forced"): Scorer(_grouped(_forced_accuracy), _all_answers, match="argmax"),
    ("strict", "generated"): Scorer(_strict, _answers),
    ("released", "generated"): Scorer(  # as RippleEdits' scorer: a question without answers passes
        _grouped(lambda p, _, after: float(not p.answers or after.right(p))), _answers, needs=()
    ),
    ("token_f1", "generated"): Scorer(
        _grouped(lambda p, _, after: metrics.token_f1(after.answer(p), p.answers)), _answers, match="shared words"
    ),
    ("agreement", "generated"): Scorer(
        _grouped(lambda p, before, after: metrics.generated_agreement(before.answer(p), after.answer(p), p.answers)),
        _answers,
        needs=(),
        match="agreement",
    ),
    ("agreement", "forced"): Scorer(_of_two_scores(metrics.forced_agreement), _first_answers, match="agreement"),
    ("identity", "generated"): Scorer(
        _grouped(lambda p, before, after: float(before.answer(p) == after.answer(p))), _answers, (), "identity"
    ),
    ("token_accuracy", "forced"): Scorer(_of_score(metrics.token_accuracy), _first_answers, match="share of tokens"),
    ("token_agreement", "forced"): Scorer(
        _of_two_scores(metrics.token_agreement), _first_answers, match="share of tokens"
    ),
    ("success", "forced"): Scorer(_against_rival(metrics.success), _first_and_rival, RIVALS, "likelier"),
    ("magnitude", "forced"): Scorer(_against_rival(metrics.magnitude), _first_and_rival, RIVALS, "likelier"),
    ("old_first", "forced"): Scorer(_grouped(_old_first), _all_and_rival, RIVALS, "likeliest"),
    ("kl", "forced"): Scorer(_grouped(_kl), _next_tokens, (), "next token"),
    ("sentiment", "forced"): Scorer(_sentiment, _references, ("references",), "likelier", SIDES),
    ("rouge_l", "generated"): Scorer(
        _rouge(lambda o: o.f1, None, as_long=True), _answers, match="words in order", texts=True
    ),
    ("rouge_1_recall", "generated"): Scorer(_rouge(lambda o: o.recall, 1), _answers, match="shared words"),
    ("rouge_2_recall", "generated"): Scorer(_rouge(lambda o: o.recall, 2), _answers, match="shared pairs of words"),
    ("rouge_l_recall", "generated"): Scorer(_rouge(lambda o: o.recall, None), _answers, match="words in order"),
    ("similarity", "generated"): Scorer(_grouped(_similarity), _answers, match=SENTENCES),
    ("entropy", "generated"): Scorer(_entropy, _texts, (), "n-grams"),
    ("reference", "generated"): Scorer(_reference, _texts, ("references",), "TF-IDF", without=NO_REFERENCES),
}
