"""Every public metric stands in some row or table that a bench file or a report can ask for."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import pytest
from conftest import CASES, EDITS, TEXTS, tiny_lm, tokenizer
from tiny import build

import errata
from errata.evaluation import metrics
from errata.evaluation.ability import Ability, Checkup
from errata.evaluation.baseline import baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.make_gold import gold_of
from errata.evaluation.nearness import Nearness
from errata.evaluation.protocols import PROTOCOLS
from errata.model.hf import HFLM
from errata.report.folds import published
from errata.report.markdown import markdown
from errata.types import Case, Probe, Row

CASE = CASES[0]
ASKED = Case(
    "all kinds",
    CASE.edits,
    (
        *CASE.probes,
        Probe("neighborhood", "Hal Cole was born in", ("Oslo",), rival="Rome"),
        Probe("distractor", "Flo Ash lives in", ("Oslo",), rival="Rome"),
        Probe("new_single_hop", "Eve Stone lives in", ("Rome",)),
        Probe("multi_hop", "The mayor is Eve Stone of", ("Rome",)),
        Probe("generation", "Eve Stone", references=("lives in Rome",), label="wanted"),
        Probe("generation", "Eve Stone", references=("lives in Oslo",), label="opposite"),
    ),
)


def codes_run(work: Callable[[], Any]) -> set[CodeType]:
    """The code of every Python function that ran meanwhile."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return seen


def measure_all() -> None:
    """What a bench file can ask for: each protocol, the model's ability, the gold, and the report of the rows."""
    lm = tiny_lm("gpt2")
    patch = errata.method("ft-m", steps=1).edit(lm, EDITS)
    rows: list[Row] = []
    for name, rules in PROTOCOLS.items():
        before = baseline(lm, [ASKED], (*rules.modes, *rules.also), protocol=name)
        with patch.applied(lm) as edited:
            rows += evaluate(before, edited, [ASKED], after_edits=3, setting="batch of 3")
    check = Checkup(lm, Ability((), tuple(TEXTS[:2]), tuple(TEXTS[:2])))
    with patch.applied(lm) as edited:
        rows += check.rows(edited, after_edits=3, setting="batch of 3")
    rows += check.drift(patch, after_edits=3, setting="batch of 3")
    retrained = [HFLM(build("gpt2", seed, vocab_size=320), tokenizer(), name=f"seed {seed}") for seed in (1, 2)]
    nearness = Nearness.of(gold_of(lm, retrained, [CASE], "a case"), lm, ("generated",))
    rows += nearness.rows(retrained[0], CASE.edits, after_edits=1, setting="batch of 1")
    rows += [replace(row, setting="single") for row in rows if row.kind == "edit"]
    ours = [row for row in rows if row.protocol == "errata" and row.kind == "edit"]
    cost = Row(kind="cost", metric="seconds_per_edit", after=1.0)
    rows += [replace(row, setting="sequential by 1", after_edits=n) for n in (1, 2, 3) for row in (*ours, cost)]
    markdown(rows)
    published(rows)


@pytest.fixture(scope="module")
def run() -> set[CodeType]:
    return codes_run(measure_all)


@pytest.mark.parametrize("name", metrics.__all__)
def test_a_bench_file_reaches_it(name: str, run: set[CodeType]) -> None:
    metric = getattr(metrics, name)
    code = metric.__init__.__code__ if isinstance(metric, type) else metric.__code__
    assert code in run, f"no protocol, ability or report calls {name}: use it there, or delete it"


def test_the_test_sees_what_nothing_calls() -> None:
    assert metrics.nll.__code__ not in codes_run(lambda: metrics.mean([1.0]))
