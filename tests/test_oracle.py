"""Whoever answers every prompt with an accepted answer scores 100: every format, by every protocol."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import SAMPLES, SINGLE, write
from typing_extensions import override

from errata import data
from errata.answers import ENDED, SEARCHED
from errata.data.fields import make_edit
from errata.errors import BadInput
from errata.evaluation.baseline import baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.protocols import PROTOCOLS, STAYING, Protocol
from errata.model.lm import LM
from errata.report.folds import published
from errata.types import Case, Probe, Row, Score

RIGHT = {  # metric -> its value where every answer is right
    "accuracy": 1, "strict": 1, "released": 1, "agreement": 1, "identity": 1, "token_accuracy": 1, "token_agreement": 1,
    "token_f1": 1, "success": 1, "executed": 1, "old_first": 0, "kl": 0,
}  # fmt: skip
BEHIND = (". It is well known. So they say", ".", "\nQ: And what else?", ".\n\nMore", "")  # what follows an answer


@dataclass
class Oracle(LM):
    """Knows what is accepted behind each prompt, and says the first of it; all of it where a text is searched."""

    knows: Mapping[str, Sequence[str]]
    behind: str
    searched: bool

    def _says(self, prompt: str) -> str:
        answers = self.knows.get(prompt, ("unknown",))
        return ", ".join(answers) if self.searched else answers[0]

    @override
    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = 32, *, until_answer: bool = False, until: Sequence[str] = ()
    ) -> list[str]:
        texts = [f" {self._says(prompt)}{self.behind}" for prompt in prompts]
        return [self._ended(text, until) if until_answer else text for text in texts]

    def _ended(self, text: str, until: Sequence[str]) -> str:
        """The text as far as a model must write it."""
        ends = [end.end() + 1 for end in ENDED.finditer(text)]
        ends += [text.index(stop) + len(stop) for stop in until if stop in text]
        return text[: min(ends, default=len(text))]

    @override
    def prolong(self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Any = None) -> list[str]:
        return self.generate(prompts)

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        return [self._score(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]

    def _score(self, prompt: str, target: str) -> Score:
        """A token is a word; the arg-max in each place is the word that it says there."""
        words, said = ([hash(word) for word in text.split()] for text in (target, self._says(prompt)))
        liked = target in self.knows.get(prompt, ())
        argmax = (*said, *([0] * len(words)))[: len(words)]
        return Score(tuple(words), (-0.1 if liked else -2.0,) * len(words), argmax)

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> np.ndarray:
        return np.log(np.full((len(prompts), 2), 0.5))


class Knowledge:
    """What is accepted behind each prompt of a case: before its edits, and after them."""

    def __init__(self, case: Case, rules: Protocol) -> None:
        self.rules = rules
        self.old: dict[str, list[str]] = {}
        self.new: dict[str, list[str]] = {}
        for probe in case.probes:
            if probe.kind in STAYING or probe.kind == "single_hop":
                self._learn(self.old, probe)
        for edit in case.edits:
            self._learn(self.new, Probe("paraphrase", edit.prompt, (edit.target_new,)))
        for probe in case.probes:
            if probe.kind != "single_hop":
                self._learn(self.new, probe)

    def _learn(self, knows: dict[str, list[str]], probe: Probe) -> None:
        if probe.answers:
            knows.setdefault(self.rules.formatted(probe.prompt), []).extend(probe.answers)
        for required in probe.require:
            self._learn(self.old, required)


def asked(case: Case, rules: Protocol, behind: str) -> list[Row]:
    """The rows of an oracle about a case; none where the protocol finds nothing to ask."""
    known, searched = Knowledge(case, rules), rules.match in SEARCHED
    before, after = (Oracle(knows, behind, searched) for knows in (known.old, known.new))
    try:
        made = baseline(before, [case], (*rules.modes, *rules.also), protocol=rules)
    except BadInput as error:
        assert "finds nothing to ask" in str(error)
        return []
    return [row for row in evaluate(made, after, [case]) if (row.case, row.probe) not in TWO_ANSWERS]


def without_traps(case: Case, trap: Callable[[str], bool]) -> Case:
    """The case without probes of which, or of whose conditions, an answer is a trap; an edit to one gets another."""
    edits = [replace(edit, target_new="trapped") if trap(edit.target_new) else edit for edit in case.edits]
    probes = [
        probe
        for probe in case.probes
        if not any(trap(answer) for asked in (probe, *probe.require) for answer in asked.answers)
    ]
    return Case(case.id, tuple(edits), tuple(probes))


def is_right(row: Row) -> bool:
    """Whether the row's value, or both where the answer should stay, are those of an oracle."""
    if row.metric not in RIGHT:
        return True
    values = [row.before] if row.kind == "single_hop" else [row.after]
    values += [row.before] if row.kind in STAYING and row.metric == "accuracy" else []
    return all(value == RIGHT[row.metric] for value in values)


def check(cases: Sequence[Case], rules: Protocol) -> None:
    """All rows of an oracle are right, and so are the numbers that they are folded into."""
    cases = [without_traps(case, TRAPS[rules.name]) for case in cases] if rules.name in TRAPS else cases
    rows = [row for i, case in enumerate(cases) for row in asked(case, rules, BEHIND[i % len(BEHIND)])]
    assert [row for row in rows if not is_right(row)] == []
    lines = {line.name: line for line in rules.lines if line.metric in RIGHT}
    for number in published(rows):
        if line := lines.get(number.name):
            value = number.before if line.kinds == ("single_hop",) else number.after
            assert value is not None and value.mean == pytest.approx(line.scale * RIGHT[line.metric]), number


# Of answers like these the released programs say that they are wrong; our form of the protocol does not.
TRAPS: Mapping[str, Callable[[str], bool]] = {
    "wild-released": lambda answer: "." in answer,
    "rippleedits-released": lambda answer: len(answer) == 1 and not answer.isdigit(),
}
TWO_ANSWERS = {  # (case, probe): the data set gives one prompt two answers, and each is wanted alone
    ("counterfact-18585", "The law in India declares the language"),  # a neighbour that has the new object, too
    ("rippleedits-25", "Compositionality_I 1"),  # the capitals Rome and Roma: EasyEdit feeds the first name of each
}
ODD = {  # answers that are hard to compare
    "stops": (
        "Washington, D.C.",
        "George W. Bush",
        "St. Louis",
        "Warner Bros. Records",
        "Dr. No",
        "J. K. Rowling",
        "3.5",
    ),
    "marks": ("C++", "(a)", "Who?", "Rome (Italy)", "M*A*S*H", "“Rain”", ")", "---", "The", "a"),
    "scripts": ("北京。", "東京", "Ελλάδα", "İstanbul", "Москва", "दिल्ली", "🎤", "Straße", "e\u0301te\u0301"),
    "long": ("A text. Of two sentences.", "Two lines.\nOf text, e.g. this.", "x" * 300),
}


def odd_case(answer: str) -> Case:
    edit = make_edit("{} is", "Ann", answer, "Oslo")
    kinds: tuple[Any, ...] = ("paraphrase", "one_hop", "multi_hop", "new_single_hop", "neighborhood", "unrelated")
    return Case(answer, (edit,), tuple(Probe(kind, f"{kind}?", (answer, "other")) for kind in kinds))


FILES = sorted(path for path in SAMPLES.glob("*") if path.name != "README.md") if SAMPLES.is_dir() else []


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("format", SINGLE)
def test_an_oracle_is_right_about_a_record_of_each_format(format: str, name: str, tmp_path: Path) -> None:
    cases = data.read(write(tmp_path / "one.jsonl", SINGLE[format]), format).cases
    check(cases * len(BEHIND), PROTOCOLS[name])
    assert name != "errata" or asked(cases[0], PROTOCOLS[name], ".")


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("sort", ODD)
def test_an_oracle_is_right_about_odd_answers(sort: str, name: str) -> None:
    for answer in ODD[sort]:
        check([odd_case(answer)] * len(BEHIND), PROTOCOLS[name])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_oracle_is_right_about_every_sample(path: Path) -> None:
    try:
        cases = data.read(path).cases
    except BadInput:
        pytest.skip("no format reads it")
    for rules in PROTOCOLS.values():
        check(cases, rules)


def test_whoever_is_wrong_is_not_right() -> None:
    case = odd_case("George W. Bush")
    for name in ("errata", "mquake", "rippleedits", "wild", "grace", "easyedit", "zsre"):
        rules = PROTOCOLS[name]
        wrong = Oracle({}, ".", False)
        rows = evaluate(baseline(wrong, [case], protocol=rules), Oracle({}, ". George W. Smith", False), [case])
        assert rows and not any(row.after for row in rows if row.kind == "edit" and row.metric in RIGHT)
